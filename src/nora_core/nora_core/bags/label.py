"""The number, the folder and the label (`label.yaml` beside the bag) of an episode."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nora_core.strict_yaml import build, load_yaml
from nora_core.types import Outcome

LABEL = "label.yaml"
OURS = {"episode", "start_ns"}  # keys of our recorder, which nobody writes by hand
NUMBERED = re.compile(r"episode_(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an episode comes from: embodiment file, checkpoint (empty: none), code."""

    embodiment: str
    embodiment_sha256: str
    checkpoint: str
    git_revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
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
        names = [outcome.text for outcome in Outcome]
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

    @classmethod
    def find(cls, folder: Path) -> Label | None:
        """The label of our recorder in `folder`; None without one, or if it is written by hand.

        Raises:
            ValueError: ours is broken, or `label.yaml` is no mapping.
        """
        return cls.load(folder) if OURS & entries(folder).keys() else None

    def save(self, folder: Path) -> None:
        """Write `folder/label.yaml` atomically (temporary file, then rename)."""
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


def entries(folder: Path) -> dict[str, str]:
    """What `folder/label.yaml` says, whoever wrote it, as text; empty without such a file.

    Raises:
        ValueError: it is no mapping.
    """
    path = folder / LABEL
    if not path.is_file():
        return {}
    try:
        data = load_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(data).__name__}")
    return texts(data)


def texts(values: Mapping[Any, object]) -> dict[str, str]:
    """Convert the values to text, as custom data require; omit entries without a value."""
    return {str(key): str(value) for key, value in values.items() if value is not None}


def next_episode(folder: Path) -> int:
    """One more than the highest number of what lies in `folder`, whatever state it is in."""
    if not folder.is_dir():
        return 0
    found = (NUMBERED.match(path.name) for path in folder.iterdir())
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def episode_folder(folder: Path, episode: int) -> Path:
    return folder / f"episode_{episode:06d}"
