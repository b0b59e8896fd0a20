"""`nora bags repair` and `nora bags check`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tyro

from nora_core.bags.audit import Expectation, expectations
from nora_core.bags.check import check
from nora_core.bags.repair import COMPRESSED, STORAGES, repair
from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file
from nora_core.topics import full_name


@dataclass(frozen=True, slots=True)
class Repair:
    """Give bags that were cut off their index and metadata back, in place.

    The damaged file stays beside the new one as `*.damaged`.

    Attributes:
        folders: bags, or folders of bags at any depth.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]


@dataclass(frozen=True, slots=True)
class Check:
    """Audit bags; exit code 1 if one is red or cannot be read.

    Attributes:
        folders: bags of the recorder, or of plain `ros2 bag record`, or folders of them.
        embodiment: whose record list and limits hold; empty: whatever is in the bag.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    embodiment: str = ""


def repair_bags(command: Repair) -> int:
    """Exit code 1 if a bag could not be repaired."""
    num_failed = 0
    for folder in find_bags(command.folders):
        try:
            report = repair(folder)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            num_failed += 1
            continue
        print(report.markdown() if report else f"{folder}: nothing to repair")
    return int(num_failed > 0)


def check_bags(command: Check) -> int:
    """Exit code 1 if a bag is red or cannot be read."""
    expected: dict[str, Expectation] = {}
    if command.embodiment:
        embodiment = Embodiment.load(embodiment_file(command.embodiment))
        expected = expectations(embodiment, full_name)
    num_bad = 0
    for folder in find_bags(command.folders):
        try:
            report = check(folder, expected)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            num_bad += 1
            continue
        print(report.markdown(folder.name))
        num_bad += not report.is_green
    return int(num_bad > 0)


def find_bags(folders: Iterable[Path]) -> list[Path]:
    """Every folder below that holds a bag or what is left of one; itself where there is none."""
    found: list[Path] = []
    for folder in folders:
        bags = {
            path.parent
            for path in folder.resolve().rglob("*")
            if path.name.endswith((*STORAGES, *COMPRESSED))
            and not path.parent.name.startswith(".")
        }
        found += sorted(bags) or [folder.resolve()]
    return found
