"""A comparison of policies as Markdown tables and a plot."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from nora_core.types import Float64
from nora_training.evaluation.compare.distances import Comparison, Distance

matplotlib.use("Agg")
import matplotlib.pyplot as plt

UNITS = (*["mm"] * 3, *["mrad"] * 3, "opening")
VISIBLE = 1e-6  # m or rad
SCALE = np.array([*[1e3] * 6, 1.0])
STILL = "no motion, gripper open"


def write_report(folder: Path, comparison: Comparison, names: tuple[str, ...]) -> str:
    """The text of `compare.md`, which is written beside `compare.png` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {**comparison.to_done, STILL: comparison.still}
    pairs = {f"{a} - {b}": between for (a, b), between in comparison.between.items()}
    text = "\n\n".join(
        [
            f"# {len(comparison.to_done)} policies on {comparison.num_samples} recorded images",
            "Mean absolute difference from the demonstrated actions, of the first step of a chunk "
            f"and of its {comparison.horizon} steps. Steps past the end of an episode "
            "are left out.",
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
    lines = ["| gripper | open or closed as demonstrated |", "|---|---|"]
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
    lines = ["| inference | p50 | p95 | relative to the first |", "|---|---|---|---|"]
    reference = None
    for name, seconds_N in seconds.items():
        p50, p95 = np.percentile(seconds_N, (50, 95))
        reference = reference or p50
        lines.append(f"| {name} | {p50:.4f} s | {p95:.4f} s | {p50 / reference:.2f} |")
    return "\n".join(lines)


def _plot(path: Path, comparison: Comparison, names: tuple[str, ...]) -> None:
    """One panel per unit; dimensions that differ nowhere get no bars, panels without bars go."""
    rows = {**comparison.to_done, STILL: comparison.still}
    differs_A = np.any([row.chunk_A > VISIBLE for row in rows.values()], axis=0)
    panels = [
        (unit, [i for i, of in enumerate(UNITS) if of == unit and differs_A[i]])
        for unit in ("mm", "mrad")
    ]
    panels = [(unit, dims) for unit, dims in panels if dims]
    figure, axes = plt.subplots(
        1,
        len(panels) + 1,
        figsize=(3.5 + 4 * len(panels), 4),
        layout="constrained",
        width_ratios=[*(1 + len(dims) for _, dims in panels), 2],
        squeeze=False,
    )
    width = 0.8 / len(rows)
    for number, (name, row) in enumerate(rows.items()):
        shift = (number - (len(rows) - 1) / 2) * width
        scaled_A = row.chunk_A * SCALE
        for axis, (_, dims) in zip(axes[0], panels, strict=False):
            axis.bar(np.arange(len(dims)) + shift, scaled_A[dims], width * 0.9, label=name)
        bars = axes[0, -1].bar([shift], [row.gripper], width * 0.9, label=name)
        axes[0, -1].bar_label(bars, fmt="{:.0%}", fontsize="small")
    for axis, (unit, dims) in zip(axes[0], panels, strict=False):
        axis.set(xticks=range(len(dims)), xticklabels=[names[i] for i in dims])
        axis.set_ylabel(f"mean |difference| [{unit}]")
    axes[0, -1].set(xticks=[0], xticklabels=["gripper as demonstrated"], ylim=(0, 1.1))
    for axis in axes[0]:
        axis.grid(axis="y", alpha=0.3)
    handles, labels = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside lower center", ncols=3)
    figure.suptitle(f"{comparison.num_samples} recorded images, chunks of {comparison.horizon}")
    figure.savefig(path, dpi=120)
    plt.close(figure)
