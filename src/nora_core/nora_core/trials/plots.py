"""The plot of a trial sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from nora_core.trials.statistics import Share

GROUP_WIDTH_IN = 0.55  # of one bar with its number
SHOWN_NUMBERS = 24  # with more bars, the numbers over them overlap


def write_plot(path: Path, bars: Mapping[str, Mapping[str, Share]], title: str) -> None:
    """Shares with their intervals: a cluster for each thing counted, a bar for each group.

    Args:
        path: path of the image file.
        bars: by group, then by what is counted, which is the same for all groups.
        title: title of the plot.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counted = list(next(iter(bars.values())))
    num_bars = len(bars) * len(counted)
    size = (max(7.0, 1.5 + GROUP_WIDTH_IN * num_bars), 4.8 + 0.25 * len(bars))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    width = 0.8 / len(bars)
    for number, (label, of_group) in enumerate(bars.items()):
        shares = [of_group[name] for name in counted]
        centers = np.arange(len(counted)) + (number - (len(bars) - 1) / 2) * width
        values = [s.value for s in shares]
        drawn = axes.bar(centers, values, width * 0.9, label=label)
        axes.errorbar(centers, values, _whiskers(shares), fmt="none", ecolor="black", capsize=3)
        if num_bars <= SHOWN_NUMBERS:
            for bar, found in zip(drawn, shares, strict=True):
                place = (bar.get_x() + bar.get_width() / 2, found.high)
                text = f"{100 * found.value:.0f}%"
                axes.annotate(
                    text, place, (0, 3), textcoords="offset points", ha="center", fontsize="small"
                )
    axes.set(xticks=range(len(counted)), xticklabels=counted, ylim=(0, 1.1), title=title)
    axes.set(yticks=np.linspace(0, 1, 6), ylabel="share of trials, 95 % Wilson interval")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _whiskers(shares: Sequence[Share]) -> list[list[float]]:
    """Lengths below and above the values; never below zero by rounding."""
    return [
        [max(0.0, s.value - s.low) for s in shares],
        [max(0.0, s.high - s.value) for s in shares],
    ]
