"""Commanded or measured motion to actions on a grid of steps (no bags, no images).

Legend: M knots of a path, N steps, A action dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

from nora_core.types import Float64

Int64 = NDArray[np.int64]

NOOP_NORM = 1e-4  # m and rad together, as the filter of NORA's LIBERO data has it
GRIPPER_STILL = 1e-3  # of the opening: a measured finger trembles


@dataclass(frozen=True, slots=True)
class ToolPath:
    """Path of the tool in the base frame: linear between knots, at rest before and after them.

    `stamps_M`: int64 ns, strictly increasing; `positions_M3`: m; `rotations`: M of them.
    """

    stamps_M: Int64
    positions_M3: Float64
    rotations: Rotation

    def __post_init__(self) -> None:
        if len(self.stamps_M) < 2 or (np.diff(self.stamps_M) <= 0).any():
            raise ValueError("path: expected at least two knots in increasing time")

    def steps(self, grid: Int64) -> Float64:
        """Motion within each period of `grid` (N + 1,) ns, (N, 6).

        x y z in m, then roll pitch yaw in rad (extrinsic x-y-z), all about the base axes: what
        is added to, or applied on the left of, the pose at the start of the period.
        """
        knots_s, times_s = self._seconds(grid)
        rotations = Slerp(knots_s, self.rotations)(times_s)
        turns = (rotations[1:] * rotations[:-1].inv()).as_euler("xyz")
        return np.hstack([np.diff(self.positions(grid), axis=0), turns])

    def positions(self, times_N: Int64) -> Float64:
        """Positions (N, 3) at `times_N`, ns; the first or last one outside of the path."""
        knots_s, times_s = self._seconds(times_N)
        return np.stack([np.interp(times_s, knots_s, p) for p in self.positions_M3.T], axis=1)

    def is_known(self, grid: Int64, max_gap_ns: int) -> NDArray[np.bool_]:
        """Mask of the periods of `grid` (N + 1,) clear of knots more than `max_gap_ns` apart."""
        before = np.flatnonzero(np.diff(self.stamps_M) > max_gap_ns)
        begins, ends = self.stamps_M[before], self.stamps_M[before + 1]
        is_in_gap = (grid[:-1, None] < ends) & (grid[1:, None] > begins)
        return np.logical_not(is_in_gap.any(axis=1))

    def _seconds(self, times_N: Int64) -> tuple[Float64, Float64]:
        """Knots and times since the first knot: float64 holds no epoch in ns."""
        start = self.stamps_M[0]
        knots_s = (self.stamps_M - start) * 1e-9
        return knots_s, np.clip((times_N - start) * 1e-9, 0.0, knots_s[-1])


def commanded_path(
    stamps_N: Int64, translations_N3: Float64, rotations_N3: Float64, period_ns: int
) -> ToolPath:
    """Integrate relative steps to a path from the origin.

    A step takes one period, or less when the next one starts earlier.

    Args:
        stamps_N: start of each step, ns, strictly increasing.
        translations_N3: m, added along the base axes.
        rotations_N3: rad, extrinsic x-y-z about the base axes, applied on the left.
        period_ns: the step period.
    """
    if (np.diff(stamps_N) <= 0).any():
        raise ValueError("commands: expected one at a time, got two of the same time or disorder")
    ends_N = stamps_N + period_ns
    ends_N[:-1] = np.minimum(ends_N[:-1], stamps_N[1:])
    poses = [Rotation.identity()]
    for turn in Rotation.from_euler("xyz", rotations_N3):
        poses.append(turn * poses[-1])
    positions = np.vstack([np.zeros(3), np.cumsum(translations_N3, axis=0)])
    stamps = np.stack([stamps_N, ends_N], axis=1).ravel()
    before_after = np.stack([np.arange(len(stamps_N)), np.arange(len(stamps_N)) + 1], axis=1)
    stamps, first = np.unique(stamps, return_index=True)
    pose = before_after.ravel()[first]
    return ToolPath(stamps, positions[pose], Rotation.concatenate(poses)[pose])


def held(stamps_M: Int64, values_M: Float64, times_N: Int64) -> Float64:
    """Zero-order hold: the newest value at each time, (N,); the first value before any."""
    newest = np.searchsorted(stamps_M, times_N, side="right") - 1
    return values_M[np.maximum(newest, 0)]


def moving(actions_NA: Float64) -> NDArray[np.bool_]:
    """Which steps to keep: all but those that move less than 1e-4 and leave the gripper alone.

    The gripper is compared with that of the last step kept (NORA, LIBERO data without no-ops).
    """
    is_far = np.linalg.norm(actions_NA[:, :6], axis=1) >= NOOP_NORM
    keep = np.zeros(len(actions_NA), np.bool_)
    gripper = actions_NA[0, 6] if len(actions_NA) else 0.0
    for i, opening in enumerate(actions_NA[:, 6]):
        keep[i] = is_far[i] or abs(opening - gripper) > GRIPPER_STILL
        gripper = opening if keep[i] else gripper
    return keep
