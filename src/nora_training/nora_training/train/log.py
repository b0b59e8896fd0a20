"""The numbers of a run as JSON lines, in TensorBoard, and as a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

from nora_core.files import write_text

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from torch.utils.tensorboard import SummaryWriter

LOG, PLOT, BOARD = "log.jsonl", "losses.png", "tensorboard"
LOSSES = ("cross_entropy", "flow", "keyframe")  # what is plotted, of the rows that have it
FEW = 20


class Log:
    """Appends to the log of a run that continues at step `start`; later rows are dropped."""

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / LOG
        kept = [row for row in read(folder) if row["step"] <= start]
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(folder / BOARD), purge_step=start + 1)

    def write(self, step: int, kind: str, values: dict[str, float]) -> None:
        """`kind`: train, val or trials; `step`: optimizer steps done."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read(folder: Path) -> list[dict[str, Any]]:
    """Rows of the log; a last row that was cut off is ignored."""
    path = folder / LOG
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def plot(folder: Path) -> Path | None:
    """The losses over the steps as a picture beside the log; None when there is none to show.

    A series with few points, such as that of a single validation, is drawn with markers.
    """
    rows, series = read(folder), {}
    for kind in ("train", "val"):
        for name in LOSSES:
            points = [(r["step"], r[name]) for r in rows if r["kind"] == kind and r.get(name)]
            if points:
                series[f"{kind} {name}"] = points
    if not series:
        return None
    figure, axes = plt.subplots(figsize=(8, 5))
    for label, points in series.items():
        marker = "o" if len(points) <= FEW else None
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1, marker=marker)
    axes.set(xlabel="optimizer step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / PLOT, dpi=120)
    plt.close(figure)
    return folder / PLOT
