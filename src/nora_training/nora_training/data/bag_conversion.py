"""One bag into an episode's folder: what the processes of `nora-dataset build` do."""

from __future__ import annotations

import ctypes
import json
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from nora_core import strict_yaml
from nora_core.embodiment import Embodiment
from nora_core.images import orient, resize
from nora_core.types import Rejection
from nora_training.data.alignment import Int64
from nora_training.data.bag_reader import Bag, bag_sha256, is_red
from nora_training.data.dataset import (
    EPISODES,
    NO_IMAGE,
    Entry,
    Steps,
    create_images,
    save_episode,
)
from nora_training.data.episodes import Episode, observations, read_episode
from nora_training.data.tool_motion import Choice

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one bag.

    Attributes:
        entry: its episode; None if the bag was skipped.
        reason: why the bag was skipped.
        is_new: whether it was converted just now.
        is_red: whether the audit of the recorder found faults; such an episode is converted.
    """

    bag: Path
    entry: Entry | None
    reason: str = ""
    is_new: bool = False
    is_red: bool = False


def be_one_of_many() -> None:
    """Set up a worker process: one thread, and memory of images kept for the next image.

    glibc returns large blocks to the kernel at every release, which costs a third more time.
    """
    threadpool_limits(1)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)


def convert(
    bag: Path, *, out: Path, embodiment: Embodiment, image_size: int, source: Choice
) -> Result:
    """Convert one bag into its folder in `out`, unless that exists; arguments as in `Build`."""
    try:
        sha256, has_faults = bag_sha256(bag), is_red(bag)
        done = out / EPISODES / sha256[:16] / "episode.json"
        if done.is_file():
            entry = strict_yaml.build(Entry, json.loads(done.read_text()))
            return Result(bag=bag, entry=entry, is_red=has_faults)
        with Bag.open(bag) as opened:
            episode = read_episode(opened, embodiment, source)
            entry = _write(
                opened,
                episode,
                embodiment=embodiment,
                size=image_size,
                folder=out / EPISODES,
                sha256=sha256,
            )
    except ValueError as error:
        return Result(bag=bag, entry=None, reason=str(error))
    return Result(bag=bag, entry=entry, is_new=True, is_red=has_faults)


def _write(
    bag: Bag, episode: Episode, *, embodiment: Embodiment, size: int, folder: Path, sha256: str
) -> Entry:
    """Write an episode into a hidden folder first, which is renamed when it is complete."""
    half = Path(tempfile.mkdtemp(prefix=".", dir=folder))
    try:
        image_stamps_N = _write_images(half, bag, episode, embodiment=embodiment, size=size)
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
    folder: Path, bag: Bag, episode: Episode, *, embodiment: Embodiment, size: int
) -> Int64:
    """Write one file per camera; returns the stamps (N,) of the oldest image of each step.

    Raises:
        ValueError: no step has an observation.
    """
    cameras, num_steps = embodiment.cameras, len(episode.stamps_N)
    files = [create_images(folder, camera.name, num_steps, size) for camera in cameras]
    stamps_N = np.full(num_steps, NO_IMAGE)
    problem = ""
    for i, seen in enumerate(observations(bag, episode, embodiment)):
        if isinstance(seen, Rejection):
            problem = seen.detail
            continue
        stamps_N[i] = seen.stamp_ns
        for file, camera, rgb_HW3 in zip(files, cameras, seen.images, strict=True):
            file[i] = resize(orient(rgb_HW3, camera), size, size)
    if (stamps_N == NO_IMAGE).all():
        raise ValueError(f"no step has an image: {problem}")
    return stamps_N
