"""Safetensors files: what their headers say, tensors in blocks, and a header to write."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from nora_policy.checkpoints import files

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# The output of the language model, which may be tied to the embedding of its input.
EMBEDDING, LM_HEAD = "vlm.model.language_model.embed_tokens.weight", "vlm.lm_head.weight"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
BLOCK = 8 << 20  # bytes
SHOWN = 5

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_items(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_items * ITEM_BYTES[self.dtype]

    def blocks(self) -> Iterator[torch.Tensor]:
        """Its values in order, as many rows at a time as fit into `BLOCK`, at least one.

        The file is opened for every block: what was read of a mapped file counts as memory of the
        process until it is closed.
        """
        rows = self.shape[0]
        step = max(1, rows * BLOCK // max(1, self.num_bytes))
        for start in range(0, rows, step):
            with safe_open(self.path, framework="pt") as file:
                yield file.get_slice(self.name)[start : start + step]


def read(folder: Path) -> dict[str, Stored]:
    """Every tensor by its name, of one file or of the shards of an index.

    Raises:
        FileNotFoundError: the weights or a shard are missing.
        ValueError: a file is not what it should be.
    """
    has_file, has_index = (folder / WEIGHTS).is_file(), (folder / INDEX).is_file()
    if has_file and has_index:
        raise ValueError(f"checkpoint {folder}: expected {WEIGHTS} or {INDEX}, got both")
    if not has_index:
        return header(folder / WEIGHTS)
    return _shards(folder)


def header(path: Path) -> dict[str, Stored]:
    """The tensors of one file by name; raises `ValueError` as `read` does."""
    files.check(path)
    found = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it cannot be iterated itself)
                tensor = file.get_slice(name)
                found[name] = Stored(path, name, tensor.get_dtype(), tuple(tensor.get_shape()))
    except SafetensorError as error:
        raise ValueError(
            f"{path}: truncated or not a readable safetensors file: {error}"
        ) from error
    for name, stored in found.items():
        if stored.dtype not in ITEM_BYTES or not stored.shape:
            raise ValueError(
                f"{path}: {name}: expected a tensor of {', '.join(ITEM_BYTES)}, "
                f"got {stored.dtype} of shape {stored.shape}"
            )
    return found


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
        stored = header(folder / shard)
        named = {name for name, where in shard_of.items() if where == shard}
        if differing := sorted(stored.keys() ^ named):
            raise ValueError(
                f"{folder / shard}: expected the tensors that {INDEX} names, "
                f"{len(differing)} differ: {', '.join(differing[:SHOWN])}"
            )
        found |= stored
    return found


def difference(expected: Shapes, got: Shapes) -> str:
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


def write_header(file: BinaryIO, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Begin a file with `tensors` (type, shape); their bytes must follow in this order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin on a multiple of 8
    file.write(len(text).to_bytes(8, "little") + text)
