"""One demonstration: the expert acts in the cell, is nudged off its way, and finds back.

A nudge is a step of its own between two of the expert's: it really moves the arm, through the
same safety chain, but is recorded on `UNLABELLED` and not as a command. It takes `NUDGE_PERIODS`
whole step periods, so that to a reader of the commands the arm rests meanwhile: the filter for
no-op steps drops the pause, and what is left are pairs of an image and what the expert did then.
Nothing in the bag is other than it happened.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nora_core.control.controller import CONTROL_PERIOD_S
from nora_core.control.safety_gate import SafeTarget
from nora_core.embodiment import Embodiment
from nora_core.sim.cell import Cell
from nora_core.sim.cell_bag import COMMAND, CellBag
from nora_core.sim.expert import OPEN, Expert, Scene
from nora_core.sim.task import parse
from nora_core.types import ActionChunk, Float64, Pose

UNLABELLED = "demonstration/unlabelled"
MAX_STEPS = 80
# Where the tool starts, from its home: enough for the policy to see the arm elsewhere.
START_MIN_M, START_MAX_M = (-0.06, -0.12, -0.08), (0.06, 0.12, 0.03)
# The image is this old when its step begins, in control periods: what camera, inference and the
# wait for a step boundary take. Less than a step, or the image would be another step's.
MIN_AGE, MAX_AGE = 2, 9
NUDGED_EPISODES = 0.7
NUDGED_STEPS = 0.2  # more of them leave few whole chunks between two nudges
NUDGE_M = 0.012  # standard deviation along each axis
NUDGE_PERIODS = 2  # to be moved, and to come to rest before the next image


@dataclass(frozen=True, slots=True)
class Course:
    """What a seed decides about a demonstration besides the scene.

    Attributes:
        start_rad: joints (J,) at the start.
        age_s: of the image when its step begins.
        nudges_M3: of each step, m; zero where there is none.
    """

    start_rad: Float64
    age_s: float
    nudges_M3: Float64

    @classmethod
    def draw(
        cls, rng: np.random.Generator, cell: Cell, embodiment: Embodiment, noise: bool
    ) -> Course:
        """With nudges in some episodes, or in none without `noise`."""
        age_s = int(rng.integers(MIN_AGE, MAX_AGE + 1)) * CONTROL_PERIOD_S
        is_nudged = rng.random() < NUDGED_EPISODES and noise
        is_moved_M = is_nudged & (rng.random(MAX_STEPS) < NUDGED_STEPS)
        nudges_M3 = rng.normal(0.0, NUDGE_M, (MAX_STEPS, 3)) * is_moved_M[:, None]
        return cls(_draw_start(rng, cell, embodiment), age_s, nudges_M3)


class Demonstration:
    """Runs in a cell that was reset to the course's start.

    Attributes:
        actions: what the expert did, step by step, each (A,).
        num_nudges: steps that were not its own.
    """

    def __init__(
        self, cell: Cell, embodiment: Embodiment, course: Course, bag: CellBag | None
    ) -> None:
        assert embodiment.workspace is not None  # the cell's controller has seen to that
        self.actions: list[Float64] = []
        self.num_nudges = 0
        self._cell, self._action, self._bag = cell, embodiment.action, bag
        self._course = course
        simulator = cell.simulator
        self._instruction = cell.task_state.instruction
        task = parse(self._instruction, simulator.objects, simulator.receptacles)
        self._expert = Expert(task, embodiment.workspace)
        self._num_careful = max(1, embodiment.safety.first_motion_steps)
        self._image_ns = cell.now_ns

    def run(self) -> None:
        """Until the task is done, or `MAX_STEPS` have not been enough."""
        for _ in range(self._num_careful):  # which the bridge would scale down
            self._do(_rest(OPEN), UNLABELLED)
        for nudge_3 in self._course.nudges_M3:
            scene = Scene.of(self._cell)
            if self._cell.task_state.success and self._expert.is_done(scene):
                return
            action_A = self._expert.step(scene)
            self.actions.append(action_A)
            self._do(action_A, COMMAND)
            if nudge_3.any():
                self._nudge(nudge_3, action_A[-1])

    def _nudge(self, nudge_3: Float64, gripper: float) -> None:
        self.num_nudges += 1
        action_A = _rest(gripper)
        action_A[:3] = nudge_3
        self._play(action_A)
        for _ in range(NUDGE_PERIODS - 1):
            self._pass_time(UNLABELLED, is_seen=False)
        self._pass_time(UNLABELLED)

    def _do(self, action_A: Float64, topic: str) -> None:
        """One step, and the image for the next."""
        self._play(action_A)
        self._pass_time(topic)

    def _play(self, action_A: Float64) -> None:
        action = self._action
        self._cell.play(
            ActionChunk(
                actions_TA=action_A[None],
                step_period_s=action.step_period_s,
                stamp_ns=self._image_ns,
                instruction=self._instruction,
                action_names=action.names,
                frame=action.frame,
            )
        )

    def _pass_time(self, topic: str, is_seen: bool = True) -> None:
        """One step period, with or without a look."""
        cell, bag, age_s = self._cell, self._bag, self._course.age_s

        def on_tick(_: int, target: SafeTarget | None) -> None:
            if bag is not None:
                bag.tick(target, topic)

        cell.advance(self._action.step_period_s - age_s, on_tick)
        if is_seen:
            self._image_ns = cell.now_ns
        if is_seen and bag is not None:
            bag.look(cell.observe())
        cell.advance(age_s, on_tick)


def _rest(gripper: float) -> Float64:
    return np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper])


def _draw_start(rng: np.random.Generator, cell: Cell, embodiment: Embodiment) -> Float64:
    """Joints (J,) with the tool somewhere around home, inside the workspace."""
    assert embodiment.arm is not None
    assert embodiment.workspace is not None
    home_rad = np.array(embodiment.arm.home_rad)
    home = cell.kinematics.forward(home_rad)
    while True:
        start_m = home.position_m + rng.uniform(START_MIN_M, START_MAX_M)
        start_m = start_m.clip(embodiment.workspace.min_m, embodiment.workspace.max_m)
        start_rad = cell.kinematics.inverse(Pose(start_m, home.rotation), home_rad)
        if start_rad is not None:
            return start_rad
