"""The `nora-trials` command: the trials of a protocol, and their sheet."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import tyro
from tqdm import tqdm

from nora_bringup.graph import config_dir, embodiment_file
from nora_bringup.trials.blind import blind_names, blind_order
from nora_bringup.trials.log import Log, identity
from nora_bringup.trials.operator import Keys, Operator
from nora_bringup.trials.protocol import Protocol, Scene, jobs, scene_of
from nora_bringup.trials.record import Job, Record, Setup
from nora_bringup.trials.sheet import write_sheet
from nora_bringup.trials.workers import run_jobs

BAD_INPUT, INTERRUPTED = 2, 130


@dataclass(frozen=True, slots=True)
class Trials:
    """Run what is missing of a protocol's trials and write the sheet.

    Attributes:
        protocol: name of a file in config/trials, or a path to one.
        out: folder for the log, the sheet and the videos; the same one goes on where it stopped.
        ros: through the running graph; without: in simulation, in parallel.
        workers: without ROS: processes, one core each; 0: as many as there are cores.
        folders: name and folder of checkpoints that lie elsewhere than the protocol says.
    """

    protocol: tyro.conf.Positional[str]
    out: Path
    ros: bool = False
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
    _require_possible(protocol, trials.ros, scene)
    every = jobs(protocol, scene)
    log = Log(trials.out, identity(protocol, file, trials.ros))
    missing = [job for job in every if job.key not in log]
    if trials.ros:
        records = _with_ros(missing, protocol, scene, trials.out)
    else:
        if protocol.bags:
            print("bags: recorded only with --ros; this run writes none", file=sys.stderr)
        missing.sort(key=lambda job: (job.folder, job.head))  # a worker keeps one policy loaded
        workers = trials.workers or os.cpu_count() or 1
        setup = _setup(protocol, file, trials.out)
        records = run_jobs(missing, setup, workers, trials.out / "logs")
    with contextlib.closing(records):
        follow(records, log, every)
    return finish(trials.out, log, every, path.stem)


def _require_possible(protocol: Protocol, has_ros: bool, scene: Scene | None) -> None:
    conditions = {condition for c in protocol.checkpoints for condition in c.conditions}
    if has_ros and conditions != {"normal"}:
        raise ValueError(f"conditions: expected only normal with ROS, got {sorted(conditions)}")
    if not has_ros and scene is None:
        raise ValueError(f"embodiment: {protocol.embodiment} is not simulated; it needs --ros")
    if not has_ros and protocol.judge == "operator":
        raise ValueError("judge: an operator can watch with --ros only")
    if scene is None and protocol.real_time_factor != 1.0:
        raise ValueError(
            f"real_time_factor: expected 1 at a real robot, got {protocol.real_time_factor}"
        )
    if scene is None and protocol.judge != "operator":
        raise ValueError(f"judge: expected operator at a real robot, got {protocol.judge}")


def _setup(protocol: Protocol, embodiment: Path, out: Path) -> Setup:
    return Setup(
        str(embodiment),
        protocol.image_size,
        protocol.delay_s,
        protocol.seconds,
        protocol.video,
        str(out / "videos"),
    )


def _with_ros(
    missing: list[Job], protocol: Protocol, scene: Scene | None, out: Path
) -> Generator[Record, None, None]:
    from nora_bringup.trials.ros import RosTrials  # everything else runs where there is no ROS

    if protocol.judge == "simulator":
        missing = sorted(missing, key=lambda job: (job.folder, job.head))
        yield from RosTrials(protocol, scene, out, None).run(missing)
        return
    with Keys(sys.stdin.fileno()) as keys:
        operator = Operator(keys, tqdm.write)
        yield from RosTrials(protocol, scene, out, operator).run(blind_order(missing))
    names = [contender.name for contender in protocol.checkpoints]
    for name, letter in sorted(blind_names(names, protocol.seeds.start).items()):
        print(f"{name} was policy {letter}")


def protocol_file(name: str) -> Path:
    """Path of a protocol given by name or by path (anything that ends in .yaml)."""
    return Path(name) if name.endswith(".yaml") else config_dir() / "trials" / f"{name}.yaml"


def follow(records: Iterator[Record], log: Log, every: tuple[Job, ...]) -> None:
    """Keep each record as it comes, under a progress bar."""
    outcomes = Counter(record.result.outcome for record in log.records)
    done = len(log.records)
    with tqdm(total=len(every), initial=done, unit="trial", disable=None) as progress:
        for record in records:
            log.append(record)
            outcomes[record.result.outcome] += 1
            progress.set_postfix(dict(outcomes), refresh=False)
            progress.update()


def finish(out: Path, log: Log, every: tuple[Job, ...], title: str) -> list[Record]:
    """Write the sheet, in the order of the protocol, and show it."""
    by_key = {record.job.key: record for record in log.records}
    records = [by_key[job.key] for job in every]
    print(write_sheet(out, records, title))
    print(f"\nsheet {out}/trials.md, trials.csv, trials.png; videos {out}/videos")
    return records


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
