"""`nora bags repair` and `nora bags check`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nora_core.bags.audit import Expectation, expectations
from nora_core.bags.check import check
from nora_core.bags.folders import find_bags
from nora_core.bags.repair import repair
from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file
from nora_core.topics import full_name

Folders = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER...")]


@dataclass(frozen=True, slots=True)
class Repair:
    """Restore index and metadata of bags that were cut off, in place.

    The damaged file stays beside the new one as `*.damaged`.

    Attributes:
        folders: bags, or folders of bags at any depth.
    """

    folders: Folders


@dataclass(frozen=True, slots=True)
class Check:
    """Audit bags; exit code 1 if one is red or cannot be read.

    Attributes:
        folders: bags of the recorder or of `ros2 bag record`, or folders of bags at any depth.
        embodiment: name of a file in config/embodiments, or a path ending in .yaml, whose record
            list must be in the bags; empty: check what is there.
    """

    folders: Folders
    embodiment: str = ""


@dataclass(frozen=True, slots=True)
class Bags:
    """Audit recorded bags, or rescue those that were cut off."""

    command: (
        Annotated[Check, tyro.conf.subcommand(name="check")]
        | Annotated[Repair, tyro.conf.subcommand(name="repair")]
    )


def run_bags(bags: Bags) -> int:
    """Run the command; its exit code."""
    match bags.command:
        case Check() as command:
            return check_bags(command)
        case Repair() as command:
            return repair_bags(command)


def repair_bags(command: Repair) -> int:
    """Exit code 1 if a bag could not be repaired."""
    bags = find_bags(path.resolve() for path in _given(command.folders, "repair"))
    num_failed = num_repaired = 0
    for folder in bags:
        try:
            report = repair(folder)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            num_failed += 1
            continue
        num_repaired += report is not None
        print(report.markdown() if report else f"{folder}: nothing to repair")
    num_whole = len(bags) - num_repaired - num_failed
    _print_summary(len(bags), {"repaired": num_repaired, "whole": num_whole, "failed": num_failed})
    return int(num_failed > 0)


def check_bags(command: Check) -> int:
    """Exit code 1 if a bag is red or cannot be read."""
    expected: dict[str, Expectation] = {}
    if command.embodiment:
        embodiment = Embodiment.load(embodiment_file(command.embodiment))
        expected = expectations(embodiment, full_name)
    bags = find_bags(path.resolve() for path in _given(command.folders, "check"))
    counts = {"green": 0, "red": 0, "unreadable": 0}
    for folder in bags:
        try:
            report = check(folder, expected)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            counts["unreadable"] += 1
            continue
        print(report.markdown(folder.name))
        counts["green" if report.is_green else "red"] += 1
    _print_summary(len(bags), counts)
    return int(counts["green"] < len(bags))


def _given(folders: tuple[Path, ...], command: str) -> tuple[Path, ...]:
    if not folders:
        raise ValueError(f"the path of a bag is missing: nora bags {command} FOLDER...")
    return folders


def _print_summary(num_bags: int, counts: dict[str, int]) -> None:
    """One line, when there is more than one bag."""
    if num_bags > 1:
        said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        print(f"{num_bags} bags: {said}")
