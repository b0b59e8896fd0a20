"""What a demo leaves behind: a video, a plot of the paths, a table."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from nora_bringup.trial import Trial
from nora_bringup.video import Video

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def write_video(path: Path, trials: Sequence[Trial]) -> None:
    """Camera images of all trials, at the speed they were taken, with instruction and outcome."""
    with contextlib.closing(Video(path)) as video:
        offset_ms = 0
        for number, trial in enumerate(trials, 1):
            start_ns = trial.frames[0].stamp_ns if trial.frames else 0
            for frame in trial.frames:
                elapsed_ms = (frame.stamp_ns - start_ns) // 1_000_000
                caption = (
                    f"{number}/{len(trials)}  {trial.instruction}",
                    f"{elapsed_ms / 1000:4.1f} s   outcome: {trial.outcome_name}",
                )
                video.add(frame.rgb_HW3, caption, offset_ms + elapsed_ms)
            offset_ms += elapsed_ms + 500 if trial.frames else 0


def write_plot(path: Path, trials: Sequence[Trial]) -> None:
    """Commanded against measured tool position: over time per axis, and from above."""
    figure, axes = plt.subplots(
        len(trials), 4, figsize=(16, 3.2 * len(trials)), squeeze=False, layout="constrained"
    )
    for row, trial in zip(axes, trials, strict=True):
        commanded, measured = _path(trial.commanded), _path(trial.measured)
        for axis, name in enumerate("xyz", 1):
            plot = row[axis - 1]
            plot.plot(commanded[:, 0], commanded[:, axis], label="commanded", lw=2.5, alpha=0.5)
            plot.plot(measured[:, 0], measured[:, axis], label="measured", lw=1)
            plot.set(xlabel="time [s]", ylabel=f"{name} [m]")
            plot.grid(alpha=0.3)
        row[3].plot(commanded[:, 2], commanded[:, 1], label="commanded", lw=2.5, alpha=0.5)
        row[3].plot(measured[:, 2], measured[:, 1], label="measured", lw=1)
        row[3].set(xlabel="y [m]", ylabel="x [m]", title="from above", aspect="equal")
        row[3].invert_xaxis()
        row[2].legend(fontsize="small")
        row[0].set_title(f"{trial.instruction} ({trial.outcome_name})", loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _path(points: Sequence[tuple[float, float, float, float]]) -> NDArray[np.float64]:
    """(N, 4) of seconds since the first point, x, y, z; NaN where nothing was recorded."""
    path = np.array(points or [(np.nan,) * 4], np.float64)
    path[:, 0] -= path[0, 0]
    return path


def table(trials: Sequence[Trial]) -> str:
    """One line per trial: outcome, chunk rate, inference time and observation age in ms."""
    lines = [
        "| instruction | seed | outcome | distractor grasps | clamped / refused | chunks/s "
        "| inference p50/p95 | observation age p50/p95 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {trial.instruction} | {trial.seed} | {trial.outcome_name} "
        f"| {trial.distractor_grasps} | {trial.clamped} / {trial.refused} "
        f"| {trial.chunk_rate_hz:.1f} "
        f"| {_p50_p95(trial.inference_s)} | {_p50_p95(trial.observation_age_s)} |"
        for trial in trials
    ]
    return "\n".join(lines)


def _p50_p95(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    p50, p95 = np.percentile(seconds, (50, 95)) * 1e3
    return f"{p50:.0f} / {p95:.0f} ms"
