"""When following an instruction ends, and with which result (numpy layer)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nora_core.types import GoalError, Outcome

NO_IMAGE_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Ending:
    """Result of an `execute_instruction` goal."""

    error: GoalError
    message: str
    outcome: Outcome = Outcome.UNKNOWN


def goal_problem(instruction: str, timeout_s: float) -> str | None:
    """Why a goal cannot be accepted, if so."""
    if not instruction.strip():
        return "instruction: expected some words, got an empty string"
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        return f"timeout: expected a positive number of seconds, got {timeout_s}"
    return None


class Goal:
    """One instruction being followed from `start_ns` for at most `timeout_s`."""

    def __init__(self, instruction: str, timeout_s: float, start_ns: int) -> None:
        self.instruction = instruction
        self.outcome = Outcome.UNKNOWN
        self._timeout_s = timeout_s
        self._start_ns = start_ns
        self._last_image_ns = start_ns
        self._failure = ""

    def on_image(self, now_ns: int) -> None:
        """A usable observation was there at `now_ns`."""
        self._last_image_ns = now_ns

    def on_failure(self, message: str) -> None:
        """The model could not answer."""
        self._failure = message

    def on_outcome(self, instruction: str, outcome: Outcome, judged_ns: int) -> None:
        """Keep a judgement of this instruction made after the goal began."""
        if instruction == self.instruction and judged_ns >= self._start_ns:
            self.outcome = outcome

    def ending(self, now_ns: int, no_image_reason: str) -> Ending | None:
        """How the goal ends at `now_ns`, or None while it goes on."""
        if self.outcome == Outcome.SUCCESS:
            return Ending(GoalError.NONE, "", self.outcome)
        if self._failure:
            return Ending(GoalError.INFERENCE_FAILED, self._failure, self.outcome)
        if (now_ns - self._last_image_ns) * 1e-9 > NO_IMAGE_LIMIT_S:
            message = f"no usable image for {NO_IMAGE_LIMIT_S:.0f} s: {no_image_reason}"
            return Ending(GoalError.NO_IMAGE, message, self.outcome)
        if (now_ns - self._start_ns) * 1e-9 > self._timeout_s:
            return Ending(GoalError.TIMEOUT, f"not done in {self._timeout_s:g} s", self.outcome)
        return None
