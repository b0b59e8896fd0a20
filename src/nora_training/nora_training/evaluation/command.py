"""The `nora-trials` command: run the trials of a protocol in simulation and write their sheet."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NoReturn

import tyro

from nora_core.command import run_command
from nora_core.paths import embodiment_file, protocol_file
from nora_core.trials.log import Log, identity
from nora_core.trials.progress import finish, follow
from nora_core.trials.protocol import Protocol, Scene, jobs, scene_of
from nora_core.trials.record import Record, Setup
from nora_training.evaluation import card
from nora_training.evaluation.rollout import open_runner
from nora_training.evaluation.workers import OpenRunner, run_jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """Run the trials of a protocol in simulation and write their sheet.

    A run that was stopped continues with the same command.

    Attributes:
        protocol: name of a file in config/trials, or a path to one.
        out: folder for the log, the sheet and the videos.
        workers: processes, one core each; 0: as many as there are cores.
        folders: names of checkpoints in the protocol, each followed by the folder to use for it
            instead of the one in the protocol.
        card: write the success rates into the card.json of each checkpoint.
    """

    protocol: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="PROTOCOL")]]
    out: Path
    workers: int = 0
    folders: dict[str, Path] = field(default_factory=dict)
    card: bool = False


def main(runner: OpenRunner = open_runner) -> NoReturn:
    """Exit codes as `run_command`."""
    run_command(
        lambda: _main(runner), when_interrupted="stopped; the same command goes on from here"
    )


def _main(runner: OpenRunner) -> None:
    run_trials(tyro.cli(Trials, prog="nora-trials"), runner)


def run_trials(trials: Trials, runner: OpenRunner = open_runner) -> list[Record]:
    """Run every missing trial; the records of all, in the order of the protocol.

    Raises:
        ValueError, OSError, RuntimeError: it cannot go on.
    """
    path = protocol_file(trials.protocol)
    protocol = Protocol.load(path, trials.folders)
    records = run_protocol(
        protocol, title=path.stem, out=trials.out, workers=trials.workers, runner=runner
    )
    if trials.card:
        command = shlex.join(["nora-trials", trials.protocol])
        for folder in {entry.folder for entry in protocol.checkpoints}:
            card.add_trials(Path(folder), records, protocol=path.stem, command=command)
    return records


def run_protocol(
    protocol: Protocol,
    *,
    title: str,
    out: Path,
    workers: int = 0,
    runner: OpenRunner = open_runner,
) -> list[Record]:
    """As `run_trials`, for a protocol that has been read; `title` is that of the sheet."""
    if workers < 0:
        raise ValueError(f"workers: must be 0 or more, got {workers}")
    file = embodiment_file(protocol.embodiment)
    scene = scene_of(protocol.embodiment)
    _require_possible(protocol, scene)
    every = jobs(protocol, scene)
    log = Log(out, identity(protocol, file, has_ros=False))
    missing = [job for job in every if job.key not in log]
    if protocol.bags:
        print("bags: recorded only by `nora trials`; this run writes none", file=sys.stderr)
    missing.sort(key=lambda job: (job.folder, job.head))  # a worker keeps one policy loaded
    records = run_jobs(
        missing,
        _setup(protocol, file, out),
        num_workers=workers or os.cpu_count() or 1,
        log_file=out / "workers.log",
        runner=runner,
    )
    with contextlib.closing(records):
        follow(records, log, every)
    return finish(out, log, every, title)


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


if __name__ == "__main__":
    main()
