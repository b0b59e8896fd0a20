"""A checkpoint into our layout, a block of bytes at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import tyro

from nora_core.embodiment import Embodiment
from nora_policy.checkpoints import files, inspection, layout, published, weights
from nora_policy.checkpoints.layout import Layout
from nora_policy.checkpoints.shapes import LM_HEAD
from nora_policy.checkpoints.weights import Stored

Progress = Callable[[int], object]  # called with numbers of bytes read
GB = 10**9


@dataclass(frozen=True, slots=True)
class Conversion:
    """Write a checkpoint in our layout, with a card that says where it came from.

    Attributes:
        source: folder of the checkpoint.
        out: new folder.
        horizon: 1 (NORA) or 5 (NORA-Long), where the origin of the folder does not say it.
        statistics: norm_stats.json, in place of the one in source.
        tokenizer: tokenizer.json, in place of the one in source.
        fast: folder of the FAST tokenizer, in place of fast/ in source.
        embodiment: file of the robot it was trained for.
        dtype: round to the nearest bfloat16, or keep the types.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    horizon: int | None = None
    statistics: Path | None = None
    tokenizer: Path | None = None
    fast: Path | None = None
    embodiment: Path | None = None
    dtype: Literal["bf16", "keep"] = "bf16"


def convert(job: Conversion, progress: Progress) -> dict[str, Any]:
    """Write `job.out` whole or not at all; returns its card.

    Raises:
        FileNotFoundError, ValueError: a file is missing or does not fit, or `out` is there.
        OSError: the disk is full, or fails.
    """
    if job.out.exists():
        raise ValueError(f"{job.out}: expected a new folder, it is already there")
    found, surprises = inspection.open_folder(job.source, job.horizon)
    layout.require_horizon(found)
    layout.check_tied(found)
    companions = _companions(job, found)
    partial = job.out.with_name(f".{job.out.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)  # of a run that was killed
    partial.mkdir(parents=True)
    try:
        for name, path in companions.items():
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, partial / name)
        files.write_json(partial / layout.CONFIG, dataclasses.asdict(found.config))
        digests = _write_weights(found, partial / weights.WEIGHTS, job.dtype, progress)
        surprises += _check(partial)
        card = _card(job, found, digests, companions, surprises)
        files.write_json(partial / layout.CARD, card)
        partial.rename(job.out)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
    return card


def source_size(source: Path) -> int:
    """Bytes of weights, for the progress bar."""
    layout.require(source, weights.WEIGHTS)
    stored = weights.read(source)
    return sum(path.stat().st_size for path in {tensor.path for tensor in stored.values()})


