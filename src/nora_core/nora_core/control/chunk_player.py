"""Plays the steps of action chunks in time: never skips, never plays old ones (numpy layer)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nora_core.control.safety_gate import Reason, Refusal
from nora_core.embodiment import Action
from nora_core.types import ActionChunk, Float64

CLOCK_TOLERANCE_S = 0.1
PERIOD_TOLERANCE_S = 1e-6
# A blended chunk weighs exp(0.8) times the one before it, as where NORA-1.5 was evaluated.
LOG_WEIGHT_PER_CHUNK = 0.8
NOTHING_YET = Refusal(Reason.NO_CHUNK, "no action chunk yet")
EXHAUSTED = Refusal(Reason.CHUNK_EXHAUSTED, "every step was played, no newer chunk")


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
    """There is no step to follow, and why."""

    why: Refusal


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
        self._boundary_ns: int | None = None  # end of the last step
        self.drop(NOTHING_YET)

    def drop(self, why: Refusal) -> None:
        """Play nothing more of the chunks accepted so far; hold for this reason until the next.

        A step that this cuts short keeps its time.
        """
        self._next: _Remainder | None = None
        self._begun: list[_Remainder] = []  # oldest first
        self._step: Step | None = None
        self._idle_reason = why

    def accept(self, chunk: ActionChunk, now_ns: int) -> Refusal | None:
        """Keep a chunk to be played next, or say why not."""
        refusal = self._problem(chunk) or self._timing_problem(chunk.stamp_ns, now_ns)
        if refusal is None:
            self._last_stamp_ns = chunk.stamp_ns
            steps_TA = chunk.actions_TA[: self._action.execute_steps]
            self._next = _Remainder(steps_TA, chunk.stamp_ns)
        return refusal

    def action_at(self, now_ns: int) -> Step | Hold:
        """The step to follow at `now_ns`; call at least a few times per step."""
        if self._next is not None and not self._is_fresh(self._next.stamp_ns, now_ns):
            self.drop(self._stale())
        self._begun = [rest for rest in self._begun if self._is_fresh(rest.stamp_ns, now_ns)]
        if self._step and not self._is_fresh(self._step.observation_stamp_ns, now_ns):
            self._step, self._idle_reason = None, self._stale()
        remaining_ns = 0 if self._boundary_ns is None else self._boundary_ns - now_ns
        if self._step and remaining_ns > 0:
            return replace(self._step, is_new=False)
        if 0 < remaining_ns <= self._period_ns:  # more: the clock jumped back
            return Hold(self._idle_reason)
        return self._begin_step(now_ns)

    def _begin_step(self, now_ns: int) -> Step | Hold:
        end_ns = self._start_ns(now_ns) + self._period_ns
        playing = [rest for rest in self._begun if self._is_fresh(rest.stamp_ns, end_ns)]
        if self._next is not None and (self._action.execution == "blend" or not playing):
            playing.append(self._next)
            self._next = None
        playing = playing or self._begun[-1:]
        if not playing:
            return Hold(EXHAUSTED if self._step else self._idle_reason)
        oldest_ns = min(rest.stamp_ns for rest in playing)
        self._step = Step(blended([rest.steps_TA[0] for rest in playing]), oldest_ns, is_new=True)
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

    def _is_fresh(self, stamp_ns: int, now_ns: int) -> bool:
        return -self._tolerance_ns <= now_ns - stamp_ns <= self._max_age_ns

    def _stale(self) -> Refusal:
        limit = f"{self._action.max_chunk_age_s:g} s, of which the arm needs some to stop"
        return Refusal(Reason.CHUNK_STALE, f"the chunk's image is older than {limit}")

    def _problem(self, chunk: ActionChunk) -> Refusal | None:
        expected, shape = self._action.names, chunk.actions_TA.shape
        if chunk.action_names != expected:
            detail = f"action names {list(chunk.action_names)}, expected {list(expected)}"
            return Refusal(Reason.MISMATCH, detail)
        if chunk.frame != self._action.frame:
            detail = f"frame {chunk.frame!r}, expected {self._action.frame!r}"
            return Refusal(Reason.MISMATCH, detail)
        if len(shape) != 2 or shape[0] < 1 or shape[1] != len(expected):
            detail = f"actions of shape {shape}, expected (at least 1, {len(expected)})"
            return Refusal(Reason.WRONG_SHAPE, detail)
        if not abs(chunk.step_period_s - self._action.step_period_s) <= PERIOD_TOLERANCE_S:
            detail = f"step period {chunk.step_period_s} s, expected {self._action.step_period_s}"
            return Refusal(Reason.MISMATCH, detail)
        if not np.isfinite(chunk.actions_TA).all():
            step, entry = np.argwhere(~np.isfinite(chunk.actions_TA))[0]
            value = chunk.actions_TA[step, entry]
            return Refusal(Reason.NON_FINITE, f"step {step}: {expected[entry]} is {value}")
        return None

    def _timing_problem(self, stamp_ns: int, now_ns: int) -> Refusal | None:
        age_ns = now_ns - stamp_ns
        if age_ns < -self._tolerance_ns:
            detail = f"image is {-age_ns * 1e-9:.3f} s ahead of our clock"
            return Refusal(Reason.OUT_OF_ORDER, detail)
        last_ns = self._last_stamp_ns
        if last_ns is not None and last_ns - now_ns > self._tolerance_ns:
            last_ns = None  # the clock jumped back
        if last_ns is not None and stamp_ns <= last_ns:
            late_s = (last_ns - stamp_ns) * 1e-9
            detail = f"image is not newer than that of the last chunk ({late_s:.3f} s older)"
            return Refusal(Reason.OUT_OF_ORDER, detail)
        if age_ns > self._max_age_ns:
            limit_s = self._max_age_ns * 1e-9
            return Refusal(
                Reason.CHUNK_STALE, f"image is {age_ns * 1e-9:.3f} s old, limit {limit_s:.3f}"
            )
        return None


def blended(steps: list[Float64]) -> Float64:
    """Weighted mean of the steps (A,), given from the oldest chunk to the newest.

    Each weighs exp(`LOG_WEIGHT_PER_CHUNK`) times the one before it, the gripper (last entry) is
    that of the newest. After the temporal ensemble of ACT (arXiv 2304.13705), which favours the
    oldest, and the one of SimplerEnv (temperature -0.8) that NORA-1.5 was evaluated with. Euler
    angles are averaged as they are: steps turn little.
    """
    step_NA = np.stack(steps)
    weight_N = np.exp(LOG_WEIGHT_PER_CHUNK * np.arange(len(steps)))
    mean_A = weight_N / weight_N.sum() @ step_NA
    within_A: Float64 = np.clip(mean_A, step_NA.min(axis=0), step_NA.max(axis=0))  # rounding
    within_A[-1] = steps[-1][-1]
    return within_A
