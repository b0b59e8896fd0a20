"""The `nora-trials` command: the trials of a protocol in simulation, and their sheet."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import tyro

from nora_core.paths import embodiment_file, protocol_file
from nora_core.trials.log import Log, identity
from nora_core.trials.progress import finish, follow
from nora_core.trials.protocol import Protocol, Scene, jobs, scene_of
from nora_core.trials.record import Record, Setup
from nora_training.evaluation.workers import run_jobs

BAD_INPUT, INTERRUPTED = 2, 130


@dataclass(frozen=True, slots=True)
class Trials:
    """Run what is missing of a protocol's trials and write the sheet.

    Attributes:
        protocol: name of a file in config/trials, or a path to one.
        out: folder for the log, the sheet and the videos; the same one goes on where it stopped.
        workers: processes, one core each; 0: as many as there are cores.
        folders: name and folder of checkpoints that lie elsewhere than the protocol says.
    """

    protocol: tyro.conf.Positional[str]
    out: Path
    workers: int = 0
    folders: dict[str, Path] = field(default_factory=dict)


def main() -> None:
    """Exit code 2: bad input; 130: interrupted, and the same command goes on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        run_trials(tyro.cli(Trials, description=__doc__))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def run_trials(trials: Trials) -> list[Record]:
    """All of them, in the order of the protocol.

    Raises:
        ValueError, OSError, RuntimeError: it cannot go on.
    """
    if trials.workers < 0:
        raise ValueError(f"workers: expected 0 or more, got {trials.workers}")
    path = protocol_file(trials.protocol)
    protocol = Protocol.load(path, trials.folders)
    file = embodiment_file(protocol.embodiment)
    scene = scene_of(protocol.embodiment)
    _require_possible(protocol, scene)
    every = jobs(protocol, scene)
    log = Log(trials.out, identity(protocol, file, has_ros=False))
    missing = [job for job in every if job.key not in log]
    if protocol.bags:
        print("bags: recorded only by `nora trials`; this run writes none", file=sys.stderr)
    missing.sort(key=lambda job: (job.folder, job.head))  # a worker keeps one policy loaded
    workers = trials.workers or os.cpu_count() or 1
    setup = _setup(protocol, file, trials.out)
    records = run_jobs(missing, setup, workers, trials.out / "logs")
    with contextlib.closing(records):
        follow(records, log, every)
    return finish(trials.out, log, every, path.stem)


def _require_possible(protocol: Protocol, scene: Scene | None) -> None:
    if scene is None:
        raise ValueError(
            f"embodiment: {protocol.embodiment} is not simulated; use `nora trials`, over ROS"
        )
    if protocol.judge == "operator":
        raise ValueError("judge: an operator can watch over ROS only: use `nora trials`")


def _setup(protocol: Protocol, embodiment: Path, out: Path) -> Setup:
    return Setup(
        embodiment=str(embodiment),
        image_size=protocol.image_size,
        delay_s=protocol.delay_s,
        seconds=protocol.seconds,
        video=protocol.video,
        video_dir=str(out / "videos"),
    )


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
