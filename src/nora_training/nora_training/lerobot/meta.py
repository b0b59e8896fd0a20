"""How a LeRobot data set is laid out, version 3.0, and its `meta` folder.

    meta/info.json                           features, paths, totals
         stats.json, tasks.parquet           of numbers, of instructions
         nora.json                           our entries, in the order of the episodes
         episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet          many episodes per file
    videos/<feature>/chunk-000/file-000.mp4  one frame per step, many episodes per file

Legend: N steps, K values, E episodes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nora_policy.embodiment import Embodiment
from nora_policy.types import Float64
from nora_training.dataset import Dataset, UInt8
from nora_training.lerobot.video import video_info

VERSION = "v3.0"
INFO, STATS, NORA = "meta/info.json", "meta/stats.json", "meta/nora.json"
TASKS, EPISODES = "meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
ACTION, MEASURED, IMAGES = "action", "observation.measured_step", "observation.images."
POSITION = "observation.tool_position"
STAMP, IMAGE_STAMP = "stamp_ns", "image_stamp_ns"
COUNTS = ("frame_index", "episode_index", "index", "task_index")
CHUNK_FILES = 1000
SAMPLED = 10  # every tenth image counts for the statistics

Row = dict[str, Any]


def frame_rate(embodiment: Embodiment) -> int:
    """Steps per second. Raises `ValueError` if that is no whole number, as LeRobot wants it."""
    rate = 1.0 / embodiment.action.step_period_s
    if abs(rate - round(rate)) > 1e-6:
        raise ValueError(f"step_period_s: expected 1 / a whole number, got 1 / {rate:g}")
    return round(rate)


def write_meta(root: Path, dataset: Dataset, rows: list[Row], tasks: list[str], crf: int) -> None:
    """All of it, `info.json` last; `rows` are those of `meta/episodes`."""
    ends = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    (root / EPISODES).parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row | ends for row in rows]), root / EPISODES)
    table = pa.table({"task_index": np.arange(len(tasks)), "task": tasks})
    index = {"index_columns": ["task"], "column_indexes": [], "columns": []}  # for pandas
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(index)}), root / TASKS)
    _write_json(root / NORA, {"episodes": [dataclasses.asdict(e) for e in dataset.entries]})
    _write_json(root / STATS, _statistics(dataset))
    _write_json(root / INFO, _info(dataset, rows, len(tasks), crf))


def _write_json(path: Path, data: object) -> None:
    text = json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _info(dataset: Dataset, rows: list[Row], num_tasks: int, crf: int) -> Row:
    fps = frame_rate(dataset.embodiment)
    return {
        "codebase_version": VERSION,
        "robot_type": dataset.embodiment.name,
        "total_episodes": len(rows),
        "total_frames": rows[-1]["dataset_to_index"],
        "total_tasks": num_tasks,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {"train": f"0:{len(rows)}"},
        "data_path": DATA,
        "video_path": VIDEO,
        "features": _features(dataset, video_info(dataset.settings.image_size, fps, crf)),
    }


def _features(dataset: Dataset, video: Row) -> dict[str, Row]:
    names, size = list(dataset.embodiment.action.names), dataset.settings.image_size
    vectors = {ACTION: names, MEASURED: names[:6], POSITION: names[:3]}
    numbers = {"timestamp": "float32"} | dict.fromkeys((STAMP, IMAGE_STAMP, *COUNTS), "int64")
    picture = {
        "dtype": "video",
        "shape": [size, size, 3],
        "names": ["height", "width", "channels"],
        "info": video,
    }
    return {
        **{k: {"dtype": "float64", "shape": [len(n)], "names": n} for k, n in vectors.items()},
        **{k: {"dtype": dtype, "shape": [1], "names": None} for k, dtype in numbers.items()},
        **{IMAGES + camera.name: picture for camera in dataset.embodiment.cameras},
    }


def _statistics(dataset: Dataset) -> dict[str, Row]:
    """Of actions and of images (0 ... 1, per channel); what was never measured has none."""
    steps = [dataset.steps(entry) for entry in dataset.entries]
    found = {ACTION: _summary(step.actions_NA for step in steps)}
    for feature, name in ((MEASURED, "measured_N6"), (POSITION, "positions_N3")):
        rows = [getattr(step, name) for step in steps]
        known = [row_ND[np.isfinite(row_ND).all(axis=1)] for row_ND in rows]
        if any(len(row_ND) for row_ND in known):
            found[feature] = _summary(known)
    for camera in dataset.embodiment.cameras:
        images = (dataset.images(entry, camera.name)[::SAMPLED] for entry in dataset.entries)
        summary = _summary(_pixels(image_NHW3) for image_NHW3 in images)
        num = summary.pop("count")
        shaped = {name: [[[value]] for value in values] for name, values in summary.items()}
        found[IMAGES + camera.name] = {**shaped, "count": num}
    return found


def _pixels(images_NHW3: UInt8) -> Float64:
    scaled_K3: Float64 = images_NHW3.reshape(-1, 3) / 255.0
    return scaled_K3


def _summary(parts: Iterable[Float64]) -> Row:
    """Least, greatest, mean and deviation of each column, of one part after the other."""
    sums = [
        (len(x), x.min(axis=0), x.max(axis=0), x.sum(axis=0), (x**2).sum(axis=0))
        for x in parts
        if len(x)
    ]
    lengths, least, most, totals, squares = (
        np.array(column) for column in zip(*sums, strict=True)
    )
    num = int(lengths.sum())
    mean = totals.sum(axis=0) / num
    std = np.sqrt(np.maximum(squares.sum(axis=0) / num - mean**2, 0.0))
    rows = {"min": least.min(axis=0), "max": most.max(axis=0), "mean": mean, "std": std}
    return {**{name: row.tolist() for name, row in rows.items()}, "count": [num]}
