"""`nora trials`: the trials of a protocol through the running nodes, and their sheet."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

from nora_bringup.trials.operator import Keys, Operator
from nora_bringup.trials.ros import RosTrials
from nora_core.paths import embodiment_file, protocol_file
from nora_core.trials.blind import blind_names, blind_order
from nora_core.trials.log import Log, identity
from nora_core.trials.progress import finish, follow
from nora_core.trials.protocol import Protocol, Scene, jobs, scene_of
from nora_core.trials.record import Job, Record


@dataclass(frozen=True, slots=True)
class Trials:
    """Run what is missing of a protocol's trials over ROS and write the sheet.

    Attributes:
        protocol: name of a file in config/trials, or a path to one.
        out: folder for the log, the sheet, videos and bags; the same one goes on where it stopped.
        folders: name and folder of checkpoints that lie elsewhere than the protocol says.
    """

    protocol: tyro.conf.Positional[str]
    out: Path
    folders: dict[str, Path] = field(default_factory=dict)


def run_trials(trials: Trials) -> list[Record]:
    """All of them, in the order of the protocol.

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
        raise ValueError(f"conditions: expected only normal over ROS, got {sorted(conditions)}")
    if scene is None and protocol.real_time_factor != 1.0:
        raise ValueError(
            f"real_time_factor: expected 1 at a real robot, got {protocol.real_time_factor}"
        )
    if scene is None and protocol.judge != "operator":
        raise ValueError(f"judge: expected operator at a real robot, got {protocol.judge}")


def _run(
    missing: list[Job], protocol: Protocol, scene: Scene | None, out: Path
) -> Generator[Record, None, None]:
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
