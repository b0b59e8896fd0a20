"""Bags to a data set: every bag is taken whole or refused with one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from nora_core import strict_yaml
from nora_core.embodiment import Embodiment
from nora_training.data.bag_conversion import Result, be_one_of_many, convert
from nora_training.data.bag_reader import find_bags
from nora_training.data.dataset import (
    EMBODIMENT,
    EPISODES,
    INDEX,
    Dataset,
    Entry,
    Settings,
    write_index,
)
from nora_training.data.tool_motion import Choice


@dataclass(frozen=True, slots=True)
class Build:
    """One data set to be made from bags.

    Attributes:
        bags: folders with bags, at any depth; the data set will be of exactly these.
        out: folder of the data set; a bag that is there already is not converted again.
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
            there = strict_yaml.build(Settings, json.loads(index.read_text())["settings"])
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
        embodiment = Embodiment.load(self.embodiment)
        job = partial(convert, self.out, embodiment, self.image_size, self.source)
        if self.workers == 1:
            yield from map(job, bags)
            return
        # Forked, because importing everything anew takes longer than a short bag. The children use
        # no torch; BLAS and OpenCV find out by themselves that their threads are gone.
        context = get_context("fork")
        with ProcessPoolExecutor(self.workers, context, be_one_of_many) as pool:
            for future in as_completed([pool.submit(job, bag) for bag in bags]):
                yield future.result()

    def finish(self, results: list[Result]) -> list[Entry]:
        """Write the index: exactly the episodes of these bags, each once.

        Returns what it had before and has no more.
        """
        before = Dataset.load(self.out).entries
        entries = {r.entry.sha256: r.entry for r in results if r.entry is not None}
        ordered = [entries[sha256] for sha256 in sorted(entries)]
        write_index(self.out, self._settings, ordered, self.val_fraction)
        return [entry for entry in before if entry.sha256 not in entries]

    @property
    def _settings(self) -> Settings:
        digest = hashlib.sha256(self.embodiment.read_bytes()).hexdigest()
        return Settings(self.image_size, self.source, digest)
