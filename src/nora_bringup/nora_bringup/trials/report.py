"""What a demo leaves behind: a video, a plot of the paths, a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from nora_bringup.trials.trial import Trial
from nora_core.trials.video import Video, beside, beside_width

matplotlib.use("Agg")
import matplotlib.pyplot as plt


class TrialVideo:
    """Camera images of trials, at the speed they were taken, with instruction and outcome."""

    def __init__(self, path: Path, num_trials: int) -> None:
        self._path, self._num_trials, self._number = path, num_trials, 0
        self._video: Video | None = None
        self._offset_ms = 0
        self._last_ms = -1

    def __enter__(self) -> TrialVideo:
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.close()

    def add(self, trial: Trial) -> None:
        """The next trial, first camera large, the others beside it."""
        self._number += 1
        if not trial.views:
            return
        if self._video is None:
            self._video = Video(self._path, beside_width(len(trial.views[0]) - 1))
        elapsed_ms, start_ns = 0, trial.views[0][0].stamp_ns
        for first, *others in trial.views:
            elapsed_ms = (first.stamp_ns - start_ns) // 1_000_000
            if self._offset_ms + elapsed_ms <= self._last_ms:
                continue  # came late, behind a newer one
            self._last_ms = self._offset_ms + elapsed_ms
            caption = (
                f"{self._number}/{self._num_trials}  {trial.instruction}",
                f"{elapsed_ms / 1000:4.1f} s   outcome: {trial.outcome_name}",
            )
            picture_HW3 = beside(first.rgb_HW3, [frame.rgb_HW3 for frame in others])
            self._video.add(picture_HW3, caption, self._last_ms)
        self._offset_ms = self._last_ms + 500


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
    """One line per trial: outcome, chunk rate, inference time and observation age in ms.

    Inference takes its time on the computer's clock, everything else is on that of the nodes.
    """
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
