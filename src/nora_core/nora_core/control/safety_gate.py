"""The safety gate: from policy steps to joint targets that keep every limit (numpy layer).

The gate integrates steps into a goal pose, moves the commanded pose towards it within velocity
and acceleration limits, and solves the joints. It commits to a pose only when it has also solved
the whole way from there to standstill, so that it can always stop within the same limits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from nora_core.control.limited_motion import Motion
from nora_core.embodiment import Embodiment, Limits
from nora_core.types import Float64, Pose, Reason, Rejection

ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeTarget:
    """What a driver may send: tool pose, gripper (0 closed ... 1 open), joints (J,), its time."""

    pose: Pose
    gripper: float
    joints_rad: Float64
    stamp_ns: int


@dataclass(frozen=True, slots=True)
class Delta:
    """A step as executed: m and rad (extrinsic x-y-z) about the base axes, gripper opening."""

    translation_m: Float64
    rotation_rad: Float64
    gripper: float


class Kinematics(Protocol):
    """Poses are of the tool in the base frame; joints and their limits are (J,) in rad."""

    lower_rad: Float64
    upper_rad: Float64

    def forward(self, joints_rad: Float64) -> Pose: ...

    def inverse(self, target: Pose, seed_rad: Float64) -> Float64 | None:
        """Joints near `seed_rad` that reach `target`, or None."""


@dataclass(frozen=True, slots=True)
class _Command:
    """Commanded pose, its joints, and the velocity of the pose (x y z m/s, then rad/s)."""

    pose: Pose
    joints_rad: Float64
    velocity_6: Float64


class SafetyGate:
    """Moves the commanded pose; call exactly one of `advance`, `brake`, `freeze` per period.

    Positions never leave the workspace box once they are in it; from outside they only come
    closer. Velocity and acceleration of each Cartesian axis and joint speeds keep their limits,
    except that `anchor` and `freeze` stop at once.
    """

    def __init__(
        self, embodiment: Embodiment, kinematics: Kinematics, control_period_s: float
    ) -> None:
        if embodiment.workspace is None:
            raise ValueError("workspace: the box is missing; the arm will not move")
        self._workspace = embodiment.workspace
        self._box = np.array([self._workspace.min_m, self._workspace.max_m])
        self._limits = embodiment.limits
        self._gripper_index = embodiment.action.gripper_index
        self._kinematics = kinematics
        self._motion = _cartesian_motion(embodiment.limits, control_period_s)
        self._max_joint_step = embodiment.limits.joint_velocity_rad_s * control_period_s
        self._stop_path: deque[_Command] = deque()
        self.stop_time_s = self._motion.stop_time_s
        self.is_anchored = False

    def anchor(self, joints_rad: Float64, gripper: float) -> None:
        """Command these joints from now on, at rest."""
        pose = self._kinematics.forward(joints_rad)
        self._command = _Command(pose, joints_rad.copy(), np.zeros(6))
        self._goal = pose
        self._stop_path.clear()
        self.gripper = float(np.clip(gripper, 0.0, 1.0))
        self.is_anchored = True

    @property
    def pose(self) -> Pose:
        return self._command.pose

    @property
    def joints_rad(self) -> Float64:
        return self._command.joints_rad

    @property
    def is_at_rest(self) -> bool:
        return not self._command.velocity_6.any()

    @property
    def is_at_goal(self) -> bool:
        return self.is_at_rest and not self._error_6().any()

    def start_step(
        self, action_A: Float64, scale: float
    ) -> tuple[Delta | None, list[Rejection[Reason]]]:
        """Add a policy step to the goal pose.

        Args:
            action_A: x y z roll pitch yaw gripper, finite.
            scale: factor on the first six.

        Returns:
            The step as executed, None if refused, and every rule that altered or refused it.
        """
        limits = self._limits
        wanted_6 = action_A[:6] * scale
        bound_6 = np.repeat([limits.step_m, limits.step_rad], 3)
        step_6 = np.clip(wanted_6, -bound_6, bound_6)
        wanted_gripper = action_A[self._gripper_index]
        gripper = float(np.clip(wanted_gripper, 0.0, 1.0))
        position_m = self._goal.position_m + step_6[:3]
        inside_m = self._clip(position_m, self._goal.position_m)
        notes = []
        if np.any(np.abs(wanted_6) > bound_6 * (1 + ROUNDING)):
            notes.append(Rejection(Reason.STEP_LIMIT, _beyond("step", wanted_6, bound_6)))
        if abs(gripper - wanted_gripper) > ROUNDING:
            detail = f"gripper {wanted_gripper:.3g}, limits 0 ... 1"
            notes.append(Rejection(Reason.STEP_LIMIT, detail))
        if np.any(np.abs(inside_m - position_m) > ROUNDING):
            notes.append(self._outside("target", position_m))
            if self._workspace.on_violation == "refuse":
                return None, notes
        delta = Delta(inside_m - self._goal.position_m, step_6[3:], gripper)
        turn = Rotation.from_euler("xyz", step_6[3:])
        self._goal = Pose(inside_m, turn * self._goal.rotation)
        self.gripper = gripper
        return delta, notes

    def aim(self, goal: Pose) -> None:
        """Make `goal`, a pose inside the box, the goal pose."""
        self._goal = goal

    def outside(self, tolerance_m: float = 0.0) -> Rejection[Reason] | None:
        """Say so when the commanded position is further than this outside the box."""
        position_m = self._command.pose.position_m
        if np.max(np.abs(np.clip(position_m, *self._box) - position_m)) <= tolerance_m:
            return None
        return self._outside("tool", position_m)

    def far_outside(self) -> Rejection[Reason] | None:
        """Say so when the tool is more than a step outside; nearer, it may move inwards."""
        outside = self.outside(self._limits.step_m)
        return outside and Rejection(outside.reason, f"{outside.detail}; bridge/home first")

    def advance(self, now_ns: int) -> tuple[SafeTarget, Rejection[Reason] | None]:
        """One period towards the goal.

        Slows down where the joints cannot follow, or could not stop; standing still for that
        reason it gives the goal up and says why.
        """
        if self.is_at_goal:
            return self._target(now_ns), None
        path = self._plan()
        if isinstance(path, Rejection):
            if not self._stop_path:
                return self.brake(now_ns), path
            self._command = self._stop_path.popleft()
        else:
            self._command, *stop_path = path
            self._stop_path = deque(stop_path)
        return self._target(now_ns), None

    def brake(self, now_ns: int) -> SafeTarget:
        """One period of the way to standstill; the goal becomes the commanded pose."""
        if self._stop_path:
            self._command = self._stop_path.popleft()
        self._goal = self._command.pose
        return self._target(now_ns)

    def freeze(self, now_ns: int) -> SafeTarget:
        """Stand still at the last commanded joints, at once."""
        self._command = _Command(self._command.pose, self._command.joints_rad, np.zeros(6))
        self._stop_path.clear()
        return self.brake(now_ns)

    def _plan(self) -> list[_Command] | Rejection[Reason]:
        """The next command towards the goal and all of those from there to standstill."""
        target_6 = np.append(self._command.pose.position_m, np.zeros(3)) + self._error_6()
        path = []
        command = self._next(self._command, target_6)
        while isinstance(command, _Command):
            path.append(command)
            if not command.velocity_6.any():
                return path
            command = self._next(command, None)
        return command

    def _next(self, command: _Command, target_6: Float64 | None) -> _Command | Rejection[Reason]:
        """One period towards the target (position, rotation vector), or of braking without one."""
        # Rotation is re-anchored every period: it is zero now, the target is what remains.
        start_6 = np.append(command.pose.position_m, np.zeros(3))
        if target_6 is None:
            end_6, velocity_6 = self._motion.braking(start_6, command.velocity_6)
        else:
            end_6, velocity_6 = self._motion.towards(start_6, command.velocity_6, target_6)
        position_m = self._clip(end_6[:3], start_6[:3])  # only rounding is left to clip
        pose = Pose(position_m, Rotation.from_rotvec(end_6[3:]) * command.pose.rotation)
        joints_rad = self._kinematics.inverse(pose, command.joints_rad)
        if joints_rad is None:
            return Rejection(Reason.IK, f"no joints reach tool position {_vector(position_m)} m")
        return self._joint_problem(joints_rad, command) or _Command(pose, joints_rad, velocity_6)

    def _joint_problem(self, joints_rad: Float64, before: _Command) -> Rejection[Reason] | None:
        low_rad, high_rad = self._kinematics.lower_rad, self._kinematics.upper_rad
        if np.any(joints_rad < low_rad - ROUNDING) or np.any(joints_rad > high_rad + ROUNDING):
            detail = f"joints {_vector(joints_rad)} rad, limits {_vector(low_rad)} ... "
            return Rejection(Reason.JOINT_LIMIT, detail + f"{_vector(high_rad)}")
        fastest = float(np.max(np.abs(joints_rad - before.joints_rad)))
        if fastest <= self._max_joint_step:
            return None
        detail = f"joint step {fastest:.3g} rad, limit {self._max_joint_step:.3g} per period"
        return Rejection(Reason.JOINT_LIMIT, detail)

    def _error_6(self) -> Float64:
        """From the commanded to the goal pose: m, then rotation vector about the base axes."""
        goal, pose = self._goal, self._command.pose
        if goal is pose:
            return np.zeros(6)
        turn_rad = (goal.rotation * pose.rotation.inv()).as_rotvec()
        error_6 = np.concatenate([goal.position_m - pose.position_m, turn_rad])
        return np.where(np.abs(error_6) < ROUNDING, 0.0, error_6)

    def _clip(self, position_m: Float64, start_m: Float64) -> Float64:
        """Into the box; per axis that starts outside: not further out than there."""
        low_m, high_m = np.minimum(self._box[0], start_m), np.maximum(self._box[1], start_m)
        clipped_m: Float64 = np.clip(position_m, low_m, high_m)
        return clipped_m

    def _outside(self, what: str, position_m: Float64) -> Rejection[Reason]:
        low, high = _vector(self._box[0]), _vector(self._box[1])
        detail = f"{what} {_vector(position_m)} m, box {low} ... {high}"
        return Rejection(Reason.WORKSPACE, detail)

    def _target(self, now_ns: int) -> SafeTarget:
        return SafeTarget(
            pose=self._command.pose,
            gripper=self.gripper,
            joints_rad=self._command.joints_rad,
            stamp_ns=now_ns,
        )


def _cartesian_motion(limits: Limits, period_s: float) -> Motion:
    velocity_6 = np.repeat([limits.velocity_m_s, limits.velocity_rad_s], 3)
    acceleration_6 = np.repeat([limits.acceleration_m_s2, limits.acceleration_rad_s2], 3)
    return Motion(velocity_6, acceleration_6, period_s)


def _beyond(what: str, value_6: Float64, bound_6: Float64) -> str:
    axis = int(np.argmax(np.abs(value_6) / bound_6))
    unit = "m" if axis < 3 else "rad"
    name = ("x", "y", "z", "roll", "pitch", "yaw")[axis]
    return f"{what} {name} {value_6[axis]:.3g} {unit}, limit {bound_6[axis]:.3g}"


def _vector(values: Float64) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
