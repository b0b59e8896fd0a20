"""The task of an instruction in the simulated scene, and whether it was done.

Judged as in the NORA-1.5 paper's trials on the Galaxea A1: success, partial success (the named
object was grasped) and the number of grasps of another object (distractors).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nora_core.types import Float64, Outcome

FINGERS = frozenset({"left_finger", "right_finger"})

GRASP_LIFT_M = 0.01
PICK_LIFT_M = 0.05
REACH_M = 0.03
NEAR_GAP_M = 0.025
REST_SPEED_M_S = 0.02
HOLD_NS = 300_000_000

Relation = Literal["on", "near", "lifted"]

_PUT = r"(?:put|place|set|drop|move|push) (?P<object>.+?) "
_GRAMMAR: tuple[tuple[Relation, str], ...] = (
    ("near", _PUT + r"(?:near|next to|beside|close to) (?P<target>.+)"),
    ("on", _PUT + r"(?:on top of|onto|on|into|inside|in) (?P<target>.+)"),
    ("lifted", r"(?:pick up|lift|grasp|take) (?P<object>.+)"),
)


@dataclass(frozen=True, slots=True)
class Task:
    """Bring `object` into `relation` to `target`; "lifted" has no target."""

    object: str
    relation: Relation
    target: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectState:
    """State of one object or receptacle at one instant.

    Attributes:
        position_m: of its centre, (3,).
        radius_m: of its footprint.
        lift_m: height above its rest position at reset.
        speed_m_s: of its centre.
        touches: names of the bodies in contact with it.
        tool_m: distance of its centre to the tool.
    """

    position_m: Float64
    radius_m: float
    lift_m: float
    speed_m_s: float
    touches: frozenset[str]
    tool_m: float = math.inf

    @property
    def is_grasped(self) -> bool:
        return self.touches >= FINGERS and self.lift_m >= GRASP_LIFT_M

    @property
    def is_reached(self) -> bool:
        return bool(self.touches & FINGERS) or self.tool_m <= REACH_M


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """Task status.

    Attributes:
        instruction: the task.
        success: it is done now.
        partial: the named object was grasped since the reset.
        distractor: number of grasps of another object since the reset.
        reached: since the reset, a finger touched the named object or the tool came within
            `REACH_M` of it.
    """

    instruction: str
    success: bool
    partial: bool
    distractor: int
    reached: bool = False

    @property
    def outcome(self) -> Outcome:
        """The label of a trial that ends now."""
        if self.success:
            return Outcome.SUCCESS
        return Outcome.PARTIAL if self.partial else Outcome.FAILURE


def parse(instruction: str, objects: tuple[str, ...], receptacles: tuple[str, ...]) -> Task:
    """Read "put the red cube on the plate", "move the X near the Y", "pick up the X".

    Raises:
        ValueError: no such sentence, object or target; says what is available.
    """
    sentence = " ".join(instruction.lower().split()).rstrip(".!")
    for relation, pattern in _GRAMMAR:
        match = re.fullmatch(pattern, sentence)
        if match is None:
            continue
        words = match.groupdict()
        moved = _name(words["object"], objects, "an object")
        if relation == "lifted":
            return Task(moved, relation, None)
        targets = receptacles if relation == "on" else (*receptacles, *objects)
        others = tuple(name for name in targets if name != moved)
        return Task(moved, relation, _name(words["target"], others, "a target"))
    raise ValueError(
        f"instruction: expected 'put the A on the B', 'move the A near the B' or 'pick up the A', "
        f"got {instruction!r}, available: objects {list(objects)}, receptacles {list(receptacles)}"
    )


def _name(words: str, available: tuple[str, ...], kind: str) -> str:
    name = words.removeprefix("the ")
    if name not in available:
        raise ValueError(
            f"instruction: expected {kind} of the scene, got {name!r}, "
            f"available: {list(available)}"
        )
    return name


class Judge:
    """Follows one task from the reset on; needs an update every few milliseconds."""

    def __init__(self, instruction: str, task: Task) -> None:
        self._task = task
        self._held: frozenset[str] = frozenset()
        self._done_since_ns: int | None = None
        self.state = TaskState(instruction=instruction, success=False, partial=False, distractor=0)

    def update(self, now_ns: int, states: Mapping[str, ObjectState]) -> TaskState:
        """Take the state of every object and receptacle of the scene, by name."""
        grasped = {name for name, state in states.items() if state.is_grasped}
        still_touched = {name for name in self._held if states[name].touches & FINGERS}
        new_distractors = grasped - self._held - {self._task.object}
        self._held = frozenset(grasped | still_touched)
        if not _is_done(self._task, states):
            self._done_since_ns = None
        elif self._done_since_ns is None:
            self._done_since_ns = now_ns
        before, since_ns = self.state, self._done_since_ns
        self.state = TaskState(
            instruction=before.instruction,
            success=since_ns is not None and now_ns - since_ns >= HOLD_NS,
            partial=before.partial or self._task.object in grasped,
            distractor=before.distractor + len(new_distractors),
            reached=before.reached or states[self._task.object].is_reached,
        )
        return self.state


def _is_done(task: Task, states: Mapping[str, ObjectState]) -> bool:
    state = states[task.object]
    if task.target is None:
        return state.is_grasped and state.lift_m >= PICK_LIFT_M
    if state.touches & FINGERS or state.speed_m_s > REST_SPEED_M_S:
        return False
    target = states[task.target]
    distance_m = float(np.linalg.norm((state.position_m - target.position_m)[:2]))
    if task.relation == "on":
        return task.target in state.touches and distance_m <= target.radius_m
    return distance_m - state.radius_m - target.radius_m <= NEAR_GAP_M
