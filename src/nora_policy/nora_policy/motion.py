"""Motion of independent axes under velocity and acceleration limits, one period at a time."""

from __future__ import annotations

import numpy as np
import ruckig  # type: ignore[import-not-found]

from nora_policy.types import Float64


class Motion:
    """Advances N axes by one period; velocity and acceleration stay within each axis' limits.

    Both methods take and return position and velocity, (N,) each. An axis whose point of
    standstill and whose target lie in an interval never leaves it.

    Args:
        velocity_N, acceleration_N: limits per axis, units of the position per s and s^2.
        period_s: length of one period.
    """

    def __init__(self, velocity_N: Float64, acceleration_N: Float64, period_s: float) -> None:
        num_axes = len(velocity_N)
        self._acceleration_N = acceleration_N
        self._period_s = period_s
        self.stop_time_s = float(np.max(velocity_N / acceleration_N))
        self._ruckig = ruckig.Ruckig(num_axes)
        self._trajectory = ruckig.Trajectory(num_axes)
        self._input = ruckig.InputParameter(num_axes)
        self._input.max_velocity = velocity_N
        self._input.max_acceleration = acceleration_N
        self._input.max_jerk = np.full(num_axes, np.inf)
        self._input.synchronization = ruckig.Synchronization.No

    def towards(
        self, position_N: Float64, velocity_N: Float64, target_N: Float64
    ) -> tuple[Float64, Float64]:
        """On the time-optimal way to rest at the target."""
        self._input.current_position = position_N
        self._input.current_velocity = velocity_N
        self._input.target_position = target_N
        result = self._ruckig.calculate(self._input, self._trajectory)
        if result not in (ruckig.Result.Working, ruckig.Result.Finished):
            return self.braking(position_N, velocity_N)
        position, velocity, _ = self._trajectory.at_time(self._period_s)
        return np.array(position), np.array(velocity)

    def braking(self, position_N: Float64, velocity_N: Float64) -> tuple[Float64, Float64]:
        """On the shortest way to rest anywhere."""
        deceleration_N = -np.sign(velocity_N) * self._acceleration_N
        time_N = np.minimum(self._period_s, np.abs(velocity_N) / self._acceleration_N)
        position_N = position_N + velocity_N * time_N + 0.5 * deceleration_N * time_N**2
        stops_N = time_N < self._period_s
        return position_N, np.where(stops_N, 0.0, velocity_N + deceleration_N * time_N)
