"""A scripted expert for the simulated scene: from ground truth to one policy step at a time.

It has no memory: the same scene gives the same step, so that a policy that sees the scene can
learn it. It recovers from a missed grasp, a lost object or a perturbed arm without detecting
them, because it looks only at the current scene.
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
HOVER_M = 0.090  # open fingers pass over all objects on the table
CARRY_M = 0.120  # so does a held object
CLEAR_M = 0.085
RETREAT_M = 0.16
# Length of the steps away from the released object: short, so that the release is the first step
# of a whole chunk. A chunk that is cut off by the end of the episode has no tokens.
RETREAT_STEP_M = 0.02
RELEASE_M: Mapping[str, float] = {"on": 0.060, "near": 0.034}
# Horizontal distance at which the tool counts as above the object or the target.
ALIGNED_M = 0.012
# Horizontal distance at which an open, lowered gripper slides to the object.
BESIDE_M = 0.022
# Centre of a held object relative to the tool, and the tolerance for it to count as held.
IN_HAND_M = np.array([0.0, 0.0, -0.008])
HAND_REACH_M = np.array([0.020, 0.020, 0.016])
GRIPPED = 0.5  # opening below which the gripper has closed on the object
RELEASED = 0.7
NEAR_GAP_M = 0.012
# Directions in which the fingers have room.
SIDES = tuple(np.array(side) for side in ((-1.0, 0.0), (1.0, 0.0)))

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The state that the expert uses; positions (3,) in the base frame, m.

    Attributes:
        commanded_m: commanded tool position; the step is added to it.
        measured_m: measured tool position, which lags a little.
        opening: measured opening of the gripper, 0 closed ... 1 open.
        positions_m: centre of every object and receptacle.
        radii_m: radii of their footprints.
    """

    commanded_m: Float64
    measured_m: Float64
    opening: float
    positions_m: Mapping[str, Float64]
    radii_m: Mapping[str, float]

    @classmethod
    def of(cls, cell: Cell) -> Scene:
        """The current state of a cell."""
        assert cell.target is not None  # set by the cell's reset
        state = cell.arm_state()
        return cls(
            commanded_m=cell.target.pose.position_m,
            measured_m=cell.kinematics.forward(state.joints_rad).position_m,
            opening=state.gripper,
            positions_m=cell.simulator.object_positions,
            radii_m=cell.simulator.radii_m,
        )


@dataclass(frozen=True, slots=True)
class Expert:
    """Brings `task.object` into its relation to `task.target` and stays in `workspace`.

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
        """Whether the object is in place and the gripper well above it."""
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
        """The object is between the fingers: close, lift, carry, lower, open."""
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
        """Tool position at which the gripper opens."""
        target = self.task.target
        assert target is not None
        xy_m = scene.positions_m[target][:2]
        if self.task.relation == "near":
            xy_m = self._free_side(scene, target)
        return np.array([*xy_m, RELEASE_M[self.task.relation]])

    def _free_side(self, scene: Scene, target: str) -> Float64:
        """The place beside the target with more room and in reach."""
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
        """Whether the object is at the goal and released."""
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
    """Draw an instruction about the scene: object `moved` (or any), any receptacle, any wording.

    `put`: on the plate or in the bowl; `all`: also near something.
    """
    moved = moved or str(rng.choice(simulator.objects))
    is_near = tasks == "all" and rng.random() < NEAR_SHARE
    others = [name for name in simulator.objects if name != moved] if is_near else []
    target = str(rng.choice([*simulator.receptacles, *others]))
    phrase = str(rng.choice(NEAR if is_near else PHRASES[target]))
    return phrase.format(object=moved, target=target)
