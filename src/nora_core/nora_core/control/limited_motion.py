"""Motion of independent axes under velocity and acceleration limits, one period at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import ruckig

from nora_core.types import Float64


class Motion:
    """Advances N axes by one period; velocity and acceleration stay within each axis' limits.

    Both methods take and return position and velocity, (N,) each. An axis whose point of
    standstill and whose target lie in an interval never leaves it.

    Args:
        velocity_N, acceleration_N: limits per axis, units of the position per s and s^2.
        period_s: length of one period.
    """

    def __init__(self, velocity_N: Float64, acceleration_N: Float64, period_s: float) -> None:
        self._acceleration_N = acceleration_N
        self._period_s = period_s
        self.stop_time_s = float(np.max(velocity_N / acceleration_N))
        self._ruckig = ruckig.Ruckig(1)
        self._trajectory = ruckig.Trajectory(1)
        self._inputs = [
            _axis_input(*limits) for limits in zip(velocity_N, acceleration_N, strict=True)
        ]

    def towards(
        self, position_N: Float64, velocity_N: Float64, target_N: Float64
    ) -> tuple[Float64, Float64]:
        """One period on the time-optimal way to rest at the target."""
        end_N, end_velocity_N = self.braking(position_N, velocity_N)
        for i, axis in enumerate(self._inputs):
            axis.current_position = position_N[i : i + 1]
            axis.current_velocity = velocity_N[i : i + 1]
            axis.target_position = target_N[i : i + 1]
            try:
                self._ruckig.calculate(axis, self._trajectory)
            except ruckig.RuckigError:
                continue  # ruckig fails where braking alone leads to the target; then brake
            (end_N[i],), (end_velocity_N[i],), _ = self._trajectory.at_time(self._period_s)
        return end_N, end_velocity_N

    def braking(self, position_N: Float64, velocity_N: Float64) -> tuple[Float64, Float64]:
        """One period on the shortest way to rest."""
        deceleration_N = -np.sign(velocity_N) * self._acceleration_N
        time_N = np.minimum(self._period_s, np.abs(velocity_N) / self._acceleration_N)
        position_N = position_N + velocity_N * time_N + 0.5 * deceleration_N * time_N**2
        stops_N = time_N < self._period_s
        return position_N, np.where(stops_N, 0.0, velocity_N + deceleration_N * time_N)


def _axis_input(velocity: float, acceleration: float) -> Any:
    axis = ruckig.InputParameter(1)
    axis.max_velocity = [velocity]
    axis.max_acceleration = [acceleration]
    axis.max_jerk = [np.inf]
    return axis
