"""A data set of ours as a LeRobot data set, version 3.0; lerobot itself is not needed.

Legend: N steps, A action dim.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nora_core.types import Float64
from nora_training.data.dataset import Dataset, Entry, Steps
from nora_training.lerobot.meta import (
    ACTION,
    CHUNK_FILES,
    DATA,
    IMAGE_STAMP,
    IMAGES,
    MEASURED,
    POSITION,
    STAMP,
    VIDEO,
    Row,
    frame_rate,
    write_meta,
)
from nora_training.lerobot.video import VideoWriter

FILE_FRAMES = 20_000  # about 100 MB of video at 224 x 224


@dataclass(frozen=True, slots=True)
class Export:
    """The data set `root` to be written for LeRobot: `nora-dataset export-lerobot`."""

    root: Path
    out: Path
    crf: int

    def __post_init__(self) -> None:
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf: expected 0 ... 51, got {self.crf}")

    def run(self, dataset: Dataset) -> Iterator[Entry]:
        """Write `dataset`, which was read from `root`; yields every entry once it is written.

        Raises:
            ValueError: it cannot be expressed.
            FileExistsError: `out` is there.
        """
        if not dataset.entries:
            raise ValueError(f"{self.root}: episodes are missing")
        if dataset.settings.image_size % 2:
            raise ValueError(
                f"image_size: expected an even one for videos, got {dataset.settings.image_size}"
            )
        tasks = list(dict.fromkeys(entry.instruction for entry in dataset.entries))
        with new_folder(self.out) as half:
            rows: list[Row] = []
            for number, episodes in enumerate(_files(dataset.entries)):
                for row in _write_file(half, dataset, number, episodes, tasks, self.crf):
                    rows.append(row)
                    yield dataset.entries[row["episode_index"]]
            write_meta(half, dataset, rows, tasks, self.crf)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A hidden folder that becomes `path` when all went well, and is deleted otherwise."""
    if path.exists():
        raise FileExistsError(f"{path}: expected a new folder, it exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield half
        half.chmod(0o755)
        half.rename(path)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def _files(entries: Sequence[Entry]) -> list[list[int]]:
    """Group the numbers of the episodes by file."""
    starts = np.cumsum([0, *(entry.num_steps for entry in entries[:-1])])
    files: dict[int, list[int]] = {}
    for episode, start in enumerate(starts.tolist()):
        files.setdefault(start // FILE_FRAMES, []).append(episode)
    return list(files.values())


def _write_file(
    root: Path, dataset: Dataset, number: int, episodes: list[int], tasks: list[str], crf: int
) -> Iterator[Row]:
    """A data file and a video per camera; yields a row of `meta/episodes` for each episode."""
    fps = frame_rate(dataset.embodiment)
    chunk_index, file_index = divmod(number, CHUNK_FILES)
    place = {"chunk_index": chunk_index, "file_index": file_index}
    first = start = sum(entry.num_steps for entry in dataset.entries[: episodes[0]])
    with ExitStack() as stack:
        videos = {}
        for camera in dataset.embodiment.cameras:
            path = _parent(root / VIDEO.format(video_key=IMAGES + camera.name, **place))
            video = VideoWriter(path, dataset.settings.image_size, fps, crf)
            videos[camera.name] = stack.enter_context(closing(video))
        data: pq.ParquetWriter | None = None
        for episode in episodes:
            entry = dataset.entries[episode]
            task = tasks.index(entry.instruction)
            table = _table(dataset.steps(entry), episode, first, task, fps)
            if data is None:
                path = _parent(root / DATA.format(**place))
                data = stack.enter_context(pq.ParquetWriter(path, table.schema))
            data.write_table(table)
            for name, video in videos.items():
                for rgb_HW3 in dataset.images(entry, name):
                    video.write(rgb_HW3)
            yield _row(entry, episode, first, (first - start) / fps, fps, place, list(videos))
            first += entry.num_steps


def _row(
    entry: Entry,
    episode: int,
    first: int,
    from_s: float,
    fps: int,
    place: Mapping[str, int],
    cameras: Sequence[str],
) -> Row:
    """Where an episode lies: from sample `first` on, and from `from_s` on in its videos."""
    times = {"from_timestamp": from_s, "to_timestamp": from_s + entry.num_steps / fps}
    row: Row = {
        "episode_index": episode,
        "tasks": [entry.instruction],
        "length": entry.num_steps,
        "dataset_from_index": first,
        "dataset_to_index": first + entry.num_steps,
    }
    row |= {f"data/{key}": value for key, value in place.items()}
    for name in cameras:
        row |= {f"videos/{IMAGES}{name}/{key}": v for key, v in {**place, **times}.items()}
    return row


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _table(steps: Steps, episode: int, first: int, task: int, fps: int) -> pa.Table:
    """One episode; `timestamp` counts the steps, the times they were made are in `stamp_ns`."""
    num = len(steps.stamps_N)
    frames_N = np.arange(num, dtype=np.int64)
    return pa.table(
        {
            ACTION: _vectors(steps.actions_NA),
            MEASURED: _vectors(steps.measured_N6),
            POSITION: _vectors(steps.positions_N3),
            STAMP: steps.stamps_N,
            IMAGE_STAMP: steps.image_stamps_N,
            "timestamp": (frames_N / fps).astype(np.float32),
            "frame_index": frames_N,
            "episode_index": np.full(num, episode, np.int64),
            "index": first + frames_N,
            "task_index": np.full(num, task, np.int64),
        }
    )


def _vectors(values_NA: Float64) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_NA.ravel()), values_NA.shape[1])
