"""`nora demo`: a simulated WidowX-250s follows instructions in closed loop over ROS 2."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from nora_bringup.graph import Options
from nora_bringup.trials.trial import Trial, TrialClient, graph_client
from nora_core.paths import share, shipped_checkpoint
from nora_core.trials.protocol import Protocol, Seeds, jobs, scene_of
from nora_core.trials.record import Job, Record

PROTOCOL, CONTENDER = "demo", "demo"
EMBODIMENT = "sim_widowx"


@dataclass(frozen=True, slots=True)
class Demo:
    """Run a policy in closed loop in simulation; write a trial sheet, a video and plots.

    Attributes:
        checkpoint: folder of a policy; by default the one that comes with the package.
        device: auto, cpu or cuda.
        head: flow, fast, or auto: as the embodiment says.
        trials: scenes, with one task each; the policy was trained in others.
        trial_seconds: time limit of a trial.
        seed: of the first scene; the next ones count on. -1: as the protocol says.
        real_time_factor: seconds of the simulation per second. Without: as the protocol says.
        out: folder for what the demo writes.
    """

    checkpoint: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    head: Literal["auto", "flow", "fast"] = "auto"
    trials: int = 10
    trial_seconds: float = 15.0
    seed: int = -1
    real_time_factor: float | None = None
    out: Path = Path("out/demo")


def run_demo(demo: Demo) -> int:
    """Run the trials; 0 when every trial ran to its end, whether or not the task was done.

    Raises:
        ValueError, OSError: an option makes no sense.
        RuntimeError: a node ended or did not answer.
    """
    _require_sensible(demo)
    checkpoint = demo.checkpoint or shipped_checkpoint(EMBODIMENT)
    logs = demo.out / "logs"
    protocol = _protocol(demo, checkpoint)
    every = jobs(protocol, scene_of(EMBODIMENT))
    options = Options(
        EMBODIMENT,
        str(checkpoint),
        demo.device,
        demo.head,
        seed=protocol.seeds.start,
        real_time_factor=protocol.real_time_factor,
    )
    print(f"starting simulator, bridge and policy; logs in {logs}/")
    with graph_client(options, logs) as client:
        print(
            "ready: cameras -> policy -> bridge -> simulated arm, "
            f"at {protocol.real_time_factor:g} x real time"
        )
        return _run(demo, client, every)


def _run(demo: Demo, client: TrialClient, every: tuple[Job, ...]) -> int:
    from nora_bringup.trials import report  # OpenCV, PyAV and matplotlib only when they are needed
    from nora_bringup.trials.ros import GOAL_ENDINGS, record_of
    from nora_core.trials.sheet import write_sheet

    trials: list[Trial] = []
    records: list[Record] = []
    scene = scene_of(EMBODIMENT)
    with report.TrialVideo(demo.out / "demo.mp4", len(every)) as video:
        for job in every:
            trial = _run_trial(client, job, demo.trial_seconds)
            video.add(trial)
            trial.views.clear()  # in the video now, and too large to keep
            trials.append(trial)
            records.append(record_of(job, trial, scene))
            if trial.error_code not in GOAL_ENDINGS:
                print(f"  {trial.error_msg}")
    report.write_plot(demo.out / "paths.png", trials)
    text = "\n\n".join([write_sheet(demo.out, records, "Demo"), report.table(trials)])
    (demo.out / "trials.md").write_text(text + "\n")
    print(f"\n{text}\n\nvideo {demo.out}/demo.mp4, sheet {demo.out}/trials.md, trials.csv, ")
    print(f"trials.png, paths {demo.out}/paths.png")
    return 0 if all(trial.error_code in GOAL_ENDINGS for trial in trials) else 1


def _require_sensible(demo: Demo) -> None:
    # Not in the constructor, whose errors the command-line parser cuts short.
    if demo.trials < 1:
        raise ValueError(f"trials: expected at least 1, got {demo.trials}")
    if not demo.trial_seconds > 0:
        raise ValueError(f"trial-seconds: expected more than 0, got {demo.trial_seconds}")
    if demo.seed < -1:
        raise ValueError(f"seed: expected 0 or more, or -1, got {demo.seed}")
    if demo.checkpoint is not None and not demo.checkpoint.is_dir():
        raise ValueError(f"checkpoint: expected a folder, got {demo.checkpoint}")


def _protocol(demo: Demo, checkpoint: Path) -> Protocol:
    path = share() / "config/trials" / f"{PROTOCOL}.yaml"
    protocol = Protocol.load(path, {CONTENDER: checkpoint})
    start = protocol.seeds.start if demo.seed < 0 else demo.seed
    (contender,) = protocol.checkpoints
    if demo.head != "auto":
        contender = dataclasses.replace(contender, head=demo.head)
    factor = demo.real_time_factor
    return dataclasses.replace(
        protocol,
        checkpoints=(contender,),
        seeds=Seeds(start, demo.trials),
        real_time_factor=protocol.real_time_factor if factor is None else factor,
    )


def _run_trial(client: TrialClient, job: Job, timeout_s: float) -> Trial:
    print(f"{job.instruction} (scene {job.seed})")
    client.prepare(job.instruction, job.seed)
    bar_format = "  {bar:40} {n:.1f}/{total:.0f} s"
    with tqdm(total=timeout_s, bar_format=bar_format, leave=False, disable=None) as bar:

        def on_progress(elapsed_s: float) -> None:
            bar.update(min(elapsed_s, timeout_s) - bar.n)

        trial = client.run(job.instruction, job.seed, timeout_s, on_progress, settle_s=0.5)
    print(
        f"  {trial.outcome_name} after {trial.duration_s:.1f} s, {len(trial.inference_s)} chunks"
    )
    return trial
