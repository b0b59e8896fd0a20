"""One bag into an episode's folder: what the processes of `nora-dataset build` do."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from nora_policy import schema
from nora_policy.embodiment import Embodiment
from nora_policy.preprocess import orient, resize
from nora_training.alignment import Int64
from nora_training.bags import Bag, bag_sha256
from nora_training.build import Build, Result
from nora_training.dataset import (
    EPISODES,
    NO_IMAGE,
    Entry,
    Steps,
    create_images,
    save_episode,
)
from nora_training.episodes import Episode, observations, read_episode


def be_one_of_many() -> None:
    """Leave the other cores to the other processes."""
    torch.set_num_threads(1)


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
        steps = Steps(
            episode.stamps_N,
            image_stamps_N,
            episode.actions_NA,
            episode.measured_N6,
            episode.positions_N3,
        )
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
