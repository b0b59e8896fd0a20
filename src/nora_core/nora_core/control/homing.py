"""The home motion: inside the workspace box as the policy would move, the rest joint by joint."""

from __future__ import annotations

import numpy as np

from nora_core.control.limited_motion import Motion
from nora_core.control.safety_gate import Kinematics, SafeTarget, SafetyGate
from nora_core.embodiment import Arm, Limits
from nora_core.types import Float64


class Homing:
    """Moves the gate's command to the home joints; call one method per control period.

    The second part, joint by joint, is the only motion that may pass outside the box, where it
    has to: when it starts there, or when no other way to the home joints exists.

    Raises:
        ValueError: the home joints are outside their limits, or the tool is then outside the box.
    """

    def __init__(
        self,
        *,
        arm: Arm,
        limits: Limits,
        kinematics: Kinematics,
        gate: SafetyGate,
        control_period_s: float,
    ) -> None:
        self._kinematics, self._gate = kinematics, gate
        self._home_rad: Float64 = np.array(arm.home_rad)
        self._home_gripper = arm.home_gripper
        self._check_home()
        ones = np.ones(len(self._home_rad))
        self._motion = Motion(
            limits.joint_velocity_rad_s * ones,
            limits.joint_acceleration_rad_s2 * ones,
            control_period_s,
        )
        self._velocity_rad_s: Float64 | None = None  # not None while joints, not poses, move

    @property
    def is_moving_joints(self) -> bool:
        """Whether the second part has begun and not yet come to rest."""
        return self._velocity_rad_s is not None

    def abort(self) -> None:
        """End the joint motion at once, without braking."""
        self._velocity_rad_s = None

    def approach(self, now_ns: int) -> SafeTarget:
        """First part: move the tool pose home, as far as the gate lets it."""
        gate = self._gate
        gate.gripper = self._home_gripper
        if gate.far_outside():
            target, is_done = gate.brake(now_ns), gate.is_at_rest
        else:
            gate.aim(self._kinematics.forward(self._home_rad))
            target, rejection = gate.advance(now_ns)
            is_done = gate.is_at_goal or rejection is not None
        if is_done:
            self._velocity_rad_s = np.zeros_like(self._home_rad)
        return target

    def move_joints(self, now_ns: int, is_stopping: bool) -> tuple[SafeTarget, bool]:
        """Second part: the joints move home, or brake; says whether they have arrived."""
        assert self._velocity_rad_s is not None, "only while is_moving_joints"
        start_rad = self._gate.joints_rad
        if is_stopping:
            joints_rad, velocity = self._motion.braking(start_rad, self._velocity_rad_s)
        else:
            joints_rad, velocity = self._motion.towards(
                start_rad, self._velocity_rad_s, self._home_rad
            )
        self._gate.anchor(joints_rad, self._gate.gripper)
        is_at_rest = not velocity.any()
        self._velocity_rad_s = None if is_at_rest else velocity
        is_home = np.allclose(joints_rad, self._home_rad, rtol=0.0, atol=1e-6)
        return self._gate.brake(now_ns), is_at_rest and is_home and not is_stopping

    def _check_home(self) -> None:
        low, high = self._kinematics.lower_rad, self._kinematics.upper_rad
        if np.any(self._home_rad < low) or np.any(self._home_rad > high):
            raise ValueError(
                f"arm.home_rad: expected joints within {low.tolist()} ... {high.tolist()}, "
                f"got {self._home_rad.tolist()}"
            )
        self._gate.anchor(self._home_rad, self._home_gripper)
        if outside := self._gate.outside():
            raise ValueError(f"arm.home_rad: expected the tool in the box, got {outside.detail}")
        self._gate.is_anchored = False
