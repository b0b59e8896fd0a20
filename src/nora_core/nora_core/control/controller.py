"""What the arm does now: modes, e-stop, home motion and every reason to hold; free of ROS."""

from __future__ import annotations

from collections import Counter

from nora_core.control.chunk_player import ChunkPlayer, Hold, Step
from nora_core.control.homing import Homing
from nora_core.control.safety_gate import Kinematics, SafeTarget, SafetyGate
from nora_core.control.state_filter import StateFilter
from nora_core.control.status import Executed, Mode, ModeError, Status
from nora_core.control.tracking import TrackingMonitor
from nora_core.embodiment import Embodiment
from nora_core.types import ActionChunk, ArmState, Reason, Rejection

CONTROL_PERIOD_S = 0.02
MODE_HOLD = Rejection(Reason.MODE_HOLD, "mode is HOLD")
ENDING_MOTION = Rejection(Reason.MODE_HOLD, "stopping the home motion first")
AFTER_INTERRUPTION = Rejection(Reason.NO_CHUNK, "no chunk since the joint state came back")
ESTOPPED = Rejection(Reason.ESTOP, "e-stop is latched; bridge/reset_estop releases it")


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
            raise ValueError("arm: the kinematic model is missing; the arm will not move")
        self._safety = embodiment.safety
        self._gate = SafetyGate(embodiment, kinematics, control_period_s)
        self._homing = Homing(
            arm=embodiment.arm,
            limits=embodiment.limits,
            kinematics=kinematics,
            gate=self._gate,
            control_period_s=control_period_s,
        )
        self._player = ChunkPlayer(embodiment.action, self._gate.stop_time_s)
        self._filter = StateFilter(kinematics, self._safety)
        self._tracking = TrackingMonitor(embodiment.arm, self._safety, control_period_s)
        self._mode = Mode.HOLD
        self.is_estopped = False
        self._hold: Rejection[Reason] | None = MODE_HOLD  # None while moving
        self._mode_reason = MODE_HOLD  # shown while the mode is HOLD
        self._steps_in_policy = 0
        self._observation_stamp_ns: int | None = None
        self._last_rejection: Rejection[Reason] | None = None
        self._counts: Counter[str] = Counter()
        self.rejections: dict[Reason, tuple[int, str]] = {}  # count and last detail
        self.executed: Executed | None = None

    # inputs

    @property
    def state(self) -> ArmState | None:
        """The last measurement that was accepted."""
        return self._filter.state

    def on_state(self, state: ArmState) -> None:
        """Take a measurement; one that cannot be used is counted as refused."""
        if rejection := self._filter.put(state):
            self.refuse(rejection)

    def on_chunk(self, chunk: ActionChunk, now_ns: int) -> Rejection[Reason] | None:
        """Take a chunk from the policy, to be played in mode POLICY, or say why not."""
        rejection = self._player.accept(chunk, now_ns)
        if rejection is None:
            self._counts["chunks_accepted"] += 1
        else:
            self.refuse_chunk(rejection)
        return rejection

    def refuse_chunk(self, rejection: Rejection[Reason]) -> None:
        """Count a chunk as refused."""
        self._counts["chunks_refused"] += 1
        self.refuse(rejection)

    def refuse(self, rejection: Rejection[Reason]) -> None:
        """Remember and count that a rule refused, altered or stopped something."""
        count, _ = self.rejections.get(rejection.reason, (0, ""))
        self.rejections[rejection.reason] = (count + 1, rejection.detail)
        self._last_rejection = rejection

    # operator

    def set_mode(self, mode: int, now_ns: int) -> Rejection[ModeError] | None:
        """Change to HOLD or POLICY; POLICY plays only chunks that arrive from now on."""
        if mode not in (Mode.HOLD, Mode.POLICY):
            detail = f"mode: expected 0 (HOLD) or 1 (POLICY), got {mode}"
            return Rejection(ModeError.UNKNOWN_MODE, detail)
        if mode == Mode.POLICY and (blocked := self._blocked(now_ns)):
            error = ModeError.ESTOPPED if blocked is ESTOPPED else ModeError.NO_STATE
            return Rejection(error, blocked.detail)
        self._enter(Mode(mode), MODE_HOLD)
        return None

    def home(self, now_ns: int) -> Rejection[Reason] | None:
        """Begin to move home (see `Homing`), or say why not."""
        if blocked := self._blocked(now_ns):
            return blocked
        self._enter(Mode.HOMING, MODE_HOLD)
        return None

    def estop(self) -> None:
        """Stop within one period, latch, and change to mode HOLD.

        The gripper keeps its last command: letting go would drop what it holds.
        """
        self.is_estopped = True
        self._homing.abort()
        self._enter(Mode.HOLD, MODE_HOLD)

    def reset_estop(self) -> None:
        """Release the latch; the mode stays HOLD."""
        self.is_estopped = False

    # time

    def tick(self, now_ns: int) -> SafeTarget | None:
        """The target of this period; None until the arm's joints are known."""
        self.executed = self._observation_stamp_ns = None
        target = self._next_target(now_ns)
        if target is not None:
            self._tracking.record(target)
        return target

    @property
    def status(self) -> Status:
        """What the last tick did, and every count since the start."""
        counts = self._counts
        return Status(
            mode=self._mode,
            is_estopped=self.is_estopped,
            hold=self._hold,
            last_refusal=self._last_rejection,
            chunks_accepted=counts["chunks_accepted"],
            chunks_refused=counts["chunks_refused"],
            steps_executed=counts["steps_executed"],
            steps_clamped=counts["steps_clamped"],
            steps_refused=counts["steps_refused"],
            observation_stamp_ns=self._observation_stamp_ns,
        )

    # motions, one period each

    def _next_target(self, now_ns: int) -> SafeTarget | None:
        stop = self._filter.problem(now_ns)
        if not self._gate.is_anchored:
            if stop or self.state is None:
                self._hold = stop or MODE_HOLD
                return None
            self._anchor_at_measured(self.state.gripper)
        if self.is_estopped:
            self._hold = ESTOPPED
            return self._gate.freeze(now_ns)
        if stop is None and (off := self._tracking.problem(self.state)):
            self._enter(Mode.HOLD, off)
            self._hold_at_measured(off)
        if stop:
            self._player.drop(AFTER_INTERRUPTION)
        elif self._mode is Mode.HOLD:
            stop = self._mode_reason
        return self._move(stop, now_ns)

    def _move(self, stop: Rejection[Reason] | None, now_ns: int) -> SafeTarget:
        """One period of what the mode asks for, or of braking for the reason `stop`."""
        if self._homing.is_moving_joints:
            if self._mode is Mode.POLICY:
                stop = stop or ENDING_MOTION
            self._hold = stop
            target, is_home = self._homing.move_joints(now_ns, is_stopping=stop is not None)
            if is_home:
                self._enter(Mode.HOLD, MODE_HOLD)
                self._hold = MODE_HOLD
            return target
        if stop:
            return self._brake(stop, now_ns)
        if self._mode is Mode.HOMING:
            self._hold = None
            return self._homing.approach(now_ns)
        return self._follow(now_ns)

    def _brake(self, why: Rejection[Reason], now_ns: int) -> SafeTarget:
        self._hold = why
        return self._gate.brake(now_ns)

    def _follow(self, now_ns: int) -> SafeTarget:
        """Play the policy's steps."""
        if outside := self._gate.far_outside():
            return self._brake(outside, now_ns)
        step = self._player.action_at(now_ns)
        if isinstance(step, Hold):
            if step.why.reason is not Reason.CHUNK_EXHAUSTED:
                return self._brake(step.why, now_ns)
            self._hold = step.why  # the last step is finished while its image is fresh
        elif step.is_new and (rejection := self._start(step, now_ns)):
            self._player.drop(rejection)
            return self._brake(rejection, now_ns)
        else:
            self._hold = None
            self._observation_stamp_ns = step.observation_stamp_ns
        target, rejection = self._gate.advance(now_ns)
        if rejection:
            self._counts["steps_refused"] += 1
            self.refuse(rejection)
            self._player.drop(rejection)
            self._hold = rejection
        return target

    def _start(self, step: Step, now_ns: int) -> Rejection[Reason] | None:
        is_first = self._steps_in_policy < self._safety.first_motion_steps
        scale = self._safety.first_motion_scale if is_first else 1.0
        delta, notes = self._gate.start_step(step.action_A, scale)
        for note in notes:
            self.refuse(note)
        if delta is None:
            self._counts["steps_refused"] += 1
            return notes[-1]
        self._steps_in_policy += 1
        self._counts["steps_executed"] += 1
        self._counts["steps_clamped"] += bool(notes)
        self.executed = Executed(delta, now_ns, step.observation_stamp_ns)
        return None

    def _enter(self, mode: Mode, reason: Rejection[Reason]) -> None:
        self._mode, self._mode_reason = mode, reason
        self._player.clear()
        self._steps_in_policy = 0

    def _blocked(self, now_ns: int) -> Rejection[Reason] | None:
        return ESTOPPED if self.is_estopped else self._filter.problem(now_ns)

    def _hold_at_measured(self, why: Rejection[Reason]) -> None:
        self._homing.abort()
        self._anchor_at_measured(self._gate.gripper)
        self._tracking.clear()
        self.refuse(why)

    def _anchor_at_measured(self, gripper: float) -> None:
        assert self.state is not None, "only while the filter sees no problem"
        self._gate.anchor(self._filter.within_limits(self.state.joints_rad), gripper)
