"""Safetensors without a tensor library: headers, blocks of bytes, a streaming writer.

A file is 8 bytes (size of the header), the header in JSON, then the tensors without gaps.
Nothing here reads a tensor unless asked to, and then a block at a time.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nora_core import strict_yaml
from nora_policy.checkpoints import files

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER = 100_000_000  # bytes; the format's own limit
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Entry:
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    def __post_init__(self) -> None:
        if self.dtype not in ITEM_BYTES:
            raise ValueError(f"dtype: expected one of {list(ITEM_BYTES)}, got {self.dtype}")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file; `start` is where its bytes are, from the beginning of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    def blocks(self) -> Iterator[bytes]:
        """Its bytes; a block is a multiple of 8 bytes unless it is the last."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = num_bytes(self.dtype, self.shape)
            while left:
                block = file.read(min(left, files.BLOCK))
                if not block:
                    raise ValueError(f"{self.path}: ended {left} bytes early while being read")
                left -= len(block)
                yield block


def num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * ITEM_BYTES[dtype]


def read(folder: Path) -> dict[str, Stored]:
    """Every tensor by its name, of one file or of the shards of an index.

    Raises:
        FileNotFoundError: there are no weights, or a shard is not there.
        ValueError: a file is not what it should be.
    """
    has_file, has_index = (folder / WEIGHTS).is_file(), (folder / INDEX).is_file()
    if has_file and has_index:
        raise ValueError(f"checkpoint {folder}: expected {WEIGHTS} or {INDEX}, got both")
    if not has_index:
        return header(folder / WEIGHTS)
    return _shards(folder)


def header(path: Path) -> dict[str, Stored]:
    """What one file holds, in the order of its bytes; raises `ValueError` as `read` does."""
    files.check(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= MAX_HEADER:
            raise ValueError(f"{path}: not a readable safetensors file: no header")
        if 8 + length > size:
            raise ValueError(f"{path}: truncated: expected {8 + length} bytes or more, got {size}")
        text = file.read(length)
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError(f"expected a JSON object, got {type(data).__name__}")
        data.pop("__metadata__", None)
        entries = {name: strict_yaml.build(Entry, entry, name) for name, entry in data.items()}
    except ValueError as error:
        raise ValueError(f"{path}: not a readable safetensors file: header: {error}") from error
    ordered = sorted(entries.items(), key=lambda item: item[1].data_offsets)
    found = {
        name: Stored(path, name, entry.dtype, entry.shape, 8 + length + entry.data_offsets[0])
        for name, entry in ordered
    }
    _check_layout(path, 8 + length, found, size)
    return found


def _check_layout(path: Path, start: int, found: Mapping[str, Stored], size: int) -> None:
    for name, tensor in found.items():
        if tensor.start != start:
            raise ValueError(
                f"{path}: not a readable safetensors file: {name}: expected its bytes at "
                f"{start}, got {tensor.start}"
            )
        start += num_bytes(tensor.dtype, tensor.shape)
    if start != size:
        word = "truncated" if size < start else "not a readable safetensors file"
        raise ValueError(f"{path}: {word}: expected {start} bytes, got {size}")


def _shards(folder: Path) -> dict[str, Stored]:
    index = folder / INDEX
    shard_of = files.read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError(f"{index}: expected a weight_map of names to files")
    shards = sorted(set(map(str, shard_of.values())))
    if strange := [name for name in shards if Path(name).name != name]:
        raise ValueError(f"{index}: expected names of files in its folder, got {strange[0]}")
    if missing := [name for name in shards if not (folder / name).is_file()]:
        raise FileNotFoundError(
            f"{index}: {len(missing)} of {len(shards)} shards missing: {', '.join(missing)}"
        )
    found: dict[str, Stored] = {}
    for shard in shards:
        held = header(folder / shard)
        named = {name for name, where in shard_of.items() if where == shard}
        if differing := sorted(held.keys() ^ named):
            raise ValueError(
                f"{folder / shard}: expected the tensors that {INDEX} names, "
                f"{len(differing)} differ: {', '.join(differing[:SHOWN])}"
            )
        found |= held
    return found


def difference(expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]) -> str:
    """One line that names the tensors that do not fit; empty when every one does."""
    wrong = [
        f"{name} (expected {shape}, got {got[name]})"
        for name, shape in expected.items()
        if name in got and got[name] != shape
    ]
    problems = {
        "missing": sorted(expected.keys() - got.keys()),
        "unexpected": sorted(got.keys() - expected.keys()),
        "wrong shape": wrong,
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for kind, names in problems.items()
        if names
    )


def write_header(
    file: BinaryIO, tensors: Mapping[str, tuple[str, tuple[int, ...]]], about: Mapping[str, str]
) -> None:
    """Begin a file with `tensors` (type, shape); their bytes must follow in this order.

    Raises:
        ValueError: a tensor would not lie on a multiple of its item size.
    """
    entries: dict[str, object] = {"__metadata__": dict(about)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        if offset % ITEM_BYTES[dtype]:
            raise ValueError(f"{name}: expected tensors of one type; choose one with --dtype")
        end = offset + num_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin on a multiple of 8
    file.write(struct.pack("<Q", len(text)) + text)