def to_bfloat16(block: bytes, dtype: str) -> bytes:
    """Little-endian numbers to the nearest bfloat16, ties to even, as torch does."""
    if dtype == "BF16":
        return block
    values = np.frombuffer(block, "<f4" if dtype == "F32" else "<f2").astype("<f4", copy=False)
    bits = values.view("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16  # a NaN may wrap around
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").tobytes()


def _companions(job: Conversion, found: Layout) -> dict[str, Path]:
    """Name in our layout -> the file that is copied there."""
    chosen = {
        layout.TOKENIZER: job.tokenizer or job.source / layout.TOKENIZER,
        layout.STATISTICS: job.statistics or job.source / layout.STATISTICS,
    }
    for name, path in chosen.items():
        if not path.is_file():
            option = "statistics" if name == layout.STATISTICS else "tokenizer"
            raise FileNotFoundError(f"{path}: no such file, give one with --{option}")
    embodiment = job.embodiment or job.source / layout.EMBODIMENT
    if embodiment.is_file() or job.embodiment is not None:
        Embodiment.load(embodiment)
        chosen[layout.EMBODIMENT] = embodiment
    fast = job.fast or job.source / layout.FAST
    if fast.is_dir() or job.fast is not None:
        names = ("tokenizer.json", "processor_config.json")
        chosen |= {f"{layout.FAST}/{name}": fast / name for name in names}
    elif found.config.heads == ("fast",):
        raise FileNotFoundError(f"{fast}: no such folder, give that of FAST+ with --fast")
    return chosen


def _write_weights(found: Layout, path: Path, dtype: str, progress: Progress) -> dict[str, str]:
    """Write every tensor that counts; returns the sha256 of every file it came from."""
    name_of = {(t.path, t.name): new for new, t in found.tensors.items()}
    if found.has_tied_head:
        head = found.tensors[LM_HEAD]
        del name_of[head.path, head.name]
    sources = {p: weights.header(p) for p in sorted({t.path for t in found.tensors.values()})}
    tensors = {
        name_of[source, tensor.name]: ("BF16" if dtype == "bf16" else tensor.dtype, tensor.shape)
        for source, stored in sources.items()
        for tensor in stored.values()
        if (source, tensor.name) in name_of
    }
    _check_room(path.parent, tensors)
    digests = {}
    try:
        with path.open("wb") as file:
            weights.write_header(file, tensors, {"format": "pt"})
            for source, stored in sources.items():
                kept = {name for p, name in name_of if p == source}
                digests[source.name] = _copy(source, stored, kept, file, dtype, progress)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # Without the name of a file when a write fails.
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
    return digests


def _copy(
    source: Path,
    stored: Mapping[str, Stored],
    kept: set[str],
    file: BinaryIO,
    dtype: str,
    progress: Progress,
) -> str:
    start = min((tensor.start for tensor in stored.values()), default=0)
    with source.open("rb") as opened:
        digest = hashlib.sha256(opened.read(start))
    for name, tensor in stored.items():
        for block in tensor.blocks():
            digest.update(block)
            progress(len(block))
            if name in kept:
                file.write(to_bfloat16(block, tensor.dtype) if dtype == "bf16" else block)
    return digest.hexdigest()


def _check_room(folder: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    need = sum(weights.num_bytes(dtype, shape) for dtype, shape in tensors.values())
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ValueError(f"{folder.parent}: expected {need / GB:.3f} GB free, got {free / GB:.3f}")


def _card(
    job: Conversion,
    found: Layout,
    digests: Mapping[str, str],
    companions: Mapping[str, Path],
    surprises: list[str],
) -> dict[str, Any]:
    others = {
        str(path.relative_to(job.source) if path.is_relative_to(job.source) else path): path
        for path in (*sorted(job.source.glob("*.json")), *companions.values())
    }
    digests = {**digests, **{name: files.sha256(path) for name, path in others.items()}}
    source: dict[str, Any] = {"repo": job.source.resolve().name, "revision": None}
    if (job.source / published.SOURCE).is_file():
        downloaded = files.read_json(job.source / published.SOURCE)
        source = {name: downloaded.get(name) for name in source}
        _check_digests(job.source, downloaded.get("files", {}), digests)
    dropped = list(found.dropped)
    if found.has_tied_head:
        dropped.append(found.tensors[LM_HEAD].name)
    return {
        "description": f"{found.config.kind}, converted",
        "source": {**source, "files": digests},
        "dtype": job.dtype,
        "dropped": dropped,
        "surprises": surprises,
    }


def _check_digests(source: Path, recorded: Mapping[str, str], got: Mapping[str, str]) -> None:
    for name in recorded.keys() & got.keys():
        if recorded[name] != got[name]:
            raise ValueError(
                f"{source / name}: expected sha256 {recorded[name]} as downloaded, got {got[name]}"
            )


def _check(folder: Path) -> tuple[str, ...]:
    """Read the result as strictly as `Policy.load` will; returns what is strange about it."""
    report = inspection.inspect(folder)
    statistics, strange = inspection.read_statistics(folder / layout.STATISTICS)
    if not statistics:
        raise ValueError(f"{layout.STATISTICS}: {'; '.join(strange) or 'expected statistics'}")
    if (folder / layout.EMBODIMENT).is_file():
        embodiment = Embodiment.load(folder / layout.EMBODIMENT)
        if reasons := inspection.misfits(layout.read(folder), statistics, embodiment):
            raise ValueError(f"embodiment {embodiment.name}: {'; '.join(reasons)}")
    return report.surprises
