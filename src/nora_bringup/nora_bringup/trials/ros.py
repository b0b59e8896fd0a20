"""Trials through the running graph: every node as on the robot."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from nora_msgs.action import ExecuteInstruction
from nora_msgs.msg import TaskOutcome

from nora_bringup.graph import Options
from nora_bringup.trials import report
from nora_bringup.trials.operator import Operator, Verdict
from nora_bringup.trials.trial import Trial, TrialClient, graph_client
from nora_core.sim.task import REACH_M, parse
from nora_core.trials.blind import blind_names
from nora_core.trials.protocol import Protocol, Scene
from nora_core.trials.record import Job, Outcome, Record, Result
from nora_core.types import GoalError

SETTLE_S = 0.5
GOAL_ENDINGS = (
    ExecuteInstruction.Result.NONE,
    ExecuteInstruction.Result.TIMEOUT,
    ExecuteInstruction.Result.CANCELLED,  # by the operator
)
FAILED_BY_POLICY = ExecuteInstruction.Result.INFERENCE_FAILED
OUTCOMES: dict[int, Outcome] = {
    TaskOutcome.SUCCESS: "success",
    TaskOutcome.PARTIAL: "partial",
    TaskOutcome.FAILURE: "failure",
}
CODES = {name: code for code, name in OUTCOMES.items()}


class RosTrials:
    """Runs jobs of a protocol.

    Args:
        protocol: of the jobs.
        scene: of the simulator, None at a real robot.
        out: folder for logs, videos and bags.
        operator: judges; None: the simulator does.
    """

    def __init__(
        self, protocol: Protocol, scene: Scene | None, out: Path, operator: Operator | None
    ) -> None:
        self._protocol, self._scene, self._out, self._operator = protocol, scene, out, operator
        names = [contender.name for contender in protocol.checkpoints]
        self._letters = blind_names(names, protocol.seeds.start)

    def run(self, jobs: Sequence[Job]) -> Iterator[Record]:
        """The trials as they end; jobs of one policy next to each other share a graph.

        Raises:
            RuntimeError: a node ended, refused or did not answer, or a trial was cut short by the
                graph; it is no record.
        """
        number = 0
        for (folder, head), group in itertools.groupby(jobs, key=lambda j: (j.folder, j.head)):
            options = Options(
                self._protocol.embodiment,
                folder,
                head=head,
                seed=self._protocol.seeds.start,
                record_dir=str(self._out / "bags") if self._protocol.bags else "",
                real_time_factor=self._protocol.real_time_factor,
            )
            with graph_client(options, self._out / "logs") as client:
                for job in group:
                    number += 1
                    yield self._run_one(client, job, f"trial {number} of {len(jobs)}")

    def _run_one(self, client: TrialClient, job: Job, title: str) -> Record:
        while True:
            if self._operator is not None:
                client.prepare(job.instruction, job.seed)
                policy = f"policy {self._letters[job.checkpoint]}: {job.instruction!r}"
                self._operator.begin(
                    f"{title}, {policy}", f"set up scene {job.seed}, then step back"
                )
            client.prepare(job.instruction, job.seed)
            if self._protocol.bags:
                client.start_episode(job.instruction, job.key)
            trial, verdict = self._follow(client, job)
            if verdict.outcome is None:
                if self._protocol.bags:
                    client.discard_episode()
                continue
            if self._protocol.bags:
                client.end_episode(CODES[verdict.outcome], verdict.distractor_grasps)
            self._write_video(trial, job, verdict.outcome)
            return Record(job, result_of(trial, verdict, self._scene))

    def _follow(self, client: TrialClient, job: Job) -> tuple[Trial, Verdict]:
        operator, seconds = self._operator, self._protocol.seconds
        if operator is None:
            trial = client.run(job.instruction, job.seed, seconds, _ignore, settle_s=SETTLE_S)
            _require_fair(trial)
            return trial, verdict_of(trial)
        trial = client.run(job.instruction, job.seed, seconds, _ignore, operator.has_decided)
        _require_fair(trial)
        verdict = operator.verdict()
        if verdict.outcome is not None:
            trial.outcome = CODES[verdict.outcome]
            trial.distractor_grasps = verdict.distractor_grasps
        return trial, verdict

    def _write_video(self, trial: Trial, job: Job, outcome: Outcome) -> None:
        wanted = self._protocol.video
        if trial.views and (wanted == "all" or (wanted == "failures" and outcome != "success")):
            folder = self._out / "videos"
            folder.mkdir(parents=True, exist_ok=True)
            with report.TrialVideo(folder / f"{job.key}.mp4", 1) as video:
                video.add(trial)


def _require_fair(trial: Trial) -> None:
    """That the policy had its chance: what ends a goal otherwise says nothing about it."""
    if trial.error_code not in (*GOAL_ENDINGS, FAILED_BY_POLICY):
        raise RuntimeError(
            f"execute_instruction: {GoalError(trial.error_code).name}: {trial.error_msg}; "
            f"the trial {trial.instruction!r}, seed {trial.seed}, does not count; "
            "the same command runs it again"
        )


def verdict_of(trial: Trial) -> Verdict:
    """That of the simulator."""
    return Verdict(OUTCOMES.get(trial.outcome, "failure"), trial.distractor_grasps)


def record_of(job: Job, trial: Trial, scene: Scene | None) -> Record:
    """Judged by the simulator."""
    return Record(job, result_of(trial, verdict_of(trial), scene))


def result_of(trial: Trial, verdict: Verdict, scene: Scene | None) -> Result:
    """In terms of the log; distances only where a simulator tells them."""
    assert verdict.outcome is not None
    error = "" if trial.error_code in GOAL_ENDINGS else trial.error_msg
    if trial.outcome == TaskOutcome.UNKNOWN:
        error = error or "nobody judged the task"
    reached, object_m, tool_m = None, None, None
    if scene is not None and trial.things:
        closest_m, object_m, tool_m = distances(trial, scene)
        reached = verdict.outcome != "failure" or closest_m <= REACH_M
    return Result(
        outcome=verdict.outcome,
        reached=reached,
        distractor_grasps=verdict.distractor_grasps,
        chunks=len(trial.inference_s),
        duration_s=round(trial.duration_s, 3),
        grasp_s=None if trial.grasp_s is None else round(trial.grasp_s, 3),
        object_m=object_m,
        tool_m=tool_m,
        error=error,
    )


def distances(trial: Trial, scene: Scene) -> tuple[float, float, float]:
    """How far the named object was from the tool at the closest, m.

    Then how far, horizontally, it was at the end from its target, and from the tool.
    """
    names = (*scene.objects, *scene.receptacles)
    task = parse(trial.instruction, scene.objects, scene.receptacles)
    things_KN3 = np.array(trial.things)
    object_K3 = things_KN3[:, names.index(task.object)]
    target_K3 = things_KN3[:, names.index(task.target or task.object)]
    tool_K3 = things_KN3[:, -1]
    closest_m = np.linalg.norm(object_K3 - tool_K3, axis=1).min()
    at_end = [np.linalg.norm((object_K3 - other_K3)[-1, :2]) for other_K3 in (target_K3, tool_K3)]
    return float(closest_m), round(float(at_end[0]), 4), round(float(at_end[1]), 4)


def _ignore(elapsed_s: float) -> None:
    pass
