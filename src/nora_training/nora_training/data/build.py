"""Convert bags to a data set: every bag is used whole or skipped with one line."""

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
from typing import Annotated

import tyro

from nora_core import strict_yaml
from nora_core.bags.folders import find_bags
from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file
from nora_training.data.bag_conversion import Result, be_one_of_many, convert
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Convert bags to a data set; bags that were converted before are not converted again.

    Exit code 1 if bags were skipped.

    Attributes:
        bags: folders with bags, at any depth; the data set will hold exactly these.
        out: folder of the data set.
        embodiment: name or YAML file of the robot.
        image_size: side of the square images in pixels, as the policy takes them.
        val_fraction: share of the episodes that are used for validation only; drawn for each
            episode by the hash of its bag.
        source: where actions are taken from; auto: commands if there are any, else measurements.
        workers: number of processes.
    """

    bags: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="BAGS...")]
    out: Path
    embodiment: Annotated[str, tyro.conf.arg(metavar="NAME|FILE")]
    image_size: int = 224
    val_fraction: float = 0.1
    source: Choice = "auto"
    workers: int = os.cpu_count() or 1

    def __post_init__(self) -> None:
        if not 0.0 <= self.val_fraction < 1.0:
            raise ValueError(f"--val-fraction: expected 0 <= x < 1, got {self.val_fraction}")
        if not self.bags:
            raise ValueError("BAGS: the folders with bags are missing")
        if self.image_size < 1:
            raise ValueError(f"--image-size: expected 1 or more, got {self.image_size}")
        if self.workers < 1:
            raise ValueError(f"--workers: expected 1 or more, got {self.workers}")

    def prepare(self) -> list[Path]:
        """Create `out`, or check that it was made with the same settings; returns the bags.

        Raises:
            ValueError: `out` holds a data set made with other settings.
            FileNotFoundError: a folder or the embodiment does not exist.
        """
        Embodiment.load(self._embodiment_file)
        bags = find_bags(self.bags)
        (self.out / EPISODES).mkdir(parents=True, exist_ok=True)
        index = self.out / INDEX
        if index.is_file():
            there = strict_yaml.build(Settings, json.loads(index.read_text())["settings"])
            if there != self._settings:
                raise ValueError(f"{self.out}: expected {self._settings}, got {there}")
        else:
            shutil.copyfile(self._embodiment_file, self.out / EMBODIMENT)
            write_index(self.out, self._settings, [], self.val_fraction)
        for half in (self.out / EPISODES).glob(".*"):
            shutil.rmtree(half)
        return bags

    def run(self, bags: list[Path]) -> Iterator[Result]:
        """Convert the bags; yields one result per bag, in the order in which they are done."""
        job = partial(
            convert,
            out=self.out,
            embodiment=Embodiment.load(self._embodiment_file),
            image_size=self.image_size,
            source=self.source,
        )
        if self.workers == 1:
            yield from map(job, bags)
            return
        # Forked, because importing all modules again takes longer than a short bag. The children
        # use no torch; BLAS and OpenCV notice by themselves that their threads are gone.
        context = get_context("fork")
        with ProcessPoolExecutor(self.workers, context, be_one_of_many) as pool:
            for future in as_completed([pool.submit(job, bag) for bag in bags]):
                yield future.result()

    def finish(self, results: list[Result]) -> list[Entry]:
        """Write the index with exactly the episodes of these bags, each once.

        Returns the entries that the index held before and no longer holds.
        """
        before = Dataset.load(self.out).entries
        entries = {r.entry.sha256: r.entry for r in results if r.entry is not None}
        ordered = [entries[sha256] for sha256 in sorted(entries)]
        write_index(self.out, self._settings, ordered, self.val_fraction)
        return [entry for entry in before if entry.sha256 not in entries]

    @property
    def _embodiment_file(self) -> Path:
        return embodiment_file(self.embodiment)

    @property
    def _settings(self) -> Settings:
        digest = hashlib.sha256(self._embodiment_file.read_bytes()).hexdigest()
        return Settings(self.image_size, self.source, digest)
