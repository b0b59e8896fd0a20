"""`nora demo`: a simulated WidowX-250s follows instructions in closed loop over ROS 2."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nora_bringup.graph import Device, Head
from nora_core.embodiment import Embodiment
from nora_core.files import write_text
from nora_core.paths import embodiment_file, protocol_file, shipped_checkpoint
from nora_core.trials.protocol import Protocol, Seeds, jobs, scene_of
from nora_core.trials.record import Job

PROTOCOL, CANDIDATE = "demo", "demo"
EMBODIMENT = "sim_widowx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Run a policy in closed loop in simulation; write a trial sheet, a video and plots.

    Attributes:
        checkpoint: folder of a policy; by default the one that comes with the package.
        device: where the policy runs.
        head: flow (action expert) or fast (tokens); auto: the embodiment's.
        trials: number of scenes, with one task each; none of them was in the training data.
        trial_seconds: time limit of a trial.
        seed: of the first scene, then counted up; -1: the protocol's.
        real_time_factor: simulated seconds per second; without it, the protocol's.
        out: folder of the results.
    """

    checkpoint: Path | None = None
    device: Device = "auto"
    head: Head = "auto"
    trials: int = 10
    trial_seconds: float = 15.0
    seed: int = -1
    real_time_factor: float | None = None
    out: Path = Path("out/demo")


def run_demo(demo: Demo) -> int:
    """Run the trials; 0 if the policy answered in all of them, whether or not it succeeded.

    Raises:
        ValueError, OSError: an option makes no sense.
        RuntimeError: a node ended or did not answer.
    """
    _require_sensible(demo)
    # ROS, OpenCV, PyAV and matplotlib are imported only here, for the sake of `nora --help`.
    from nora_bringup.trials import report
    from nora_bringup.trials.runner import Finished, RosTrials
    from nora_core.trials.sheet import write_sheet

    protocol = _protocol(demo, demo.checkpoint or shipped_checkpoint(EMBODIMENT))
    scene = scene_of(EMBODIMENT)
    every = jobs(protocol, scene)
    print(
        f"starting the nodes at {protocol.real_time_factor:g} x real time; logs: {demo.out}/logs"
    )
    finished: list[Finished] = []
    with (
        report.TrialVideo(demo.out / "demo.mp4", len(every)) as video,
        _Progress(demo.trial_seconds) as progress,
    ):
        runner = RosTrials(
            protocol=protocol,
            scene=scene,
            out=demo.out,
            device=demo.device,
            say=print,
            on_progress=progress.update,
        )
        for one in runner.run(every):
            progress.end(one.trial.outcome.text, one.trial.duration_s, one.record.result.error)
            video.add(one.trial)
            one.trial.views.clear()  # they are in the video now, and large
            finished.append(one)
    trials = [one.trial for one in finished]
    workspace = Embodiment.load(embodiment_file(EMBODIMENT)).workspace
    report.write_paths(demo.out / "paths.png", trials, workspace)
    sheet = write_sheet(demo.out, [one.record for one in finished], "Demo")
    text = f"{sheet}\n\n{report.table(trials)}"
    write_text(demo.out / "trials.md", f"{text}\n")
    print(f"\n{text}\n\nin {demo.out}: demo.mp4, trials.md, trials.csv, trials.png, paths.png")
    return int(any(one.record.result.error for one in finished))


def _require_sensible(demo: Demo) -> None:
    # Not in the constructor, whose errors the command-line parser cuts short.
    if demo.trials < 1:
        raise ValueError(f"trials: expected at least 1, got {demo.trials}")
    if not demo.trial_seconds > 0:
        raise ValueError(f"trial-seconds: expected more than 0, got {demo.trial_seconds}")
    if demo.seed < -1:
        raise ValueError(f"seed: expected 0 or more, or -1, got {demo.seed}")
    if demo.checkpoint is not None and not demo.checkpoint.is_dir():
        raise ValueError(f"checkpoint: the folder {demo.checkpoint} is missing")


def _protocol(demo: Demo, checkpoint: Path) -> Protocol:
    """The shipped protocol with the options of the command."""
    protocol = Protocol.load(protocol_file(PROTOCOL), {CANDIDATE: checkpoint})
    start = protocol.seeds.start if demo.seed < 0 else demo.seed
    (candidate,) = protocol.checkpoints
    if demo.head != "auto":
        candidate = dataclasses.replace(candidate, head=demo.head)
    factor = demo.real_time_factor
    return dataclasses.replace(
        protocol,
        checkpoints=(candidate,),
        seeds=Seeds(start, demo.trials),
        seconds=demo.trial_seconds,
        real_time_factor=protocol.real_time_factor if factor is None else factor,
    )


class _Progress:
    """A title and a progress bar for each trial."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._job: Job | None = None
        self._bar: tqdm | None = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, job: Job, elapsed_s: float) -> None:
        if job is not self._job:
            self._job = job
            print(f"{job.instruction} (scene {job.seed})")
            bar_format = "  {bar:40} {n:.1f}/{total:.0f} s"
            self._bar = tqdm(total=self._seconds, bar_format=bar_format, leave=False, disable=None)
        assert self._bar is not None
        self._bar.update(min(elapsed_s, self._seconds) - self._bar.n)

    def end(self, outcome: str, duration_s: float, error: str) -> None:
        if self._bar is not None:
            self._bar.close()
        print(f"  {outcome} after {duration_s:.1f} s{f': {error}' if error else ''}")
