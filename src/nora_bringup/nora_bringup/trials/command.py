"""`nora trials`: the trials of a protocol through the running nodes, and their sheet."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from nora_bringup.trials.operator import Keys, Operator
from nora_bringup.trials.runner import Finished, RosTrials
from nora_core.paths import embodiment_file, protocol_file
from nora_core.trials.blind import blind_names, blind_order
from nora_core.trials.log import Log, identity
from nora_core.trials.progress import finish, follow
from nora_core.trials.protocol import Protocol, Scene, jobs, scene_of
from nora_core.trials.record import Job, Record
from nora_core.types import Outcome


@dataclass(frozen=True, slots=True)
class Trials:
    """Run what is missing of a protocol's trials over ROS and write the sheet.

    Attributes:
        protocol: name of a file in config/trials, or a path ending in .yaml.
        out: folder for the log, the sheet, videos and bags; the same folder resumes a run.
        folders: name and folder of checkpoints that are elsewhere than the protocol says.
    """

    protocol: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROTOCOL")]
    out: Path
    folders: dict[str, Path] = field(default_factory=dict)


def run_trials(trials: Trials) -> list[Record]:
    """Run the missing trials; all records, in the order of the protocol.

    Raises:
        ValueError, OSError, RuntimeError: it cannot go on.
    """
    path = protocol_file(trials.protocol)
    protocol = Protocol.load(path, trials.folders)
    scene = scene_of(protocol.embodiment)
    _require_possible(protocol, scene)
    every = jobs(protocol, scene)
    log = Log(trials.out, identity(protocol, embodiment_file(protocol.embodiment), has_ros=True))
    missing = [job for job in every if job.key not in log]
    with contextlib.closing(_run(missing, protocol, scene, trials.out)) as records:
        follow(records, log, every)
    return finish(trials.out, log, every, path.stem)


def _require_possible(protocol: Protocol, scene: Scene | None) -> None:
    conditions = {condition for c in protocol.checkpoints for condition in c.conditions}
    if conditions != {"normal"}:
        raise ValueError(f"conditions: only normal works over ROS, got {sorted(conditions)}")
    if scene is None and protocol.real_time_factor != 1.0:
        raise ValueError(
            f"real_time_factor: a real robot needs 1, got {protocol.real_time_factor}"
        )
    if scene is None and protocol.judge != "operator":
        raise ValueError(f"judge: a real robot needs an operator, got {protocol.judge}")


def _run(
    missing: list[Job], protocol: Protocol, scene: Scene | None, out: Path
) -> Generator[Record, None, None]:
    if protocol.judge == "simulator":
        missing = sorted(missing, key=lambda job: (job.folder, job.head))
        trials = RosTrials(protocol=protocol, scene=scene, out=out, say=tqdm.write)
        yield from _with_videos(trials, missing, protocol, out)
        return
    with Keys(sys.stdin.fileno()) as keys:
        operator = Operator(keys, tqdm.write)
        trials = RosTrials(protocol=protocol, scene=scene, out=out, operator=operator)
        yield from _with_videos(trials, blind_order(missing), protocol, out)
    names = [candidate.name for candidate in protocol.checkpoints]
    for name, letter in sorted(blind_names(names, protocol.seeds.start).items()):
        print(f"{name} was policy {letter}")


def _with_videos(
    trials: RosTrials, jobs: tuple[Job, ...] | list[Job], protocol: Protocol, out: Path
) -> Generator[Record, None, None]:
    for finished in trials.run(jobs):
        if _wants_video(protocol, finished):
            from nora_bringup.trials.report import TrialVideo  # OpenCV and PyAV only when needed

            folder = out / "videos"
            folder.mkdir(parents=True, exist_ok=True)
            with TrialVideo(folder / f"{finished.record.job.key}.mp4", 1) as video:
                video.add(finished.trial)
        yield finished.record


def _wants_video(protocol: Protocol, finished: Finished) -> bool:
    if protocol.video == "failures":
        return finished.record.result.outcome is not Outcome.SUCCESS
    return protocol.video == "all"
