"""A checkpoint into our layout, a block of rows at a time."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from nora_core.embodiment import Embodiment
from nora_core.files import write_json
from nora_core.paths import embodiment_file
from nora_policy.checkpoints import files, inspection, layout, published, weights
from nora_policy.checkpoints.layout import Layout
from nora_policy.checkpoints.weights import ITEM_BYTES, LM_HEAD, WEIGHTS

Progress = Callable[[int, int], object]  # called with bytes read since the last call, and of all
GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Write a checkpoint in our layout, with a card that says where it came from.

    Attributes:
        source: folder of the checkpoint.
        out: new folder.
        horizon: 1 (NORA) or 5 (NORA-Long), where the origin of the folder does not say it.
        statistics: norm_stats.json, in place of the one in source.
        tokenizer: tokenizer.json, in place of the one in source.
        fast: folder of the FAST tokenizer, in place of fast/ in source.
        embodiment: name or file of the robot it was trained for.
        dtype: round to the nearest bfloat16, or keep the types.
    """

    source: tyro.conf.Positional[Path]
    out: tyro.conf.Positional[Path]
    horizon: int | None = None
    statistics: Path | None = None
    tokenizer: Path | None = None
    fast: Path | None = None
    embodiment: str | None = None
    dtype: Literal["bf16", "keep"] = "bf16"


def convert(job: Conversion, progress: Progress) -> dict[str, Any]:
    """Write `job.out` completely or not at all; returns its card.

    Raises:
        FileNotFoundError, ValueError: a file is missing or does not fit, or `out` exists.
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
        write_json(partial / layout.CONFIG, dataclasses.asdict(found.config))
        _write_weights(found, partial / WEIGHTS, job.dtype, progress)
        surprises += _check(partial)
        card = _card(job, found, companions, surprises)
        write_json(partial / layout.CARD, card)
        partial.rename(job.out)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
    return card


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
    embodiment = job.source / layout.EMBODIMENT
    if job.embodiment is not None:
        embodiment = embodiment_file(job.embodiment)
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


def _write_weights(found: Layout, path: Path, dtype: str, progress: Progress) -> None:
    kept = {n: t for n, t in found.tensors.items() if not (n == LM_HEAD and found.has_tied_head)}
    new_dtypes = {n: "BF16" if dtype == "bf16" else tensor.dtype for n, tensor in kept.items()}
    # Wide numbers first, so that every tensor begins on a multiple of its item size.
    names = sorted(kept, key=lambda name: -ITEM_BYTES[new_dtypes[name]])
    _check_room(path.parent, sum(t.num_items * ITEM_BYTES[new_dtypes[n]] for n, t in kept.items()))
    total = sum(tensor.num_bytes for tensor in kept.values())
    try:
        with path.open("wb") as file:
            weights.write_header(file, {n: (new_dtypes[n], kept[n].shape) for n in names})
            for name in names:
                for block in kept[name].blocks():
                    progress(block.nbytes, total)
                    new = block.to(torch.bfloat16) if dtype == "bf16" else block
                    file.write(new.flatten().view(torch.uint8).numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        # Without the name of a file when a write fails.
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error


def _check_room(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < need:
        raise ValueError(f"{folder.parent}: expected {need / GB:.3f} GB free, got {free / GB:.3f}")


def _card(
    job: Conversion, found: Layout, companions: Mapping[str, Path], surprises: list[str]
) -> dict[str, Any]:
    paths = {tensor.path for tensor in found.tensors.values()}
    sources = [*sorted(paths), *sorted(job.source.glob("*.json")), *companions.values()]
    digests = {
        str(path.relative_to(job.source) if path.is_relative_to(job.source) else path): (
            files.sha256(path)
        )
        for path in sources
    }
    source: dict[str, Any] = {"repo": job.source.resolve().name, "revision": None}
    if (job.source / published.SOURCE).is_file():
        downloaded = files.read_json(job.source / published.SOURCE)
        source = {key: downloaded.get(key) for key in ("repo", "revision")}
        _check_digests(job.source, downloaded.get("files") or {}, digests)
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
    statistics, strange = layout.read_statistics(folder / layout.STATISTICS)
    if not statistics:
        raise ValueError(f"{layout.STATISTICS}: {'; '.join(strange) or 'no statistics in it'}")
    if (folder / layout.EMBODIMENT).is_file():
        embodiment = Embodiment.load(folder / layout.EMBODIMENT)
        if reasons := layout.misfits(layout.read(folder), statistics, embodiment):
            raise ValueError(f"embodiment {embodiment.name}: {'; '.join(reasons)}")
    return report.surprises
