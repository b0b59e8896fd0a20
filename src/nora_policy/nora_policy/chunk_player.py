"""Plays the steps of action chunks in time: never skips, never plays old ones (numpy layer)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nora_policy.embodiment import Action
from nora_policy.safety import Reason, Refusal
from nora_policy.types import ActionChunk, Float64

CLOCK_TOLERANCE_S = 0.1
PERIOD_TOLERANCE_S = 1e-6
NOTHING_YET = Refusal(Reason.NO_CHUNK, "no action chunk yet")


@dataclass(frozen=True, slots=True)
class Step:
    """The step to follow now: physical units, (A,); `is_new` when it starts with this call."""

    action_A: Float64
    observation_stamp_ns: int
    is_new: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """There is no step to follow, and why."""

    why: Refusal


class ChunkPlayer:
    """Newest chunk wins at the next step boundary, from its first step.

    A step lasts `step_period_s`; at most `execute_steps` of a chunk are played, and none of it
    while its image is older than `max_chunk_age_s` less `reserve_s` (time the arm needs to stop).
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
        self._boundary_ns = 0  # when the current step ends
        self._index = 0
        self._is_exhausted = False
        self.clear()

    def clear(self) -> None:
        """Forget every chunk and every stamp."""
        self._last_stamp_ns: int | None = None
        self._idle_reason = NOTHING_YET
        self._next: ActionChunk | None = None
        self._current: ActionChunk | None = None

    def drop(self, why: Refusal) -> None:
        """Play nothing more of the chunks accepted so far; hold for this reason until the next."""
        self._next = self._current = None
        self._idle_reason = why

    def accept(self, chunk: ActionChunk, now_ns: int) -> Refusal | None:
        """Keep a chunk to be played next, or say why not."""
        refusal = self._problem(chunk) or self._timing_problem(chunk.stamp_ns, now_ns)
        if refusal is None:
            self._last_stamp_ns = chunk.stamp_ns
            self._next = chunk
        return refusal

    def action_at(self, now_ns: int) -> Step | Hold:
        """The step to follow at `now_ns`; call at least a few times per step."""
        if self._next is not None and not self._is_fresh(self._next, now_ns):
            self.drop(self._stale())
        if self._current is None:
            return self._start_next(now_ns)
        if not self._is_fresh(self._current, now_ns):
            self._current = None
            self._idle_reason = self._stale()
            return self._start_next(now_ns)
        if now_ns < self._boundary_ns:
            return self._step(is_new=False)
        if self._next is not None:
            return self._start_next(now_ns)
        if self._index + 1 >= min(self._action.execute_steps, len(self._current.actions_TA)):
            self._is_exhausted = True
            return Hold(Refusal(Reason.CHUNK_EXHAUSTED, "every step was played, no newer chunk"))
        self._index += 1
        return self._begin(now_ns)

    def _start_next(self, now_ns: int) -> Step | Hold:
        if self._next is None:
            return Hold(self._idle_reason)
        if self._current is None or self._is_exhausted:
            self._boundary_ns = now_ns
        self._current, self._next = self._next, None
        self._index = 0
        self._is_exhausted = False
        return self._begin(now_ns)

    def _begin(self, now_ns: int) -> Step:
        # On the grid of boundaries, so that late calls do not add up; off it after a long delay,
        # so that steps never bunch up.
        is_late = now_ns - self._boundary_ns > self._period_ns // 4
        self._boundary_ns = (now_ns if is_late else self._boundary_ns) + self._period_ns
        return self._step(is_new=True)

    def _step(self, is_new: bool) -> Step:
        assert self._current is not None
        return Step(self._current.actions_TA[self._index], self._current.stamp_ns, is_new)

    def _is_fresh(self, chunk: ActionChunk, now_ns: int) -> bool:
        return -self._tolerance_ns <= now_ns - chunk.stamp_ns <= self._max_age_ns

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
