"""Trials through the running graph, with the nodes that run on the robot."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nora_bringup.graph import Device, Options
from nora_bringup.trials.client import TrialClient
from nora_bringup.trials.graph_client import graph_client
from nora_bringup.trials.operator import Operator, Verdict
from nora_bringup.trials.telemetry import Trial
from nora_core.sim.task import REACH_M, parse
from nora_core.trials.blind import blind_names
from nora_core.trials.protocol import Protocol, Scene
from nora_core.trials.record import Job, Record, Result
from nora_core.types import GoalError, Outcome

SETTLE_S = 0.5
# How a goal of the policy ends by itself or by the operator.
GOAL_ENDINGS = (GoalError.NONE, GoalError.TIMEOUT, GoalError.CANCELLED)


@dataclass(frozen=True, slots=True)
class Finished:
    """A trial that counts: its record, and everything that was measured."""

    record: Record
    trial: Trial


def ignore(*_: object) -> None:
    """A listener that does nothing."""


class RosTrials:
    """Runs jobs of a protocol.

    Args:
        protocol: of the jobs.
        scene: of the simulator; None at a real robot.
        out: folder for logs and bags.
        operator: judges the trials; None: the simulator does.
        device: of the policy node.
        say: gets lines about the start of the nodes.
        on_progress: gets the job and the seconds since its start, first 0.
    """

    def __init__(
        self,
        *,
        protocol: Protocol,
        scene: Scene | None,
        out: Path,
        operator: Operator | None = None,
        device: Device = "auto",
        say: Callable[[str], None] = ignore,
        on_progress: Callable[[Job, float], None] = ignore,
    ) -> None:
        self._protocol, self._scene, self._out, self._operator = protocol, scene, out, operator
        self._device, self._say, self._on_progress = device, say, on_progress
        names = [candidate.name for candidate in protocol.checkpoints]
        self._letters = blind_names(names, protocol.seeds.start)

    def run(self, jobs: Sequence[Job]) -> Iterator[Finished]:
        """The trials as they end; consecutive jobs of one policy share a graph.

        Raises:
            RuntimeError: a node ended, refused or did not answer, or the graph cut a trial short,
                which then does not count.
        """
        number = 0
        for (folder, head), group in itertools.groupby(jobs, key=lambda j: (j.folder, j.head)):
            options = Options(
                embodiment=self._protocol.embodiment,
                checkpoint=folder,
                device=self._device,
                head=head,
                seed=self._protocol.seeds.start,
                record_dir=str(self._out / "bags") if self._protocol.bags else "",
                real_time_factor=self._protocol.real_time_factor,
            )
            with graph_client(options, self._out / "logs", self._say) as client:
                for job in group:
                    number += 1
                    yield self._run_one(client, job, f"trial {number} of {len(jobs)}")

    def _run_one(self, client: TrialClient, job: Job, title: str) -> Finished:
        while True:
            self._prepare(client, job, title)
            if self._protocol.bags:
                client.start_episode(job.instruction, job.key)
            trial, verdict = self._follow(client, job)
            if verdict.outcome is None:
                if self._protocol.bags:
                    client.discard_episode()
                continue
            if self._protocol.bags:
                client.end_episode(verdict.outcome, verdict.distractor_grasps)
            return Finished(Record(job, result_of(trial, verdict, self._scene)), trial)

    def _prepare(self, client: TrialClient, job: Job, title: str) -> None:
        """Bring the arm home; with an operator once to set the scene, and again to start."""
        if self._operator is not None:
            client.prepare(job.instruction, job.seed)
            policy = f"policy {self._letters[job.checkpoint]}: {job.instruction!r}"
            self._operator.begin(f"{title}, {policy}", f"set up scene {job.seed}, then step back")
        client.prepare(job.instruction, job.seed)
        if self._operator is not None:
            self._operator.start()

    def _follow(self, client: TrialClient, job: Job) -> tuple[Trial, Verdict]:
        def on_progress(elapsed_s: float) -> None:
            self._on_progress(job, elapsed_s)

        operator = self._operator
        trial = client.run(
            job.instruction,
            job.seed,
            timeout_s=self._protocol.seconds,
            on_progress=on_progress,
            is_over=operator.has_decided if operator else lambda: False,
            settle_s=0.0 if operator else SETTLE_S,
        )
        _require_fair(trial)
        if operator is None:
            return trial, verdict_of(trial)
        verdict = operator.verdict()
        if verdict.outcome is not None:
            trial.outcome = verdict.outcome
            trial.distractor_grasps = verdict.distractor_grasps
        return trial, verdict


def _require_fair(trial: Trial) -> None:
    """Refuse a goal that ended for a reason that says nothing about the policy."""
    if trial.error_code not in (*GOAL_ENDINGS, GoalError.INFERENCE_FAILED):
        raise RuntimeError(
            f"execute_instruction: {GoalError(trial.error_code).name}: {trial.error_msg}; "
            f"the trial {trial.instruction!r}, seed {trial.seed}, does not count; "
            "the same command runs it again"
        )


def verdict_of(trial: Trial) -> Verdict:
    """The simulator's."""
    return Verdict(trial.outcome or Outcome.FAILURE, trial.distractor_grasps)


def result_of(trial: Trial, verdict: Verdict, scene: Scene | None) -> Result:
    """The trial as the log keeps it; distances only where a simulator reports positions."""
    assert verdict.outcome is not None
    error = "" if trial.error_code in GOAL_ENDINGS else trial.error_msg
    if trial.outcome is Outcome.UNKNOWN:
        error = error or "nobody judged the task"
    reached, object_m, tool_m = None, None, None
    if scene is not None and trial.objects:
        closest_m, object_m, tool_m = distances(trial, scene)
        reached = verdict.outcome is not Outcome.FAILURE or closest_m <= REACH_M
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
    """Distances of the named object, m.

    Returns:
        The smallest distance to the tool during the trial; then, at its end and horizontally, the
        distance to the target, and to the tool.
    """
    names = (*scene.objects, *scene.receptacles)
    task = parse(trial.instruction, scene.objects, scene.receptacles)
    positions_KN3 = np.array(trial.objects)
    object_K3 = positions_KN3[:, names.index(task.object)]
    target_K3 = positions_KN3[:, names.index(task.target or task.object)]
    tool_K3 = positions_KN3[:, -1]
    closest_m = np.linalg.norm(object_K3 - tool_K3, axis=1).min()
    at_end = [np.linalg.norm((object_K3 - other_K3)[-1, :2]) for other_K3 in (target_K3, tool_K3)]
    return float(closest_m), round(float(at_end[0]), 4), round(float(at_end[1]), 4)
