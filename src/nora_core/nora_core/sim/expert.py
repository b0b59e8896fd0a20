"""A scripted expert for the simulated scene: from ground truth to one policy step at a time.

It has no memory: the same scene gives the same step, so that a policy that sees the scene can
learn it. Whatever went wrong before (a missed grasp, a lost object, a nudged arm) is dealt with
by what is there now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nora_core.embodiment import Workspace
from nora_core.sim.cell import Cell
from nora_core.sim.simulator import Simulator
from nora_core.sim.task import Task
from nora_core.types import Float64

Tasks = Literal["put", "all"]

STEP_M = 0.04  # longest step
OPEN, CLOSED = 1.0, 0.0
# Heights of the tool.
GRASP_M = 0.030
HOVER_M = 0.090  # open fingers pass over whatever stands on the table
CARRY_M = 0.120  # so does what they hold
CLEAR_M = 0.085
RETREAT_M = 0.16
# A step away from what was put down: short ones, so that letting go is the first step of a whole
# chunk. A chunk that the episode's end cuts off has no tokens.
RETREAT_STEP_M = 0.02
RELEASE_M: Mapping[str, float] = {"on": 0.060, "near": 0.034}
# The tool is above the object, or what it holds above the target.
ALIGNED_M = 0.012
# An open hand this far off slides to the object instead of rising first.
BESIDE_M = 0.022
# A held object's centre, from the tool, and how far from there it still counts as in the hand.
IN_HAND_M = np.array([0.0, 0.0, -0.008])
HAND_REACH_M = np.array([0.020, 0.020, 0.016])
GRIPPED = 0.5  # opening below which the fingers are at the object
RELEASED = 0.7
NEAR_GAP_M = 0.012
SIDES = tuple(np.array(side) for side in ((-1.0, 0.0), (1.0, 0.0)))  # where fingers have room

ON_PLATE = (
    "put the {object} on the {target}",
    "place the {object} on the {target}",
    "set the {object} on the {target}",
    "put the {object} onto the {target}",
    "move the {object} onto the {target}",
    "place the {object} on top of the {target}",
)
IN_BOWL = (
    "put the {object} in the {target}",
    "place the {object} in the {target}",
    "put the {object} into the {target}",
    "drop the {object} into the {target}",
    "set the {object} inside the {target}",
    "move the {object} into the {target}",
)
NEAR = (
    "move the {object} near the {target}",
    "put the {object} next to the {target}",
    "place the {object} close to the {target}",
    "move the {object} beside the {target}",
    "set the {object} near the {target}",
)
PHRASES = {"plate": ON_PLATE, "bowl": IN_BOWL}
NEAR_SHARE = 0.3  # of all tasks, when they include it


@dataclass(frozen=True, slots=True)
class Scene:
    """What the expert looks at; positions (3,) in the base frame, m.

    Attributes:
        commanded_m: tool as last commanded; the step is added to it.
        measured_m: tool as it is, a little behind.
        opening: of the gripper as it is, 0 closed ... 1 open.
        positions_m: centre of every object and receptacle.
        radii_m: of their footprints.
    """

    commanded_m: Float64
    measured_m: Float64
    opening: float
    positions_m: Mapping[str, Float64]
    radii_m: Mapping[str, float]

    @classmethod
    def of(cls, cell: Cell) -> Scene:
        """As the cell stands now."""
        assert cell.target is not None  # the cell's reset waits for it
        state = cell.arm_state()
        return cls(
            cell.target.pose.position_m,
            cell.kinematics.forward(state.joints_rad).position_m,
            state.gripper,
            cell.simulator.object_positions,
            cell.simulator.radii_m,
        )


@dataclass(frozen=True, slots=True)
class Expert:
    """Brings `task.object` into its relation to `task.target`, without ever leaving `workspace`.

    Raises:
        ValueError: the task has no target.
    """

    task: Task
    workspace: Workspace

    def __post_init__(self) -> None:
        if self.task.target is None:
            raise ValueError(f"task: expected a target, got {self.task}")

    def step(self, scene: Scene) -> Float64:
        """The next action (7,): x y z in m, no rotation, gripper opening."""
        tool_m, object_m = scene.commanded_m, scene.positions_m[self.task.object]
        goal_m = self._goal(scene)
        if self._is_placed(scene, goal_m):
            above_m = np.array([*tool_m[:2], RETREAT_M])
            return self._towards(tool_m, above_m, OPEN, RETREAT_STEP_M)
        off_m = np.abs(object_m - scene.measured_m - IN_HAND_M)
        if np.all(off_m < HAND_REACH_M):
            return self._bring(scene, goal_m)
        return self._fetch(tool_m, object_m)

    def is_done(self, scene: Scene) -> bool:
        """The object is where it belongs and the hand is well above it."""
        is_away = scene.commanded_m[2] > RETREAT_M - 0.5 * RETREAT_STEP_M
        return is_away and self._is_placed(scene, self._goal(scene))

    def _fetch(self, tool_m: Float64, object_m: Float64) -> Float64:
        off_m = float(np.linalg.norm(object_m[:2] - tool_m[:2]))
        if off_m < ALIGNED_M:
            return self._towards(tool_m, np.array([*object_m[:2], GRASP_M]), OPEN)
        if tool_m[2] > CLEAR_M - 0.015:
            return self._towards(tool_m, np.array([*object_m[:2], HOVER_M]), OPEN)
        if off_m < BESIDE_M:
            return self._towards(tool_m, np.array([*object_m[:2], tool_m[2]]), OPEN)
        return self._towards(tool_m, np.array([*tool_m[:2], HOVER_M]), OPEN)

    def _bring(self, scene: Scene, goal_m: Float64) -> Float64:
        """With the object between the fingers: close, lift, carry, lower, open."""
        tool_m = scene.commanded_m
        off_m = float(np.linalg.norm(goal_m[:2] - tool_m[:2]))
        if off_m < ALIGNED_M:
            is_low = tool_m[2] < goal_m[2] + 0.006
            return self._towards(tool_m, tool_m if is_low else goal_m, OPEN if is_low else CLOSED)
        if scene.opening > GRIPPED:
            return self._towards(tool_m, tool_m, CLOSED)
        xy_m = goal_m[:2] if tool_m[2] > CLEAR_M else tool_m[:2]
        return self._towards(tool_m, np.array([*xy_m, CARRY_M]), CLOSED)

    def _goal(self, scene: Scene) -> Float64:
        """Where the tool lets go."""
        target = self.task.target
        assert target is not None
        xy_m = scene.positions_m[target][:2]
        if self.task.relation == "near":
            xy_m = self._free_side(scene, target)
        return np.array([*xy_m, RELEASE_M[self.task.relation]])

    def _free_side(self, scene: Scene, target: str) -> Float64:
        """Beside the target, on the side with more room (and reach)."""
        names = (self.task.object, target)
        apart_m = sum(scene.radii_m[name] for name in names) + NEAR_GAP_M
        others = [scene.positions_m[name][:2] for name in scene.positions_m if name not in names]
        low_m, high_m = self.workspace.min_m[0] + 0.04, self.workspace.max_m[0] - 0.04

        def room_m(xy_m: Float64) -> float:
            outside_m = max(low_m - xy_m[0], xy_m[0] - high_m, 0.0)
            away_m = min(float(np.linalg.norm(xy_m - other_m)) for other_m in others)
            return away_m - 10 * float(outside_m)

        return max((scene.positions_m[target][:2] + apart_m * side for side in SIDES), key=room_m)

    def _is_placed(self, scene: Scene, goal_m: Float64) -> bool:
        """The object lies at the goal and nothing holds it."""
        object_m = scene.positions_m[self.task.object]
        off_m = float(np.linalg.norm(object_m[:2] - goal_m[:2]))
        tolerance_m = 0.03 if self.task.relation == "on" else ALIGNED_M
        is_low = object_m[2] < goal_m[2] + IN_HAND_M[2] + 0.01
        return off_m < tolerance_m and is_low and scene.opening > RELEASED

    def _towards(
        self, tool_m: Float64, goal_m: Float64, gripper: float, longest_m: float = STEP_M
    ) -> Float64:
        low_m, high_m = self.workspace.min_m, self.workspace.max_m
        way_m = np.clip(goal_m, low_m, high_m) - tool_m
        way_m *= longest_m / max(longest_m, float(np.linalg.norm(way_m)))
        return np.array([*way_m, 0.0, 0.0, 0.0, gripper])


def draw_task(
    rng: np.random.Generator, simulator: Simulator, tasks: Tasks = "put", moved: str = ""
) -> str:
    """An instruction about the scene: object `moved` (or any), any receptacle, any wording.

    `put`: on the plate or in the bowl; `all`: also near something.
    """
    moved = moved or str(rng.choice(simulator.objects))
    is_near = tasks == "all" and rng.random() < NEAR_SHARE
    others = [name for name in simulator.objects if name != moved] if is_near else []
    target = str(rng.choice([*simulator.receptacles, *others]))
    phrase = str(rng.choice(NEAR if is_near else PHRASES[target]))
    return phrase.format(object=moved, target=target)
