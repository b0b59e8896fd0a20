"""How a LeRobot data set is laid out, version 3.0, and its `meta` folder.

    meta/info.json                           features, paths, totals
         stats.json, tasks.parquet           of numbers, of instructions
         nora.json                           our entries, in the order of the episodes
         episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet          many episodes per file
    videos/<feature>/chunk-000/file-000.mp4  one frame per step, many episodes per file

Legend: N steps, K values, V values of a pixel.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nora_core.embodiment import Embodiment
from nora_core.types import Float64
from nora_training.data.dataset import Dataset, Entry, UInt8
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
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Row = dict[str, Any]


def frame_rate(embodiment: Embodiment) -> int:
    """Steps per second. Raises `ValueError` if that is no whole number, as LeRobot wants it."""
    rate = 1.0 / embodiment.action.step_period_s
    if abs(rate - round(rate)) > 1e-6:
        raise ValueError(f"step_period_s: expected 1 / a whole number, got 1 / {rate:g}")
    return round(rate)


def write_meta(root: Path, dataset: Dataset, rows: list[Row], tasks: list[str], crf: int) -> None:
    """Write the `meta` folder, `info.json` last; `rows` are those of `meta/episodes`."""
    ends = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
    wide = [row | ends | _columns(dataset, dataset.entries[row["episode_index"]]) for row in rows]
    names = dict.fromkeys(name for row in wide for name in row)
    (root / EPISODES).parent.mkdir(parents=True)
    table = pa.Table.from_pylist([{name: row.get(name) for name in names} for row in wide])
    pq.write_table(table, root / EPISODES)
    pq.write_table(_task_table(tasks), root / TASKS)
    _write_json(root / NORA, {"episodes": [dataclasses.asdict(e) for e in dataset.entries]})
    _write_json(root / STATS, _statistics(dataset, dataset.entries))
    _write_json(root / INFO, _info(dataset, rows, len(tasks), crf))


def _task_table(tasks: list[str]) -> pa.Table:
    """Tasks as pandas writes a data frame with the index "task"; LeRobot reads it with pandas."""
    types = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype}
        | {"metadata": None}
        for name, (kind, dtype) in types.items()
    ]
    index = {"index_columns": ["task"], "column_indexes": [], "columns": columns}
    table = pa.table({"task_index": np.arange(len(tasks)), "task": tasks})
    return table.replace_schema_metadata({"pandas": json.dumps(index)})


def _columns(dataset: Dataset, entry: Entry) -> Row:
    """The statistics of one episode."""
    found = _statistics(dataset, [entry])
    return {
        f"stats/{feature}/{name}": v for feature, row in found.items() for name, v in row.items()
    }


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


def _statistics(dataset: Dataset, entries: Sequence[Entry]) -> dict[str, Row]:
    """Statistics of actions and images (0 ... 1, per channel); unmeasured features have none."""
    steps = [dataset.steps(entry) for entry in entries]
    found = {ACTION: _of_vectors(np.concatenate([step.actions_NA for step in steps]))}
    for feature, name in ((MEASURED, "measured_N6"), (POSITION, "positions_N3")):
        rows_NK = np.concatenate([getattr(step, name) for step in steps])
        known_NK = rows_NK[np.isfinite(rows_NK).all(axis=1)]
        if len(known_NK):
            found[feature] = _of_vectors(known_NK)
    for camera in dataset.embodiment.cameras:
        images = (dataset.images(entry, camera.name)[::SAMPLED] for entry in entries)
        found[IMAGES + camera.name] = _of_images(images)
    return found


def _of_vectors(x_NK: Float64) -> Row:
    rows = {name: getattr(x_NK, name)(axis=0) for name in ("min", "max", "mean", "std")}
    rows |= {name: np.quantile(x_NK, share, axis=0) for name, share in QUANTILES.items()}
    return {**{name: row_K.tolist() for name, row_K in rows.items()}, "count": [len(x_NK)]}


def _of_images(parts: Iterable[UInt8]) -> Row:
    """Image statistics from the histograms (256 values) of each channel of (N, H, W, 3)."""
    value_V = np.arange(256) / 255.0
    counts_3V = np.zeros((3, 256), np.int64)
    num = 0
    for images_NHW3 in parts:
        num += images_NHW3.size // 3
        for count_V, values_NHW in zip(counts_3V, np.moveaxis(images_NHW3, -1, 0), strict=True):
            count_V += np.bincount(values_NHW.ravel(), minlength=256)
    below_3V = np.cumsum(counts_3V, axis=1) / num
    mean_3 = counts_3V @ value_V / num
    rows = {
        "min": value_V[(counts_3V > 0).argmax(axis=1)],
        "max": value_V[(below_3V >= 1.0).argmax(axis=1)],
        "mean": mean_3,
        "std": np.sqrt(np.maximum(counts_3V @ value_V**2 / num - mean_3**2, 0.0)),
    }
    rows |= {name: value_V[(below_3V >= q).argmax(axis=1)] for name, q in QUANTILES.items()}
    shaped = {name: [[[value]] for value in row_3.tolist()] for name, row_3 in rows.items()}
    return {**shaped, "count": [num]}
