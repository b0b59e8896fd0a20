"""Plays the steps of action chunks in time; skips none and plays no stale ones (numpy layer)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nora_core.embodiment import Action
from nora_core.types import ZERO_STAMP, ActionChunk, Float64, Reason, Rejection

CLOCK_TOLERANCE_S = 0.1
PERIOD_TOLERANCE_S = 1e-6
# A blended chunk weighs exp(0.8) times the one before it, as in the evaluation of NORA-1.5.
LOG_WEIGHT_PER_CHUNK = 0.8
NOTHING_YET = Rejection(Reason.NO_CHUNK, "no action chunk yet")
EXHAUSTED = Rejection(Reason.CHUNK_EXHAUSTED, "every step was played; waiting for a new chunk")


@dataclass(frozen=True, slots=True)
class Step:
    """The step to follow now: physical units, (A,); `is_new` when it starts with this call.

    A blended step has the stamp of the oldest image that contributes to it: its age is never
    understated.
    """

    action_A: Float64
    observation_stamp_ns: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """There is no step to follow, for the reason `why`."""

    why: Rejection[Reason]


@dataclass(frozen=True, slots=True)
class _Remainder:
    """The steps of a chunk that are still to be played, (T, A), at least one."""

    steps_TA: Float64
    stamp_ns: int


class ChunkPlayer:
    """Plays every chunk it begins from the first step on, one step per `step_period_s`.

    At most `execute_steps` of a chunk are played, and none of it while its image is older than
    `max_chunk_age_s` less `reserve_s` (time the arm needs to stop). By `action.execution`, a step
    boundary

    * `first_only`: begins the newest chunk, of which one step is all that is played;
    * `n_step`: continues the chunk being played, then begins the newest one;
    * `blend`: begins the newest chunk beside those being played, and plays `blended`.

    A chunk that would grow too old within the coming step gives way to newer ones.
    """

    def __init__(self, action: Action, reserve_s: float = 0.0) -> None:
        max_age_s = action.max_chunk_age_s - reserve_s
        if max_age_s <= 0:
            raise ValueError(
                f"action.max_chunk_age_s: expected more than the {reserve_s:.3g} s the arm needs "
                f"to stop, got {action.max_chunk_age_s}"
            )
        self._action = action
        self._period_ns = round(action.step_period_s * 1e9)
        self._max_age_ns = round(max_age_s * 1e9)
        self._tolerance_ns = round(CLOCK_TOLERANCE_S * 1e9)
        self.clear()

    def clear(self) -> None:
        """Forget every chunk and every stamp; the next step may start at once."""
        self._last_stamp_ns: int | None = None
        self._accepted_ns: int | None = None  # when the last chunk arrived
        self._boundary_ns: int | None = None  # end of the last step
        self.drop(NOTHING_YET)

    def drop(self, why: Rejection[Reason] | None) -> None:
        """Play nothing more of the chunks accepted so far; hold for this reason until the next.

        Without a reason: because no new chunk came. A step that this cuts short keeps its time.
        """
        self._next: _Remainder | None = None
        self._begun: list[_Remainder] = []  # oldest first
        self._step: Step | None = None
        self._idle_reason = why

    def accept(self, chunk: ActionChunk, now_ns: int) -> Rejection[Reason] | None:
        """Keep a chunk to be played next, or say why not."""
        rejection = self._problem(chunk) or self._timing_problem(chunk.stamp_ns, now_ns)
        if rejection is None:
            self._last_stamp_ns, self._accepted_ns = chunk.stamp_ns, now_ns
            steps_TA = chunk.actions_TA[: self._action.execute_steps]
            self._next = _Remainder(steps_TA, chunk.stamp_ns)
        return rejection

    def action_at(self, now_ns: int) -> Step | Hold:
        """The step to follow at `now_ns`; call at least a few times per step."""
        if self._next is not None and not self._is_fresh(self._next.stamp_ns, now_ns):
            self.drop(None)
        self._begun = [rest for rest in self._begun if self._is_fresh(rest.stamp_ns, now_ns)]
        if self._step and not self._is_fresh(self._step.observation_stamp_ns, now_ns):
            self._step, self._idle_reason = None, None
        remaining_ns = 0 if self._boundary_ns is None else self._boundary_ns - now_ns
        if self._step and remaining_ns > 0:
            return replace(self._step, is_new=False)
        if 0 < remaining_ns <= self._period_ns:  # more: the clock jumped back
            return Hold(self._idle_reason or self._stale(now_ns))
        return self._begin_step(now_ns)

    def _begin_step(self, now_ns: int) -> Step | Hold:
        end_ns = self._start_ns(now_ns) + self._period_ns
        playing = [rest for rest in self._begun if self._is_fresh(rest.stamp_ns, end_ns)]
        if self._next is not None and (self._action.execution == "blend" or not playing):
            playing.append(self._next)
            self._next = None
        playing = playing or self._begun[-1:]
        if not playing:
            is_exhausted = self._step is not None
            return Hold(EXHAUSTED if is_exhausted else self._idle_reason or self._stale(now_ns))
        oldest_ns = min(rest.stamp_ns for rest in playing)
        self._step = Step(self._blended(playing), oldest_ns, is_new=True)
        self._begun = [
            replace(rest, steps_TA=rest.steps_TA[1:]) for rest in playing if len(rest.steps_TA) > 1
        ]
        self._boundary_ns = end_ns
        return self._step

    def _start_ns(self, now_ns: int) -> int:
        # On the grid of boundaries, so that late calls do not add up; off it after a long delay,
        # so that steps never bunch up.
        if self._boundary_ns is None:
            return now_ns
        is_on_grid = 0 <= now_ns - self._boundary_ns <= self._period_ns // 4
        return self._boundary_ns if is_on_grid else now_ns

    def _blended(self, playing: list[_Remainder]) -> Float64:
        return blended([rest.steps_TA[0] for rest in playing], self._action.gripper_index)

    def _is_fresh(self, stamp_ns: int, now_ns: int) -> bool:
        return -self._tolerance_ns <= now_ns - stamp_ns <= self._max_age_ns

    def _stale(self, now_ns: int) -> Rejection[Reason]:
        """Say how long no chunk came: in tenths of a second, from 1 s on in whole seconds."""
        assert self._accepted_ns is not None, "only an accepted chunk grows stale"
        waited_s = (now_ns - self._accepted_ns) * 1e-9
        if waited_s < 0:
            return Rejection(Reason.CHUNK_STALE, "the clock was set back since the last chunk")
        text = f"{int(waited_s)}" if waited_s >= 1.0 else f"{waited_s:.1f}"
        return Rejection(Reason.CHUNK_STALE, f"no new chunk for {text} s")

    def _problem(self, chunk: ActionChunk) -> Rejection[Reason] | None:
        expected, shape = self._action.names, chunk.actions_TA.shape
        if chunk.action_names != expected:
            detail = f"action names {list(chunk.action_names)}, expected {list(expected)}"
            return Rejection(Reason.MISMATCH, detail)
        if chunk.frame != self._action.frame:
            detail = f"frame {chunk.frame!r}, expected {self._action.frame!r}"
            return Rejection(Reason.MISMATCH, detail)
        if len(shape) != 2 or shape[0] < 1 or shape[1] != len(expected):
            detail = f"actions of shape {shape}, expected (at least 1, {len(expected)})"
            return Rejection(Reason.WRONG_SHAPE, detail)
        if not abs(chunk.step_period_s - self._action.step_period_s) <= PERIOD_TOLERANCE_S:
            detail = f"step period {chunk.step_period_s} s, expected {self._action.step_period_s}"
            return Rejection(Reason.MISMATCH, detail)
        if not np.isfinite(chunk.actions_TA).all():
            step, entry = np.argwhere(~np.isfinite(chunk.actions_TA))[0]
            value = chunk.actions_TA[step, entry]
            return Rejection(Reason.NON_FINITE, f"step {step}: {expected[entry]} is {value}")
        return None

    def _timing_problem(self, stamp_ns: int, now_ns: int) -> Rejection[Reason] | None:
        age_ns = now_ns - stamp_ns
        if age_ns < -self._tolerance_ns:
            detail = f"image is {-age_ns * 1e-9:.3f} s ahead of our clock"
            return Rejection(Reason.OUT_OF_ORDER, detail)
        last_ns = self._last_stamp_ns
        if last_ns is not None and last_ns - now_ns > self._tolerance_ns:
            last_ns = None  # the clock jumped back
        if last_ns is not None and stamp_ns <= last_ns:
            late_s = (last_ns - stamp_ns) * 1e-9
            detail = f"image is not newer than that of the last chunk ({late_s:.3f} s older)"
            return Rejection(Reason.OUT_OF_ORDER, detail)
        if age_ns > self._max_age_ns:
            detail = f"image is {age_ns * 1e-9:.3f} s old, limit {self._max_age_ns * 1e-9:.3f}"
            return Rejection(
                Reason.CHUNK_STALE, f"image: {ZERO_STAMP}" if stamp_ns == 0 else detail
            )
        return None


def blended(steps: list[Float64], gripper_index: int) -> Float64:
    """Weighted mean of the steps (A,), given from the oldest chunk to the newest.

    Each weighs exp(`LOG_WEIGHT_PER_CHUNK`) times the one before it, the gripper is that
    of the newest. After the temporal ensemble of ACT (arXiv 2304.13705), which favours the
    oldest, and the one of SimplerEnv (temperature -0.8) that NORA-1.5 was evaluated with. Euler
    angles are averaged as they are: steps turn little.
    """
    step_NA = np.stack(steps)
    weight_N = np.exp(LOG_WEIGHT_PER_CHUNK * np.arange(len(steps)))
    mean_A = weight_N / weight_N.sum() @ step_NA
    within_A: Float64 = np.clip(mean_A, step_NA.min(axis=0), step_NA.max(axis=0))  # rounding
    within_A[gripper_index] = steps[-1][gripper_index]
    return within_A
