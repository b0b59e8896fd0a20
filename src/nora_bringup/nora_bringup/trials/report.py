"""The results of trials over ROS: a video, a plot of the paths, a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from nora_bringup.trials.telemetry import StampedPosition, Trial, View
from nora_core.embodiment import Workspace
from nora_core.trials.video import Video, beside, beside_width
from nora_core.types import Outcome

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

LAST_PICTURE_MS = 1500  # how long the end of a trial, with its outcome, stays
COMMANDED: dict[str, Any] = {"label": "commanded", "color": "tab:blue", "lw": 3.0, "alpha": 0.45}
MEASURED: dict[str, Any] = {"label": "measured", "color": "tab:orange", "lw": 1.2}
BOX: dict[str, Any] = {"label": "workspace", "color": "tab:red", "lw": 1.0, "ls": "--"}


class TrialVideo:
    """Camera images of trials at the speed they were taken, with instruction and outcome."""

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
        """Append a trial: the first camera, and the others beside it."""
        self._number += 1
        if not trial.views:
            return
        if self._video is None:
            self._video = Video(self._path, beside_width(len(trial.views[0].frames) - 1))
        elapsed_ms, start_ns = 0, trial.views[0].frames[0].stamp_ns
        for view in trial.views:
            elapsed_ms = (view.frames[0].stamp_ns - start_ns) // 1_000_000
            if self._offset_ms + elapsed_ms > self._last_ms:  # else it came after a newer one
                self._show(trial, view, elapsed_ms, _progress(view.outcome))
        end = View(trial.views[-1].frames, trial.outcome)
        for pause_ms in (100, LAST_PICTURE_MS):  # the second gives the first its duration
            self._show(trial, end, elapsed_ms + pause_ms, f"outcome: {trial.outcome.text}")
        self._offset_ms = self._last_ms + 100

    def _show(self, trial: Trial, view: View, elapsed_ms: int, text: str) -> None:
        assert self._video is not None
        first, *others = (frame.rgb_HW3 for frame in view.frames)
        caption = (
            f"{self._number}/{self._num_trials}  {trial.instruction}",
            f"{elapsed_ms / 1000:4.1f} s   {text}",
        )
        self._last_ms = self._offset_ms + elapsed_ms
        self._video.add(beside(first, others), caption, self._last_ms)


def _progress(outcome: Outcome) -> str:
    """What is known during a trial, when no success is only not yet one."""
    return {Outcome.SUCCESS: "success", Outcome.PARTIAL: "grasped"}.get(outcome, "")


def write_paths(path: Path, trials: Sequence[Trial], workspace: Workspace | None) -> None:
    """Plot commanded and measured tool positions, a row per trial.

    From above at equal scales, with the workspace box, and over time for each axis.
    """
    figure, axes = plt.subplots(
        len(trials),
        4,
        figsize=(18, 4.2 * len(trials)),
        width_ratios=(1.2, 1, 1, 1),
        squeeze=False,
        layout="constrained",
    )
    for row, trial in zip(axes, trials, strict=True):
        commanded, measured = _path(trial.commanded), _path(trial.measured)
        _plot_from_above(row[0], commanded, measured, workspace)
        row[0].set_title(f"{trial.instruction}: {trial.outcome.text}", loc="left")
        for axis, name in enumerate("xyz", 1):
            plot = row[axis]
            plot.plot(commanded[:, 0], commanded[:, axis], **COMMANDED)
            plot.plot(measured[:, 0], measured[:, axis], **MEASURED)
            if workspace is not None:
                for limit_m in (workspace.min_m[axis - 1], workspace.max_m[axis - 1]):
                    plot.axhline(limit_m, **BOX)
            plot.set(xlabel="time [s]", title=f"{name} [m]")
            plot.grid(alpha=0.3)
    handles, labels = axes[0][1].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper right", ncols=3)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _plot_from_above(
    plot: Axes,
    commanded: NDArray[np.float64],
    measured: NDArray[np.float64],
    workspace: Workspace | None,
) -> None:
    """The table as the robot sees it: x away from it, y to its left."""
    plot.plot(commanded[:, 2], commanded[:, 1], **COMMANDED)
    plot.plot(measured[:, 2], measured[:, 1], **MEASURED)
    if len(measured):
        plot.plot(measured[0, 2], measured[0, 1], "o", color="black", ms=5)
        plot.annotate(
            "start", (measured[0, 2], measured[0, 1]), (6, 6), textcoords="offset points"
        )
    if workspace is not None:
        (x0, y0, _), (x1, y1, _) = workspace.min_m, workspace.max_m
        plot.add_patch(Rectangle((y0, x0), y1 - y0, x1 - x0, fill=False, **BOX))
        plot.set(xlim=(y1 + 0.03, y0 - 0.03), ylim=(x0 - 0.03, x1 + 0.03))
    else:
        plot.invert_xaxis()
    plot.set(xlabel="y [m]", ylabel="x [m]", aspect="equal")
    plot.grid(alpha=0.3)


def _path(points: Sequence[StampedPosition]) -> NDArray[np.float64]:
    """(N, 4): seconds since the first point, x, y, z."""
    path = np.array(points, np.float64).reshape(-1, 4)
    path[:, 0] -= path[:1, 0].sum()
    return path


def table(trials: Sequence[Trial]) -> str:
    """One line per trial: outcome, chunk rate, inference time and observation age in ms.

    Inference time is measured on the computer's clock, everything else on that of the nodes.
    """
    lines = [
        "| instruction | seed | outcome | distractor grasps | clamped / refused | chunks/s "
        "| inference p50/p95 | observation age p50/p95 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {trial.instruction} | {trial.seed} | {trial.outcome.text} "
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
