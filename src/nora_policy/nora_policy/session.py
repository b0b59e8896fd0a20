"""What the policy node decides: what to infer, what to publish, when a goal ends (numpy layer).

Times are integer nanoseconds of the node clock, given by the caller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nora_core.embodiment import Camera
from nora_core.observation import NoObservation, ObservationBuffer
from nora_core.types import ActionChunk, Frame, GoalError, Observation, Outcome, Rejection
from nora_policy.inference import InferenceStats

NO_IMAGE_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Ending:
    """Result of an `execute_instruction` goal."""

    error: GoalError
    message: str
    outcome: Outcome = Outcome.UNKNOWN


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a client hears while its goal is followed; NaN before the first chunk."""

    chunks: int
    observation_age_s: float
    inference_s: float


@dataclass(slots=True, kw_only=True)
class _Goal:
    timeout_s: float
    start_ns: int
    last_image_ns: int
    first_chunk: int
    outcome: Outcome = Outcome.UNKNOWN
    failure: str | None = None


class PolicySession:
    """The instruction, the newest images and the goal that is being followed.

    Images of several cameras are answered together: when the oldest of them is newer than the
    oldest of those answered before. An instruction is followed for as long as it stands, or, when
    it comes with a goal, until the goal ends.
    """

    def __init__(self, cameras: tuple[Camera, ...]) -> None:
        self._buffer = ObservationBuffer(cameras)
        self._answered_ns: int | None = None  # stamp of the newest observation that was inferred
        self._goal: _Goal | None = None
        self.instruction = ""
        self.stats = InferenceStats()

    @property
    def has_goal(self) -> bool:
        """Whether a goal is being followed."""
        return self._goal is not None

    # instruction and goal

    def instruct(self, instruction: str) -> Ending | None:
        """Follow an instruction without a goal (empty: stop); the ending of the goal before."""
        ending = self._preempted("replaced by a message on instruction")
        self.instruction = instruction.strip()
        return ending

    def problem(self, instruction: str, timeout_s: float) -> Rejection[GoalError] | None:
        """Why a goal cannot be accepted, if so."""
        detail = None
        if not instruction.strip():
            detail = "instruction: expected some words, got an empty string"
        elif not (math.isfinite(timeout_s) and timeout_s > 0):
            detail = f"timeout: expected a positive number of seconds, got {timeout_s}"
        return Rejection(GoalError.INVALID_GOAL, detail) if detail else None

    def begin(self, instruction: str, timeout_s: float, now_ns: int) -> Ending | None:
        """Follow a goal without `problem` from now on; the ending of the goal before."""
        ending = self._preempted(f"replaced by {instruction!r}")
        self.instruction = instruction.strip()
        self._goal = _Goal(
            timeout_s=timeout_s,
            start_ns=now_ns,
            last_image_ns=now_ns,
            first_chunk=self.stats.chunks,
        )
        return ending

    def end(self) -> None:
        """Follow nothing any more."""
        self._goal = None
        self.instruction = ""

    def on_outcome(self, instruction: str, outcome: Outcome, judged_ns: int) -> None:
        """Take a judgement; it counts for this instruction and if made after the goal began."""
        goal = self._goal
        if goal is not None and instruction == self.instruction and judged_ns >= goal.start_ns:
            goal.outcome = outcome

    def cancelled(self) -> Ending:
        """The ending of the goal when its client cancels it."""
        outcome = self._goal.outcome if self._goal else Outcome.UNKNOWN
        return Ending(GoalError.CANCELLED, "cancelled by the client", outcome)

    def ending(self, now_ns: int) -> Ending | None:
        """How the goal ends at `now_ns`, or None while it goes on (or there is none)."""
        goal = self._goal
        if goal is None:
            return None
        if goal.outcome == Outcome.SUCCESS:
            return Ending(GoalError.NONE, "", goal.outcome)
        if goal.failure is not None:
            return Ending(GoalError.INFERENCE_FAILED, goal.failure, goal.outcome)
        if (now_ns - goal.last_image_ns) * 1e-9 > NO_IMAGE_LIMIT_S:
            rejection = self.no_observation(now_ns)
            cause = f": {rejection.detail}" if rejection else ""
            message = f"no usable image for {NO_IMAGE_LIMIT_S:.0f} s{cause}"
            return Ending(GoalError.NO_IMAGE, message, goal.outcome)
        if (now_ns - goal.start_ns) * 1e-9 > goal.timeout_s:
            return Ending(GoalError.TIMEOUT, f"not done in {goal.timeout_s:g} s", goal.outcome)
        return None

    @property
    def feedback(self) -> Feedback:
        """Progress of the goal."""
        before = self._goal.first_chunk if self._goal else self.stats.chunks
        return Feedback(
            self.stats.chunks - before,
            self.stats.last_observation_age_s,
            self.stats.last_inference_s,
        )

    # images and chunks

    def on_image(self, camera: str, frame: Frame, now_ns: int) -> Observation | None:
        """Take an image; returns what to infer now, if anything."""
        if not self._buffer.put(camera, frame, now_ns):
            return None
        observation = self._buffer.snapshot(now_ns, self.instruction)
        if isinstance(observation, Rejection):
            return None  # `no_observation` and `ending` say why
        if self._goal is not None:
            self._goal.last_image_ns = now_ns
        if self._was_answered(observation, now_ns):
            return None
        self._answered_ns = observation.stamp_ns
        return observation

    def no_observation(self, now_ns: int) -> Rejection[NoObservation] | None:
        """Why nothing can be inferred at `now_ns`, if so."""
        seen = self._buffer.snapshot(now_ns, self.instruction)
        return seen if isinstance(seen, Rejection) else None

    def is_wanted(self, chunk: ActionChunk) -> bool:
        """Whether to publish it: not if its instruction was changed or withdrawn meanwhile."""
        return chunk.instruction == self.instruction

    def on_failure(self, message: str) -> None:
        """The model could not answer; a goal ends with this message."""
        self.stats.failures += 1
        if (goal := self._goal) is not None:  # read once: the caller is another thread
            goal.failure = message

    def _was_answered(self, observation: Observation, now_ns: int) -> bool:
        """Before another camera brought a newer image; not if the clock was set back since."""
        newest_ns = self._answered_ns
        return newest_ns is not None and observation.stamp_ns <= newest_ns <= now_ns

    def _preempted(self, message: str) -> Ending | None:
        had_goal, self._goal = self._goal is not None, None
        return Ending(GoalError.PREEMPTED, message) if had_goal else None
