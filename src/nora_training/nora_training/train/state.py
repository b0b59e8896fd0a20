"""Saved training states from which a run resumes: the two newest `state/step_N`, each atomic.

Each folder has `weights.safetensors` (parameters), `average.safetensors` (if one is kept),
`optimizer.pt` (tensors and numbers), and `state.json`: the step, progress, and the checksums of
the other files.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, AVERAGE, OPTIMIZER = "weights.safetensors", "average.safetensors", "optimizer.pt"
MANIFEST, PREFIX, PARTIAL = "state.json", "step_", ".partial"
KEPT = 2
BLOCK = 1 << 22

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """Training state after `step` optimizer steps; `progress` is further JSON of the trainer."""

    step: int
    weights: Mapping[str, torch.Tensor]
    average: Mapping[str, torch.Tensor] | None
    optimizers: list[dict[str, Any]]
    progress: dict[str, Any]


def save(folder: Path, state: State) -> Path:
    """Write atomically: if the process is killed, the older states remain unchanged."""
    partial = folder / f"{PARTIAL}_{state.step}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _save_tensors(state.weights, partial / WEIGHTS)
    if state.average is not None:
        _save_tensors(state.average, partial / AVERAGE)
    torch.save(state.optimizers, partial / OPTIMIZER)
    sums = {path.name: _sum(path) for path in sorted(partial.iterdir())}
    manifest = {"step": state.step, "progress": state.progress, "files": sums}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    for path in (*partial.iterdir(), partial):
        _flush(path)
    final = folder / f"{PREFIX}{state.step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in [*_states(folder)[KEPT:], *folder.glob(f"{PARTIAL}_*")]:
        shutil.rmtree(old)
    return final


def exists(folder: Path) -> bool:
    """Return whether any state was saved, complete or not."""
    return bool(_states(folder))


def load(folder: Path) -> State | None:
    """Return the newest complete state; log a warning for each damaged one that is skipped."""
    for path in _states(folder):
        problem = _problem(path)
        if problem is None:
            return _read(path)
        logger.warning("%s: not used: %s", path, problem)
    return None


def _states(folder: Path) -> list[Path]:
    """List the folders of the states, newest first."""
    return sorted(folder.glob(f"{PREFIX}*"), reverse=True)


def _problem(path: Path) -> str | None:
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
        for name, expected in files.items():
            if _sum(path / name) != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError) as error:
        return f"{error!r}"
    return None


def _read(path: Path) -> State:
    manifest = json.loads((path / MANIFEST).read_text())
    average = path / AVERAGE
    return State(
        step=manifest["step"],
        weights=load_file(path / WEIGHTS),
        average=load_file(average) if average.is_file() else None,
        optimizers=torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True),
        progress=manifest["progress"],
    )


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: x.detach().cpu().contiguous() for name, x in tensors.items()}, path)


def _sum(path: Path) -> list[int]:
    """Return the size and the CRC-32 of a file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return [path.stat().st_size, crc]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
