"""Bags to a data set: every bag is taken whole or refused with one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from nora_policy import schema
from nora_policy.embodiment import Embodiment
from nora_policy.preprocess import orient, resize
from nora_training.alignment import Int64
from nora_training.bags import Bag, bag_sha256, find_bags
from nora_training.dataset import (
    EMBODIMENT,
    EPISODES,
    INDEX,
    NO_IMAGE,
    Entry,
    Settings,
    Steps,
    create_images,
    save_episode,
    write_index,
)
from nora_training.episodes import Episode, observations, read_episode
from nora_training.motion import Choice


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one bag: an entry, or the reason why not. `is_new`: converted just now."""

    bag: Path
    entry: Entry | None
    reason: str = ""
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Build:
    """One data set to be made from bags.

    Attributes:
        bags: folders with bags, at any depth.
        out: folder of the data set; what is there already is kept.
        embodiment: YAML file of the robot.
        image_size: side of the square images, px, as the policy wants them.
        val_fraction: share of the episodes that are never trained on.
        source: of the actions; auto: commands if there are any, else what was measured.
        workers: processes.
    """

    bags: tuple[Path, ...]
    out: Path
    embodiment: Path
    image_size: int = 224
    val_fraction: float = 0.1
    source: Choice = "auto"
    workers: int = os.cpu_count() or 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.val_fraction < 1.0:
            raise ValueError(f"val_fraction: expected 0 <= x < 1, got {self.val_fraction}")
        for name in ("image_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")

    def prepare(self) -> list[Path]:
        """Set `out` up or check that it is of the same kind; the bags to convert.

        Raises:
            ValueError: `out` holds a data set made with other settings.
            FileNotFoundError: a folder or the embodiment is not there.
        """
        Embodiment.load(self.embodiment)
        bags = find_bags(self.bags)
        (self.out / EPISODES).mkdir(parents=True, exist_ok=True)
        index = self.out / INDEX
        if index.is_file():
            there = schema.build(Settings, json.loads(index.read_text())["settings"])
            if there != self._settings:
                raise ValueError(f"{self.out}: expected {self._settings}, got {there}")
        else:
            shutil.copyfile(self.embodiment, self.out / EMBODIMENT)
            write_index(self.out, self._settings, [], self.val_fraction)
        for half in (self.out / EPISODES).glob(".*"):
            shutil.rmtree(half)
        return bags

    def run(self, bags: list[Path]) -> Iterator[Result]:
        """Convert, one result per bag as they come."""
        work = partial(convert, self)
        if self.workers == 1:
            yield from map(work, bags)
            return
        # Fresh processes: threads of torch do not survive a fork.
        context = get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, torch.set_num_threads, (1,)) as pool:
            for future in as_completed([pool.submit(work, bag) for bag in bags]):
                yield future.result()

    def finish(self, results: list[Result]) -> None:
        """Write the index: exactly the episodes of these bags, each once."""
        entries = {r.entry.sha256: r.entry for r in results if r.entry is not None}
        ordered = [entries[sha256] for sha256 in sorted(entries)]
        write_index(self.out, self._settings, ordered, self.val_fraction)

    @property
    def _settings(self) -> Settings:
        digest = hashlib.sha256(self.embodiment.read_bytes()).hexdigest()
        return Settings(self.image_size, self.source, digest)


def convert(build: Build, bag: Path) -> Result:
    """One bag into its folder, unless that is there."""
    try:
        sha256 = bag_sha256(bag)
        done = build.out / EPISODES / sha256[:16] / "episode.json"
        if done.is_file():
            return Result(bag, schema.build(Entry, json.loads(done.read_text())))
        embodiment = Embodiment.load(build.embodiment)
        with Bag.open(bag) as opened:
            entry = _write(opened, embodiment, build, sha256)
    except ValueError as error:
        return Result(bag, None, str(error))
    return Result(bag, entry, is_new=True)


def _write(bag: Bag, embodiment: Embodiment, build: Build, sha256: str) -> Entry:
    """Into a hidden folder first, which gets its name when it is complete."""
    episode = read_episode(bag, embodiment, build.source)
    half = Path(tempfile.mkdtemp(prefix=".", dir=build.out / EPISODES))
    try:
        image_stamps_N = _write_images(half, bag, episode, embodiment, build.image_size)
        steps = Steps(episode.stamps_N, image_stamps_N, episode.actions_NA, episode.measured_N6)
        entry = Entry(
            sha256=sha256,
            bag=str(bag.folder),
            instruction=episode.instruction,
            outcome=episode.outcome.name,
            source=episode.source,
            num_periods=episode.num_periods,
            num_steps=len(episode.stamps_N),
            num_observed=int(steps.is_observed_N.sum()),
        )
        save_episode(half, entry, steps)
        if not half.with_name(entry.folder).exists():  # of a copy of the same bag
            half.rename(half.with_name(entry.folder))
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return entry


def _write_images(
    folder: Path, bag: Bag, episode: Episode, embodiment: Embodiment, size: int
) -> Int64:
    """One file per camera; the stamps (N,) of the oldest image of each step.

    Raises:
        ValueError: no step has an observation.
    """
    cameras, num_steps = embodiment.cameras, len(episode.stamps_N)
    files = [create_images(folder, camera.name, num_steps, size) for camera in cameras]
    stamps_N = np.full(num_steps, NO_IMAGE)
    problem = ""
    for i, seen in enumerate(observations(bag, episode, embodiment)):
        if isinstance(seen, str):
            problem = seen
            continue
        stamps_N[i] = seen.stamp_ns
        for file, camera, rgb_HW3 in zip(files, cameras, seen.images, strict=True):
            # A copy, because torch warns of arrays that it may not write to.
            file[i] = resize(orient(rgb_HW3.copy(), camera), size, size)
    if (stamps_N == NO_IMAGE).all():
        raise ValueError(f"expected images at the steps, got none: {problem}")
    return stamps_N
