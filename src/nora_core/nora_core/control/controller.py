"""What the arm does now: modes, e-stop, home motion and every reason to hold; free of ROS."""

from __future__ import annotations

import math
from collections import Counter, deque

import numpy as np

from nora_core.control.chunk_player import ChunkPlayer, Hold, Step
from nora_core.control.limited_motion import Motion
from nora_core.control.safety_gate import Kinematics, Reason, Refusal, SafeTarget, SafetyGate
from nora_core.control.status import Executed, Mode, ModeError, Status
from nora_core.embodiment import Embodiment
from nora_core.types import ActionChunk, ArmState, Float64

CONTROL_PERIOD_S = 0.02
MOVING = Refusal(Reason.NONE, "")
MODE_HOLD = Refusal(Reason.MODE_HOLD, "mode is HOLD")
ENDING_MOTION = Refusal(Reason.MODE_HOLD, "stopping the home motion first")
AFTER_INTERRUPTION = Refusal(Reason.NO_CHUNK, "no chunk since the joint state came back")
CONFIRMATIONS = 3
LIMIT_TOLERANCE_RAD = 0.1  # of calibration
ESTOPPED = Refusal(Reason.ESTOP, "e-stop is latched; bridge/reset_estop releases it")


class ArmController:
    """Turns chunks, arm states and operator requests into one safe target per control period.

    Call `tick` every `control_period_s`. Times are ns on one clock. Holding means: brake within
    the limits, then command the same joints. E-stop and tracking errors stop at once instead.

    Raises:
        ValueError: the embodiment has no workspace or arm, or its home is outside the box.
    """

    def __init__(
        self, embodiment: Embodiment, kinematics: Kinematics, control_period_s: float
    ) -> None:
        if embodiment.arm is None:
            raise ValueError("arm: expected a kinematic model, got none; the arm will not move")
        self._arm = embodiment.arm
        self._safety = embodiment.safety
        self._kinematics = kinematics
        self._gate = SafetyGate(embodiment, kinematics, control_period_s)
        self._home_rad = np.array(self._arm.home_rad)
        self._check_home()
        limits = embodiment.limits
        ones = np.ones(len(self._home_rad))
        self._joint_motion = Motion(
            limits.joint_velocity_rad_s * ones,
            limits.joint_acceleration_rad_s2 * ones,
            control_period_s,
        )
        self._joint_velocity: Float64 | None = None  # not None while joints, not poses, move
        self._player = ChunkPlayer(embodiment.action, self._gate.stop_time_s)
        self._state: ArmState | None = None
        self._candidate: ArmState | None = None
        self._confirmations = 0
        # As far back as the oldest state that still counts as fresh.
        num_sent = math.ceil(self._safety.max_state_age_s / control_period_s) + 2
        self._sent: deque[SafeTarget] = deque(maxlen=num_sent)
        self._mode = Mode.HOLD
        self.is_estopped = False
        self._hold = MODE_HOLD
        self._mode_reason = MODE_HOLD  # shown while the mode is HOLD
        self._steps_in_policy = 0
        self._observation_stamp_ns: int | None = None
        self._last_refusal = MOVING
        self._counts: Counter[str] = Counter()
        self.refusals: dict[Reason, tuple[int, str]] = {}
        self.executed: Executed | None = None

    # inputs

    @property
    def state(self) -> ArmState | None:
        """The last measurement that was believed."""
        return self._state

    def on_state(self, state: ArmState) -> None:
        """Take a measurement.

        One of wrong shape, not finite or outside the joint limits is refused, an older one is
        ignored. The first, and one that jumped, is believed when `CONFIRMATIONS` in a row agree.
        """
        if refusal := self._measurement_problem(state):
            self.refuse(refusal)
        elif self._state is None or self._is_later(state, self._state):
            self._believe(state)

    def _measurement_problem(self, state: ArmState) -> Refusal | None:
        if state.joints_rad.shape != self._home_rad.shape:
            detail = f"joints of shape {state.joints_rad.shape}, expected {self._home_rad.shape}"
            return Refusal(Reason.WRONG_SHAPE, detail)
        if not (np.isfinite(state.joints_rad).all() and np.isfinite(state.gripper)):
            return Refusal(Reason.NON_FINITE, f"joint state {state.joints_rad.tolist()}")
        limited_rad = self._within_limits(state.joints_rad)
        if np.any(np.abs(state.joints_rad - limited_rad) > LIMIT_TOLERANCE_RAD):
            detail = f"measured joints {state.joints_rad.tolist()} rad are outside their limits"
            return Refusal(Reason.JOINT_LIMIT, detail)
        return None

    def _is_later(self, state: ArmState, than: ArmState) -> bool:
        """Later, or so much earlier that the clock was set back."""
        age_s = (than.stamp_ns - state.stamp_ns) * 1e-9
        return age_s < 0 or age_s > self._safety.max_state_age_s

    def _believe(self, state: ArmState) -> None:
        if not self._is_near(state, self._state):
            agrees = self._is_near(state, self._candidate)
            self._confirmations = self._confirmations + 1 if agrees else 1
            self._candidate = state
            if self._confirmations < CONFIRMATIONS:
                return
        self._state, self._candidate = state, None

    def _is_near(self, state: ArmState, other: ArmState | None) -> bool:
        if other is None:
            return False
        jump_rad = np.max(np.abs(state.joints_rad - other.joints_rad))
        return bool(jump_rad <= self._safety.max_tracking_error_rad)

    def _within_limits(self, joints_rad: Float64) -> Float64:
        limited: Float64 = np.clip(
            joints_rad, self._kinematics.lower_rad, self._kinematics.upper_rad
        )
        return limited

    def on_chunk(self, chunk: ActionChunk, now_ns: int) -> Refusal | None:
        """Take a chunk from the policy, to be played in mode POLICY, or say why not."""
        refusal = self._player.accept(chunk, now_ns)
        if refusal is None:
            self._counts["chunks_accepted"] += 1
        else:
            self.refuse_chunk(refusal)
        return refusal

    def refuse_chunk(self, refusal: Refusal) -> None:
        """Count a chunk as refused."""
        self._counts["chunks_refused"] += 1
        self.refuse(refusal)

    def refuse(self, refusal: Refusal) -> None:
        """Remember and count that a rule refused, altered or stopped something."""
        count, _ = self.refusals.get(refusal.reason, (0, ""))
        self.refusals[refusal.reason] = (count + 1, refusal.detail)
        self._last_refusal = refusal

    # operator

    def set_mode(self, mode: int, now_ns: int) -> tuple[ModeError, str]:
        """Change to HOLD or POLICY; POLICY plays only chunks that arrive from now on."""
        if mode not in (Mode.HOLD, Mode.POLICY):
            return ModeError.UNKNOWN_MODE, f"mode: expected 0 (HOLD) or 1 (POLICY), got {mode}"
        if mode == Mode.POLICY and (blocked := self._blocked(now_ns)):
            error = ModeError.ESTOPPED if blocked is ESTOPPED else ModeError.NO_STATE
            return error, blocked.detail
        self._enter(Mode(mode), MODE_HOLD)
        return ModeError.NONE, ""

    def home(self, now_ns: int) -> Refusal | None:
        """Begin to move home: inside the box as the policy would, the rest joint by joint.

        The second part is the only motion that may pass outside the box, where it has to: when it
        starts there, or when no other way to the home joints exists.
        """
        if blocked := self._blocked(now_ns):
            return blocked
        self._enter(Mode.HOMING, MODE_HOLD)
        return None

    def estop(self) -> None:
        """Stop within one period and stay; mode HOLD.

        The gripper keeps its last command: letting go would drop what it holds.
        """
        self.is_estopped = True
        self._joint_velocity = None
        self._enter(Mode.HOLD, MODE_HOLD)

    def reset_estop(self) -> None:
        """Release the latch; the mode stays HOLD."""
        self.is_estopped = False

    # time

    def tick(self, now_ns: int) -> SafeTarget | None:
        """The target of this period; None until the arm's joints are known."""
        self.executed = None
        self._observation_stamp_ns = None
        target = self._next_target(now_ns)
        if target is not None:
            self._sent.append(target)
        return target

    @property
    def status(self) -> Status:
        """As of the last tick."""
        counts = self._counts
        return Status(
            mode=self._mode,
            is_estopped=self.is_estopped,
            hold=self._hold,
            last_refusal=self._last_refusal,
            chunks_accepted=counts["chunks_accepted"],
            chunks_refused=counts["chunks_refused"],
            steps_executed=counts["steps_executed"],
            steps_clamped=counts["steps_clamped"],
            steps_refused=counts["steps_refused"],
            observation_stamp_ns=self._observation_stamp_ns,
        )

    # motions, one period each

    def _next_target(self, now_ns: int) -> SafeTarget | None:
        stop = self._state_problem(now_ns)
        if not self._gate.is_anchored:
            if stop or self._state is None:
                self._hold = stop or MODE_HOLD
                return None
            self._gate.anchor(self._within_limits(self._state.joints_rad), self._state.gripper)
        if self.is_estopped:
            self._hold = ESTOPPED
            return self._gate.freeze(now_ns)
        if stop is None and (off := self._tracking_problem()):
            self._enter(Mode.HOLD, off)
            self._hold_at_measured(off)
        if stop:
            self._player.drop(AFTER_INTERRUPTION)
        elif self._mode is Mode.HOLD:
            stop = self._mode_reason
        if self._joint_velocity is not None:
            if self._mode is Mode.POLICY:
                stop = stop or ENDING_MOTION
            return self._move_joints(self._joint_velocity, stop, now_ns)
        if stop:
            return self._brake(stop, now_ns)
        return self._home(now_ns) if self._mode is Mode.HOMING else self._follow(now_ns)

    def _brake(self, why: Refusal, now_ns: int) -> SafeTarget:
        self._hold = why
        return self._gate.brake(now_ns)

    def _follow(self, now_ns: int) -> SafeTarget:
        """Policy steps."""
        if outside := self._gate.far_outside():
            return self._brake(outside, now_ns)
        step = self._player.action_at(now_ns)
        if isinstance(step, Hold):
            if step.why.reason is not Reason.CHUNK_EXHAUSTED:
                return self._brake(step.why, now_ns)
            self._hold = step.why  # the last step is finished while its image is fresh
        elif step.is_new and (refusal := self._start(step, now_ns)):
            self._player.drop(refusal)
            return self._brake(refusal, now_ns)
        else:
            self._hold = MOVING
            self._observation_stamp_ns = step.observation_stamp_ns
        target, refusal = self._gate.advance(now_ns)
        if refusal:
            self._refuse_step(refusal)
            self._player.drop(refusal)
            self._hold = refusal
        return target

    def _start(self, step: Step, now_ns: int) -> Refusal | None:
        is_first = self._steps_in_policy < self._safety.first_motion_steps
        scale = self._safety.first_motion_scale if is_first else 1.0
        delta, notes = self._gate.start_step(step.action_A, scale)
        if delta is None:
            for note in notes[:-1]:
                self.refuse(note)
            self._refuse_step(notes[-1])
            return notes[-1]
        for note in notes:
            self.refuse(note)
        self._steps_in_policy += 1
        self._counts["steps_executed"] += 1
        self._counts["steps_clamped"] += bool(notes)
        self.executed = Executed(delta, now_ns, step.observation_stamp_ns)
        return None

    def _refuse_step(self, refusal: Refusal) -> None:
        self._counts["steps_refused"] += 1
        self.refuse(refusal)

    def _home(self, now_ns: int) -> SafeTarget:
        self._hold = MOVING
        self._gate.gripper = self._arm.home_gripper
        if self._gate.far_outside():
            target, is_done = self._gate.brake(now_ns), self._gate.is_at_rest
        else:
            self._gate.aim(self._kinematics.forward(self._home_rad))
            target, refusal = self._gate.advance(now_ns)
            is_done = self._gate.is_at_goal or refusal is not None
        if is_done:
            self._joint_velocity = np.zeros_like(self._home_rad)
        return target

    def _move_joints(
        self, velocity_rad_s: Float64, stop: Refusal | None, now_ns: int
    ) -> SafeTarget:
        joints_rad = self._gate.joints_rad
        if stop:
            joints_rad, velocity = self._joint_motion.braking(joints_rad, velocity_rad_s)
        else:
            joints_rad, velocity = self._joint_motion.towards(
                joints_rad, velocity_rad_s, self._home_rad
            )
        self._hold = stop or MOVING
        self._gate.anchor(joints_rad, self._gate.gripper)
        self._joint_velocity = velocity
        if not velocity.any():
            self._joint_velocity = None
            if np.allclose(joints_rad, self._home_rad, rtol=0.0, atol=1e-6) and not stop:
                self._enter(Mode.HOLD, MODE_HOLD)
                self._hold = MODE_HOLD
        return self._gate.brake(now_ns)

    # rules

    def _enter(self, mode: Mode, reason: Refusal) -> None:
        self._mode, self._mode_reason = mode, reason
        self._player.clear()
        self._steps_in_policy = 0

    def _blocked(self, now_ns: int) -> Refusal | None:
        return ESTOPPED if self.is_estopped else self._state_problem(now_ns)

    def _state_problem(self, now_ns: int) -> Refusal | None:
        if self._state is None:
            return Refusal(Reason.STATE_MISSING, "no joint state yet")
        limit_s = self._safety.max_state_age_s
        if abs(now_ns - self._state.stamp_ns) * 1e-9 > limit_s:
            return Refusal(Reason.STATE_STALE, f"joint state is older than {limit_s:g} s")
        return None

    def _tracking_problem(self) -> Refusal | None:
        """Measured joints far from those that were commanded when they were measured."""
        state = self._state
        if state is None or not self._sent:
            return None
        until_then = [target for target in self._sent if target.stamp_ns <= state.stamp_ns]
        commanded = until_then[-1] if until_then else self._sent[0]
        error_rad = np.abs(state.joints_rad - commanded.joints_rad)
        worst = int(np.argmax(error_rad))
        limit_rad = self._safety.max_tracking_error_rad
        if error_rad[worst] <= limit_rad:
            return None
        name = self._arm.joint_names[worst]
        detail = f"{name} is {error_rad[worst]:.3f} rad from its command, limit {limit_rad:g}"
        return Refusal(Reason.TRACKING, detail)

    def _hold_at_measured(self, why: Refusal) -> None:
        assert self._state is not None
        self._joint_velocity = None
        self._gate.anchor(self._within_limits(self._state.joints_rad), self._gate.gripper)
        self._sent.clear()
        self.refuse(why)

    def _check_home(self) -> None:
        low, high = self._kinematics.lower_rad, self._kinematics.upper_rad
        if np.any(self._home_rad < low) or np.any(self._home_rad > high):
            raise ValueError(
                f"arm.home_rad: expected joints within {low.tolist()} ... {high.tolist()}, "
                f"got {self._home_rad.tolist()}"
            )
        self._gate.anchor(self._home_rad, self._arm.home_gripper)
        if outside := self._gate.outside():
            raise ValueError(f"arm.home_rad: expected the tool in the box, got {outside}")
        self._gate.is_anchored = False
