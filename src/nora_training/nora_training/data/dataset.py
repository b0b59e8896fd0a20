"""The data set on disk: one folder per episode, and an index.

    index.json                       settings, one entry per episode
    embodiment.yaml                  copy of the embodiment's file
    episodes/<hash>/episode.json     the entry
                    steps.npz        an array for each field of `Steps`
                    <camera>.npy     (N, size, size, 3) uint8, rotated, cropped and resized

Legend: N steps, A action dim.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nora_core import files, strict_yaml
from nora_core.embodiment import Camera, Embodiment
from nora_core.normalization import Statistics
from nora_core.types import Float64, Outcome
from nora_training.data.alignment import Int64

FORMAT = 2
REBUILD = "delete the folder of the episode and build the data set again"
INDEX, EMBODIMENT, EPISODES = "index.json", "embodiment.yaml", "episodes"
NO_IMAGE = -1
ROUNDING = 1e-6  # m or rad per step
MOVED_M = 5e-3  # between two steps: more than an arm that comes to rest

Split = Literal["train", "val"]
UInt8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Settings:
    """What all episodes of a data set have in common; `source` as for `read_episode`."""

    image_size: int
    source: str
    embodiment_sha256: str
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class Entry:
    """One episode: where it is from and how long. `sha256` is of the bag, `outcome` a name.

    `num_periods`: before no-op steps were taken out; `num_observed`: steps with an image.
    """

    sha256: str
    bag: str
    instruction: str
    outcome: str
    source: str
    num_periods: int
    num_steps: int
    num_observed: int

    @property
    def folder(self) -> str:
        return self.sha256[:16]


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of an `Episode`; `image_stamps_N`: of the oldest image, ns, or `NO_IMAGE`."""

    stamps_N: Int64
    image_stamps_N: Int64
    actions_NA: Float64
    measured_N6: Float64
    positions_N3: Float64

    @property
    def ends_N(self) -> Int64:
        """The exclusive end of the segment of every step.

        A segment ends where something else moved the tool before the next step (by more than
        `MOVED_M`): what comes then answers to that, and must not be learned as what follows the
        image before. Steps left out because nothing moved end none.
        """
        before_M3 = self.positions_N3[:-1] + self.measured_N6[:-1, :3]
        moved_M = np.linalg.norm(self.positions_N3[1:] - before_M3, axis=1)
        num = len(self.stamps_N)
        ends = np.append(np.flatnonzero(moved_M > MOVED_M) + 1, num)  # NaN: not known to
        found: Int64 = ends[np.searchsorted(ends, np.arange(num), side="right")]
        return found

    @property
    def is_observed_N(self) -> NDArray[np.bool_]:
        observed: NDArray[np.bool_] = self.image_stamps_N != NO_IMAGE
        return observed

    def future(self, start: int) -> Float64:
        """Actions (S, A) from step `start` to the end of its segment."""
        return self.actions_NA[start : self.ends_N[start]]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set on disk. `val_fraction` of the episodes, chosen by hash, are for validation."""

    root: Path
    embodiment: Embodiment
    settings: Settings
    entries: tuple[Entry, ...]
    val_fraction: float

    @classmethod
    def load(cls, root: Path) -> Dataset:
        """Raises `FileNotFoundError`, or `ValueError` for an index that cannot be read."""
        path = root / INDEX
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; `nora-dataset build` makes one")
        try:
            data = json.loads(path.read_text())
            settings = strict_yaml.build(Settings, data["settings"])
            entries = tuple(strict_yaml.build(Entry, entry) for entry in data["episodes"])
            val_fraction = float(data["val_fraction"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
        if settings.format != FORMAT:
            raise ValueError(f"{path}: expected format {FORMAT}, got {settings.format}")
        return cls(root, Embodiment.load(root / EMBODIMENT), settings, entries, val_fraction)

    @property
    def cameras(self) -> tuple[Camera, ...]:
        """The cameras for the `Preprocessor`: the images are already rotated and cropped."""
        cameras = self.embodiment.cameras
        return tuple(dataclasses.replace(camera, rotation_deg=0, crop=None) for camera in cameras)

    def split(self, entry: Entry) -> Split:
        """The split by the bag's hash alone, which does not change with the other episodes."""
        draw = int(entry.sha256[:8], 16) / 2**32
        return "val" if draw < self.val_fraction else "train"

    def select(self, split: Split, outcomes: Sequence[Outcome]) -> tuple[Entry, ...]:
        """The episodes of one split with one of these outcomes."""
        names = {outcome.name for outcome in outcomes}
        return tuple(e for e in self.entries if e.outcome in names and self.split(e) == split)

    def split_warning(self) -> str | None:
        """What is wrong with the number of validation episodes, if anything."""
        num = len(self.entries)
        num_val = sum(self.split(entry) == "val" for entry in self.entries)
        if num_val == 0:
            why = "training runs without validation"
        elif num_val == num:
            why = "there is nothing to train on"
        elif abs(num_val - self.val_fraction * num) > max(1.0, 0.5 * self.val_fraction * num):
            why = "with so few episodes chance decides"
        else:
            return None
        return (
            f"{num_val} of {num} episodes are for validation, --val-fraction is "
            f"{self.val_fraction:g}: {why}. Each episode is drawn by the hash of its bag, so "
            "that it never changes sides."
        )

    def steps(self, entry: Entry) -> Steps:
        """Everything of an episode but its images. Raises `ValueError` for a damaged file."""
        path = self.root / EPISODES / entry.folder / "steps.npz"
        try:
            with np.load(path) as arrays:
                return Steps(*(arrays[field.name] for field in dataclasses.fields(Steps)))
        except (EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: damaged ({error}); {REBUILD}") from error

    def images(self, entry: Entry, camera: str) -> UInt8:
        """Images (N, size, size, 3), read from disk when used; black where there was no image.

        Raises `ValueError` for a damaged file.
        """
        path = self.root / EPISODES / entry.folder / f"{camera}.npy"
        try:
            images: UInt8 = np.load(path, mmap_mode="r")
        except (EOFError, ValueError) as error:
            raise ValueError(f"{path}: damaged ({error}); {REBUILD}") from error
        size = self.settings.image_size
        if images.shape != (entry.num_steps, size, size, 3) or images.dtype != np.uint8:
            raise ValueError(
                f"{path}: expected uint8 of shape {(entry.num_steps, size, size, 3)}, got "
                f"{images.dtype} of shape {images.shape}; {REBUILD}"
            )
        return images

    def statistics(self, entries: Sequence[Entry]) -> Statistics:
        """1 % and 99 % quantiles of all steps of `entries`; the gripper is not scaled.

        What never moves by more than rounding gets no width, or noise would be scaled to +-1.
        """
        if not entries:
            raise ValueError("statistics: episodes are missing")
        actions = np.concatenate([self.steps(entry).actions_NA for entry in entries])
        q01_A, q99_A = np.quantile(actions, [0.01, 0.99], axis=0)
        q99_A = np.where(q99_A - q01_A < ROUNDING, q01_A, q99_A)
        names = np.array(self.embodiment.action.names)
        return Statistics(q01_A, q99_A, names != "gripper")


def statistics_json(key: str, statistics: Statistics) -> str:
    """The text of a checkpoint's `norm_stats.json`."""
    return json.dumps({key: {"action": statistics.to_json()}}, indent=1) + "\n"


def create_images(folder: Path, camera: str, num_steps: int, size: int) -> UInt8:
    """Create the file of a camera in the folder, (num_steps, size, size, 3), black at first.

    Raises:
        OSError: the disk is full.
    """
    shape = (num_steps, size, size, 3)
    path = folder / f"{camera}.npy"
    images: UInt8 = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    with path.open("r+b") as file:  # a page that the disk has no room for would end the process
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return images


def save_episode(folder: Path, entry: Entry, steps: Steps) -> None:
    """Write everything in an episode's folder except the images."""
    np.savez(folder / "steps.npz", **{name: getattr(steps, name) for name in Steps.__slots__})
    (folder / "episode.json").write_text(json.dumps(dataclasses.asdict(entry), indent=1) + "\n")


def write_index(
    root: Path, settings: Settings, entries: Sequence[Entry], val_fraction: float
) -> None:
    """Write the index atomically (temporary file, then rename)."""
    data: dict[str, Any] = {"settings": dataclasses.asdict(settings), "val_fraction": val_fraction}
    data["episodes"] = [dataclasses.asdict(entry) for entry in entries]
    files.write_text(root / INDEX, json.dumps(data, indent=1) + "\n")
