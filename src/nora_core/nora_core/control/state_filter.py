"""Which measured arm states are accepted, and whether the last one can still be used."""

from __future__ import annotations

import numpy as np

from nora_core.control.safety_gate import Kinematics
from nora_core.embodiment import Safety
from nora_core.types import ZERO_STAMP, ArmState, Float64, Reason, Rejection

CONFIRMATIONS = 3
LIMIT_TOLERANCE_RAD = 0.1  # calibration error that a measured joint may show


class StateFilter:
    """Keeps the last accepted measurement.

    A measurement of wrong shape, not finite or outside the joint limits is rejected, an older one
    is ignored. The first measurement, and one that jumped by more than `max_tracking_error_rad`,
    is accepted once `CONFIRMATIONS` in a row agree.
    """

    def __init__(self, kinematics: Kinematics, safety: Safety) -> None:
        self._kinematics = kinematics
        self._safety = safety
        self._pending: ArmState | None = None  # waits for confirmation
        self._confirmations = 0
        self.state: ArmState | None = None

    def put(self, state: ArmState) -> Rejection[Reason] | None:
        """Take a measurement, or say why it cannot be used."""
        rejection = self._rejection(state)
        if rejection is None and (self.state is None or self._is_later(state, self.state)):
            self._accept(state)
        return rejection

    def problem(self, now_ns: int) -> Rejection[Reason] | None:
        """Why there is no usable measurement at `now_ns`, if so."""
        if self.state is None:
            return Rejection(Reason.STATE_MISSING, "no joint state yet")
        limit_s = self._safety.max_state_age_s
        if abs(now_ns - self.state.stamp_ns) * 1e-9 <= limit_s:
            return None
        if self.state.stamp_ns == 0:
            return Rejection(Reason.STATE_STALE, f"joint state: {ZERO_STAMP}")
        return Rejection(Reason.STATE_STALE, f"joint state is older than {limit_s:g} s")

    def within_limits(self, joints_rad: Float64) -> Float64:
        """Clip joints (J,) to their limits."""
        limited: Float64 = np.clip(
            joints_rad, self._kinematics.lower_rad, self._kinematics.upper_rad
        )
        return limited

    def _rejection(self, state: ArmState) -> Rejection[Reason] | None:
        shape, expected = state.joints_rad.shape, self._kinematics.lower_rad.shape
        if shape != expected:
            return Rejection(Reason.WRONG_SHAPE, f"joints of shape {shape}, expected {expected}")
        if not (np.isfinite(state.joints_rad).all() and np.isfinite(state.gripper)):
            return Rejection(Reason.NON_FINITE, f"joint state {state.joints_rad.tolist()}")
        excess_rad = np.abs(state.joints_rad - self.within_limits(state.joints_rad))
        if np.any(excess_rad > LIMIT_TOLERANCE_RAD):
            detail = f"measured joints {state.joints_rad.tolist()} rad are outside their limits"
            return Rejection(Reason.JOINT_LIMIT, detail)
        return None

    def _is_later(self, state: ArmState, than: ArmState) -> bool:
        """Later, or so much earlier that the clock must have been set back."""
        age_s = (than.stamp_ns - state.stamp_ns) * 1e-9
        return age_s < 0 or age_s > self._safety.max_state_age_s

    def _accept(self, state: ArmState) -> None:
        if not self._is_near(state, self.state):
            agrees = self._is_near(state, self._pending)
            self._confirmations = self._confirmations + 1 if agrees else 1
            self._pending = state
            if self._confirmations < CONFIRMATIONS:
                return
        self.state, self._pending = state, None

    def _is_near(self, state: ArmState, other: ArmState | None) -> bool:
        if other is None:
            return False
        jump_rad = np.max(np.abs(state.joints_rad - other.joints_rad))
        return bool(jump_rad <= self._safety.max_tracking_error_rad)
