"""The quality of a data set as Markdown, with plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from nora_core.normalization import Statistics
from nora_training.data.dataset import Dataset
from nora_training.data.quality import EpisodeQuality, Quality

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ACTIONS, EPISODES = "actions.png", "episodes.png"
WORST = 20
UNITS = (*["m"] * 3, *["rad"] * 3, "opening")


def write_report(folder: Path, dataset: Dataset, statistics: Statistics, quality: Quality) -> Path:
    """Write `report.md` and its plots into `folder`; returns the path of the report."""
    folder.mkdir(parents=True, exist_ok=True)
    _plot_actions(folder / ACTIONS, dataset, statistics)
    _plot_episodes(folder / EPISODES, dataset, quality)
    path = folder / "report.md"
    path.write_text(_markdown(dataset, statistics, quality))
    return path


def _markdown(dataset: Dataset, statistics: Statistics, quality: Quality) -> str:
    steps = sum(entry.num_steps for entry in dataset.entries)
    duration_s = sum(e.duration_s for e in quality.episodes)
    sides = [dataset.split(entry) for entry in dataset.entries]
    lines = [
        f"# {len(sides)} episodes, {steps} steps, {duration_s / 60:.1f} min",
        "",
        f"Robot {dataset.embodiment.name}; {sides.count('train')} episodes to train on, "
        f"{sides.count('val')} to validate.",
        "",
        "## Problems",
        "",
        *(f"- {problem}" for problem in quality.problems or ("none found",)),
        *(f"- (no fault) {remark}" for remark in quality.remarks),
        "",
        "## Instructions and outcomes",
        "",
        *_table(("episodes", "instruction"), [(n, t) for t, n in quality.instructions.items()]),
        "",
        *_table(("episodes", "outcome"), [(n, t) for t, n in quality.outcomes.items()]),
        "",
        "## Actions",
        "",
        *_table(
            ("action", "unit", "q01", "q99", "sign as measured"), _actions(statistics, quality)
        ),
        "",
        f"![Histograms of all actions]({ACTIONS})",
        "",
        f"## Episodes, the {WORST} jerkiest",
        "",
        *_table(
            ("bag", "s", "jerk m/s³", "still", "no image", "clipped", "oldest image s"),
            _episodes(quality.episodes),
        ),
        "",
        f"![Jerk, stillness and clipping per episode]({EPISODES})",
    ]
    return "\n".join(lines) + "\n"


def _actions(statistics: Statistics, quality: Quality) -> list[tuple[object, ...]]:
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    signs = [_percent(share) for share in quality.agreement_6] + ["–"]
    q01, q99 = ([f"{value:.4f}" for value in q] for q in (statistics.q01_A, statistics.q99_A))
    return list(zip(names, UNITS, q01, q99, signs, strict=True))


def _episodes(episodes: Sequence[EpisodeQuality]) -> list[tuple[object, ...]]:
    return [
        (
            e.entry.bag,
            f"{e.duration_s:.1f}",
            f"{e.jerk_m_s3:.2f}",
            *(_percent(share) for share in (e.still, e.unseen, e.clipped)),
            f"{e.oldest_image_s:.3f}",
        )
        for e in sorted(episodes, key=lambda e: -e.jerk_m_s3)[:WORST]
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in cells]


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{share:.0%}"


def _plot_actions(path: Path, dataset: Dataset, statistics: Statistics) -> None:
    actions = np.concatenate([dataset.steps(entry).actions_NA for entry in dataset.entries])
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.5), layout="constrained")
    for i, name in enumerate(dataset.embodiment.action.names):
        plot = axes.flat[i]
        plot.hist(actions[:, i], bins=60, color="tab:blue")
        plot.set(xlabel=f"{name} [{UNITS[i]}]", ylabel="steps", yscale="log", ylim=(0.7, None))
        plot.locator_params(axis="x", nbins=4)
        if statistics.mask_A[i]:
            for value in (statistics.q01_A[i], statistics.q99_A[i]):
                plot.axvline(value, color="tab:red", lw=1, ls="--")
    axes.flat[-1].axis("off")
    axes.flat[-1].text(0.1, 0.5, "dashed: the 1 % and 99 %\nquantiles of normalisation")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _plot_episodes(path: Path, dataset: Dataset, quality: Quality) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(13, 6.5), layout="constrained")
    bars = (
        ("jerk [m/s³]", [e.jerk_m_s3 for e in quality.episodes]),
        ("still [%]", [100 * e.still for e in quality.episodes]),
        ("clipped [%]", [100 * e.clipped for e in quality.episodes]),
    )
    numbers = np.arange(len(quality.episodes))
    for plot, (label, values) in zip(axes.flat[:3], bars, strict=True):
        plot.bar(numbers, values, width=1.0, color="tab:blue", edgecolor="white", lw=0.3)
        plot.set(xlabel="episode, as in index.json", ylabel=label)
        plot.set_ylim(0, max(*values, 0.1) * 1.05)
    plot = axes.flat[3]
    names = dataset.embodiment.action.names[:6]
    plot.bar(names, 100 * np.nan_to_num(quality.agreement_6), color="tab:green")
    plot.axhline(50, color="tab:red", lw=1, ls="--")
    plot.set(ylabel="same sign as measured [%]", ylim=(0, 105))
    figure.savefig(path, dpi=110)
    plt.close(figure)
