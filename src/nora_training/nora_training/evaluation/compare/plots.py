"""A comparison as Markdown, with a plot."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from nora_core.types import Float64
from nora_training.evaluation.compare.comparison import Comparison, Distance

matplotlib.use("Agg")
import matplotlib.pyplot as plt

UNITS = (*["mm"] * 3, *["mrad"] * 3, "opening")
SCALE = np.array([*[1e3] * 6, 1.0])
STILL = "standing still, open"


def write_report(folder: Path, comparison: Comparison, names: tuple[str, ...]) -> str:
    """The text of `compare.md`, which is written beside `compare.png` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {**comparison.to_done, STILL: comparison.still}
    pairs = {f"{a} - {b}": between for (a, b), between in comparison.between.items()}
    text = "\n\n".join(
        [
            f"# {len(comparison.to_done)} policies on {comparison.num_samples} recorded images",
            "Mean absolute difference to what was done, of the first step of a chunk and of its "
            f"{comparison.horizon} steps; what lies behind the end of an episode does not count.",
            _table("first step", names, {name: row.first_A for name, row in rows.items()}),
            _table("whole chunk", names, {name: row.chunk_A for name, row in rows.items()}),
            _gripper(rows),
            *_between(names, pairs),
            _latency(comparison.seconds),
        ]
    )
    (folder / "compare.md").write_text(text + "\n")
    _plot(folder / "compare.png", comparison, names)
    return text


def _table(title: str, names: tuple[str, ...], values: dict[str, Float64]) -> str:
    columns = [f"{name} [{unit}]" for name, unit in zip(names, UNITS, strict=True)]
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, value_A in values.items():
        cells = [f"{value:.3g}" for value in value_A * SCALE]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gripper(rows: dict[str, Distance]) -> str:
    lines = ["| gripper | open or closed as it was |", "|---|---|"]
    lines += [f"| {name} | {row.gripper:.1%} |" for name, row in rows.items()]
    return "\n".join(lines)


def _between(names: tuple[str, ...], pairs: dict[str, Distance]) -> list[str]:
    """Agreement of the policies with each other."""
    if not pairs:
        return []
    distances = _table("between", names, {name: pair.chunk_A for name, pair in pairs.items()})
    lines = ["| between | same gripper |", "|---|---|"]
    lines += [f"| {name} | {pair.gripper:.1%} |" for name, pair in pairs.items()]
    return [distances, "\n".join(lines)]


def _latency(seconds: dict[str, Float64]) -> str:
    lines = ["| inference | p50 | p95 | of the first |", "|---|---|---|---|"]
    reference = None
    for name, seconds_N in seconds.items():
        p50, p95 = np.percentile(seconds_N, (50, 95))
        reference = reference or p50
        lines.append(f"| {name} | {p50:.4f} s | {p95:.4f} s | {p50 / reference:.2f} |")
    return "\n".join(lines)


def _plot(path: Path, comparison: Comparison, names: tuple[str, ...]) -> None:
    rows = {**comparison.to_done, STILL: comparison.still}
    figure, axes = plt.subplots(
        1, 3, figsize=(12, 4), layout="constrained", width_ratios=[3, 3, 1.4]
    )
    width = 0.8 / len(rows)
    for number, (name, row) in enumerate(rows.items()):
        shift = (number - (len(rows) - 1) / 2) * width
        scaled_A = row.chunk_A * SCALE
        for axis, part in zip(axes[:2], (slice(0, 3), slice(3, 6)), strict=True):
            axis.bar(np.arange(3) + shift, scaled_A[part], width * 0.9, label=name)
        axes[2].bar([shift], [row.gripper], width * 0.9)
    for axis, part, unit in zip(axes[:2], (slice(0, 3), slice(3, 6)), ("mm", "mrad"), strict=True):
        axis.set(xticks=range(3), xticklabels=names[part], ylabel=f"mean |difference| [{unit}]")
    axes[2].set(xticks=[0], xticklabels=["gripper as it was"], ylim=(0, 1.02))
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.suptitle(f"{comparison.num_samples} recorded images, chunks of {comparison.horizon}")
    figure.savefig(path, dpi=120)
    plt.close(figure)
