"""Reads a LeRobot data set, version 3.0, whoever wrote it.

Legend: N steps, A action dim, D values of a feature.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nora_core import strict_yaml
from nora_core.types import Float64
from nora_training.data.alignment import Int64
from nora_training.data.dataset import Entry, UInt8
from nora_training.lerobot.meta import ACTION, INFO, NORA, Row
from nora_training.lerobot.video import VideoReader


class LeRobotSource:
    """An open data set; episodes are fast to read in the order of `rows`.

    Args:
        folder: of the data set.
        action_names: elements of its actions to read.
        images: its features with images, by the name of our camera.
        fps: what its rate must be.

    Attributes:
        rows: of `meta/episodes`, in the order of the episodes.
        entries: ours by number of the episode, where we recorded it.

    Raises:
        ValueError: from all methods, the data set is not whole or lacks what was asked for.
    """

    def __init__(
        self, folder: Path, action_names: Sequence[str], images: Mapping[str, str], fps: int
    ) -> None:
        path = folder / INFO
        if not path.is_file():
            raise ValueError(f"{path} is missing: no LeRobot data set, or an incomplete one")
        self._info: Row = json.loads(path.read_bytes())
        self._folder, self._images, self.fps = folder, images, fps
        version = self._info.get("codebase_version", "")
        if not version.startswith("v3."):
            raise ValueError(f"{path}: codebase_version: expected v3, got {version!r}")
        if self._info["fps"] != fps:
            raise ValueError(f"{path}: fps: expected {fps}, got {self._info['fps']}")
        self._features: Row = self._info["features"]
        self._check_features((ACTION, *images.values()))
        self._columns = self._find(action_names)
        self.rows = self._read_rows()
        self.entries = self._read_entries()
        self._table: tuple[Path, pa.Table] = (path, None)
        self._videos: dict[str, tuple[Path, VideoReader]] = {}

    def actions(self, row: Row) -> Float64:
        """(N, A), the elements asked for."""
        values_ND = self.vectors(row, ACTION)
        assert values_ND is not None
        return values_ND[:, self._columns]

    def vectors(self, row: Row, feature: str) -> Float64 | None:
        """(N, D), None if there is no such feature."""
        if feature not in self._features:
            return None
        column = self._data(row)[feature].combine_chunks()
        values_ND: Float64 = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        return values_ND.reshape(row["length"], -1)

    def numbers(self, row: Row, feature: str) -> Int64 | None:
        """(N,), None if there is no such feature."""
        if feature not in self._features:
            return None
        values_N: Int64 = self._data(row)[feature].to_numpy().astype(np.int64)
        return values_N

    def images(self, row: Row) -> dict[str, Iterator[UInt8]]:
        """RGB images (height, width, 3) of all steps, by the name of our camera."""
        return {camera: self._frames(row, key) for camera, key in self._images.items()}

    def _frames(self, row: Row, key: str) -> Iterator[UInt8]:
        if self._features[key]["dtype"] == "image":
            return (_decode(item["bytes"]) for item in self._data(row)[key].to_pylist())
        path = self._path("video_path", row, f"videos/{key}", key)
        if key not in self._videos or self._videos[key][0] != path:
            self._videos[key] = (path, VideoReader(path, self.fps))
        first = round(row[f"videos/{key}/from_timestamp"] * self.fps)
        return self._videos[key][1].read(first, row["length"])

    def _data(self, row: Row) -> pa.Table:
        path = self._path("data_path", row, "data")
        if self._table[0] != path:
            if not path.is_file():
                raise ValueError(f"{path}: the data file is missing")
            self._table = (path, pq.read_table(path))
        table = self._table[1]
        part = table.filter(pc.equal(table["episode_index"], row["episode_index"]))
        if part.num_rows != row["length"]:
            raise ValueError(
                f"{path}: expected {row['length']} steps of episode {row['episode_index']}, "
                f"got {part.num_rows}"
            )
        return part

    def _path(self, template: str, row: Row, prefix: str, key: str = "") -> Path:
        place = {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}
        relative: str = self._info[template].format(video_key=key, **place)
        return self._folder / relative

    def _check_features(self, keys: Sequence[str]) -> None:
        for key in keys:
            if key not in self._features:
                available = sorted(self._features)
                raise ValueError(f"features: expected {key}, available: {available}")

    def _find(self, action_names: Sequence[str]) -> list[int]:
        (width,) = self._features[ACTION]["shape"]
        names = self._features[ACTION].get("names") or [str(i) for i in range(width)]
        if isinstance(names, dict) and all(isinstance(i, int) for i in names.values()):
            names = sorted(names, key=names.__getitem__)  # {"x": 0, ...}
        elif isinstance(names, dict):  # by kind, as in {"motors": [...]}
            names = [name for group in names.values() for name in group]
        if missing := [name for name in action_names if name not in names]:
            raise ValueError(f"action_names: expected {missing} among the actions, got {names}")
        return [names.index(name) for name in action_names]

    def _read_rows(self) -> list[Row]:
        rows: list[Row] = []
        for path in sorted((self._folder / "meta/episodes").rglob("*.parquet")):
            names = [n for n in pq.read_schema(path).names if not n.startswith("stats/")]
            rows += pq.read_table(path, columns=names).to_pylist()
        found = {"total_episodes": len(rows), "total_frames": sum(row["length"] for row in rows)}
        for name, number in found.items():
            if self._info[name] != number:
                raise ValueError(
                    f"{self._folder / 'meta/episodes'}: expected {name} {self._info[name]} as in "
                    f"info.json, got {number}"
                )
        return sorted(rows, key=lambda row: int(row["episode_index"]))

    def _read_entries(self) -> dict[int, Entry]:
        path = self._folder / NORA
        if not path.is_file():
            return {}
        episodes = json.loads(path.read_text(encoding="utf-8"))["episodes"]
        entries = [strict_yaml.build(Entry, episode) for episode in episodes]
        ours = [([entry.instruction], entry.num_steps) for entry in entries]
        if ours != [(list(row["tasks"]), row["length"]) for row in self.rows]:
            raise ValueError(
                f"{path}: expected the episodes of meta/episodes, got others; delete it"
            )
        return {row["episode_index"]: e for row, e in zip(self.rows, entries, strict=True)}


def _decode(data: bytes) -> UInt8:
    bgr_HW3 = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr_HW3 is None:
        raise ValueError("image: expected PNG or JPEG, got something else")
    rgb_HW3: UInt8 = np.ascontiguousarray(bgr_HW3[..., ::-1])
    return rgb_HW3
