"""Numbers of a run: JSON lines, TensorBoard, a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from torch.utils.tensorboard import SummaryWriter

LOG, PLOT, BOARD = "log.jsonl", "losses.png", "tensorboard"


class Log:
    """Appends to the log of a run that goes on at step `start`: what came later is dropped."""

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / LOG
        kept = [row for row in read(folder) if row["step"] <= start]
        partial = folder / f".{LOG}"
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(self._path)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(folder / BOARD), purge_step=start + 1)

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """`kind`: train or val; `step`: optimizer steps done."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read(folder: Path) -> list[dict[str, Any]]:
    """Rows of the log, without a last one that was cut off."""
    path = folder / LOG
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def plot(folder: Path) -> Path:
    """Losses over the steps, as a picture beside the log."""
    rows = read(folder)
    figure, axes = plt.subplots(figsize=(8, 5))
    for kind, name in (
        ("train", "cross_entropy"),
        ("train", "flow"),
        ("train", "keyframe"),
        ("val", "cross_entropy"),
    ):
        points = [(r["step"], r[name]) for r in rows if r["kind"] == kind and r.get(name)]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"{kind} {name}", linewidth=1)
    axes.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / PLOT, dpi=120)
    plt.close(figure)
    return folder / PLOT
