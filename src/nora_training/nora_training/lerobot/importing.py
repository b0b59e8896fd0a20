"""A LeRobot data set, version 3.0, as one of ours; lerobot itself is not needed.

Legend: N steps, A action dim.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nora_core.embodiment import Embodiment
from nora_core.images import resize
from nora_core.observation import NS_PER_S
from nora_core.types import Outcome
from nora_training.data.alignment import moving
from nora_training.data.dataset import (
    EMBODIMENT,
    EPISODES,
    Entry,
    Settings,
    Steps,
    create_images,
    save_episode,
    write_index,
)
from nora_training.lerobot.exporting import new_folder
from nora_training.lerobot.meta import (
    IMAGE_STAMP,
    IMAGES,
    MEASURED,
    POSITION,
    STAMP,
    Row,
    frame_rate,
)
from nora_training.lerobot.source import LeRobotSource

GRIPPER_SLACK = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """The LeRobot data set `folder` to be made one of ours: `nora-dataset import-lerobot`."""

    folder: Path
    embodiment: Path
    out: Path
    action_names: tuple[str, ...]
    images: tuple[str, ...]
    outcome: Outcome
    image_size: int
    val_fraction: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.val_fraction < 1.0:
            raise ValueError(f"--val-fraction: expected 0 <= x < 1, got {self.val_fraction}")
        if self.image_size < 1:
            raise ValueError(f"--image-size: expected 1 or more, got {self.image_size}")

    def run(self, source: LeRobotSource) -> Iterator[Entry | str]:
        """Convert `source`, that of `open`; yields every entry once it is written, or why not.

        Raises:
            ValueError: the data set is not whole.
            FileExistsError: `out` is there.
        """
        digest = hashlib.sha256(self.embodiment.read_bytes()).hexdigest()
        with new_folder(self.out) as half:
            shutil.copyfile(self.embodiment, half / EMBODIMENT)
            entries = []
            for row in source.rows:
                done = self._convert(half / EPISODES, source, row)
                if isinstance(done, Entry):
                    entries.append(done)
                yield done
            if not entries:
                raise ValueError(f"{self.folder}: usable episodes are missing")
            settings = Settings(self.image_size, "auto", digest)
            write_index(half, settings, entries, self.val_fraction)

    def open(self) -> LeRobotSource:
        """Open the data set; raises `ValueError` if it is incomplete or of another embodiment."""
        embodiment = Embodiment.load(self.embodiment)
        names = self.action_names or embodiment.action.names
        keys = self.images or tuple(IMAGES + camera.name for camera in embodiment.cameras)
        for what, given, wanted in (
            ("action_names", names, embodiment.action.names),
            ("images", keys, [camera.name for camera in embodiment.cameras]),
        ):
            if len(given) != len(wanted):
                raise ValueError(f"{what}: expected one for each of {wanted}, got {list(given)}")
        cameras = dict(zip((c.name for c in embodiment.cameras), keys, strict=True))
        return LeRobotSource(self.folder, names, cameras, frame_rate(embodiment))

    def _convert(self, episodes: Path, source: LeRobotSource, row: Row) -> Entry | str:
        steps = _steps(source, row)
        entry = source.entries.get(row["episode_index"])
        if entry is None:
            if problem := _problem(steps, row):
                return f"episode {row['episode_index']}: {problem}"
            keep = moving(steps.actions_NA)
            entry = self._entry(source, row, steps, int(keep.sum()))
        else:
            keep = np.ones(len(steps.stamps_N), np.bool_)
        folder = episodes / entry.folder
        folder.mkdir(parents=True)
        kept = Steps(*(getattr(steps, name)[keep] for name in Steps.__slots__))
        save_episode(folder, entry, kept)
        for camera, frames in source.images(row).items():
            file = create_images(folder, camera, len(kept.stamps_N), self.image_size)
            wanted = (rgb for rgb, is_kept in zip(frames, keep, strict=True) if is_kept)
            for i, rgb_HW3 in enumerate(wanted):
                file[i] = resize(rgb_HW3, self.image_size, self.image_size)
        return entry

    def _entry(self, source: LeRobotSource, row: Row, steps: Steps, num_steps: int) -> Entry:
        digest = hashlib.sha256(f"{row['episode_index']} {row['tasks'][0]}".encode())
        digest.update(steps.actions_NA.tobytes())
        return Entry(
            sha256=digest.hexdigest(),
            bag=f"{self.folder}#{row['episode_index']}",
            instruction=row["tasks"][0],
            outcome=self.outcome.name,
            source="command",
            num_periods=len(steps.stamps_N),
            num_steps=num_steps,
            num_observed=num_steps,
        )


def _steps(source: LeRobotSource, row: Row) -> Steps:
    """All steps of an episode; without stamps of ours, its time begins at 0."""
    counted = np.arange(row["length"], dtype=np.int64) * NS_PER_S // source.fps
    measured, positions = source.vectors(row, MEASURED), source.vectors(row, POSITION)
    return Steps(
        counted if (stamps := source.numbers(row, STAMP)) is None else stamps,
        counted if (stamps := source.numbers(row, IMAGE_STAMP)) is None else stamps,
        source.actions(row),
        np.full((row["length"], 6), np.nan) if measured is None else measured,
        np.full((row["length"], 3), np.nan) if positions is None else positions,
    )


def _problem(steps: Steps, row: Row) -> str:
    """Why an episode of another program cannot be used; empty if it can."""
    gripper = steps.actions_NA[:, -1]
    if len(row["tasks"]) != 1 or not row["tasks"][0].strip():
        return f"expected one instruction, got {list(row['tasks'])}"
    if not np.isfinite(steps.actions_NA).all():
        return "expected finite actions, got NaN or infinite ones"
    if gripper.min() < -GRIPPER_SLACK or gripper.max() > 1.0 + GRIPPER_SLACK:
        return f"gripper: expected 0 ... 1, got {gripper.min():g} ... {gripper.max():g}"
    if not moving(steps.actions_NA).any():
        return f"motion is missing in {len(gripper)} steps"
    return ""
