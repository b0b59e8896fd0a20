"""Whether the arm is where it was commanded to be."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from nora_core.control.safety_gate import SafeTarget
from nora_core.embodiment import Arm, Safety
from nora_core.types import ArmState, Reason, Rejection


class TrackingMonitor:
    """Compares measured joints with those that were commanded when they were measured."""

    def __init__(self, arm: Arm, safety: Safety, control_period_s: float) -> None:
        self._names = arm.joint_names
        self._limit_rad = safety.max_tracking_error_rad
        # Reaches as far back as the oldest measurement that still counts as fresh.
        num_sent = math.ceil(safety.max_state_age_s / control_period_s) + 2
        self._sent: deque[SafeTarget] = deque(maxlen=num_sent)

    def record(self, target: SafeTarget) -> None:
        """Remember a target that is sent."""
        self._sent.append(target)

    def clear(self) -> None:
        """Forget every target."""
        self._sent.clear()

    def problem(self, state: ArmState | None) -> Rejection[Reason] | None:
        """Which joint is too far from its command, if one is."""
        if state is None or not self._sent:
            return None
        until_then = [target for target in self._sent if target.stamp_ns <= state.stamp_ns]
        commanded = until_then[-1] if until_then else self._sent[0]
        error_rad = np.abs(state.joints_rad - commanded.joints_rad)
        worst = int(np.argmax(error_rad))
        if error_rad[worst] <= self._limit_rad:
            return None
        detail = (
            f"{self._names[worst]} is {error_rad[worst]:.3f} rad from its command, "
            f"limit {self._limit_rad:g}"
        )
        return Rejection(Reason.TRACKING, detail)
