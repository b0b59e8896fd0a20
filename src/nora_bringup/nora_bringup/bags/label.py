"""What an episode is: its number, its folder, its label (`label.yaml` beside the bag)."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import yaml

from nora_policy.schema import build, load_yaml

LABEL = "label.yaml"
NUMBERED = re.compile(r"episode_(\d+)")


class Outcome(IntEnum):
    """Equal to the constants of `nora_msgs/msg/TaskOutcome`."""

    UNKNOWN = 0
    SUCCESS = 1
    PARTIAL = 2
    FAILURE = 3


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an episode comes from: embodiment file, checkpoint (empty: none), code."""

    embodiment: str
    embodiment_sha256: str
    checkpoint: str
    git_revision: str


@dataclass(frozen=True, slots=True)
class Label:
    """One episode in words and numbers.

    Attributes:
        outcome: name of an `Outcome`, in lower case.
        start_ns: recorder clock, as the stamps in the bag; likewise `end_ns`, 0 while it is open.
        ended: who or what ended it; empty while it is open, or when it was cut off.
        is_green: verdict of the audit; None before it.
    """

    episode: int
    instruction: str
    outcome: str
    distractor_grasps: int
    notes: str
    start_ns: int
    end_ns: int
    ended: str
    is_green: bool | None
    provenance: Provenance

    def __post_init__(self) -> None:
        names = [outcome.name.lower() for outcome in Outcome]
        if self.outcome not in names:
            raise ValueError(f"outcome: expected one of {names}, got {self.outcome!r}")

    @classmethod
    def load(cls, folder: Path) -> Label:
        """Read `folder/label.yaml`; raises `ValueError` or `FileNotFoundError`."""
        path = folder / LABEL
        try:
            return build(cls, load_yaml(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write `folder/label.yaml`, whole or not at all."""
        text = yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)
        temporary = folder / f".{LABEL}"
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / LABEL)

    def custom_data(self) -> dict[str, str]:
        """The label as a bag's metadata hold it: text by key."""
        values = dataclasses.asdict(self)
        values |= values.pop("provenance")
        return {key: "" if value is None else str(value) for key, value in values.items()}


def next_episode(folder: Path) -> int:
    """One more than the highest number of what lies in `folder`, whatever state it is in."""
    if not folder.is_dir():
        return 0
    found = (NUMBERED.match(path.name) for path in folder.iterdir())
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def episode_folder(folder: Path, episode: int) -> Path:
    return folder / f"episode_{episode:06d}"
