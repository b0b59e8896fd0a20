"""One demonstration: the expert acts in the cell, is perturbed, and recovers.

A nudge is a separate step between two steps of the expert. It moves the arm through the same
safety chain, but is recorded on the topic `UNLABELLED` and not as a command. It takes
`NUDGE_PERIODS` step periods, during which there are no commands: the data set's filter of no-op
steps removes this pause, which leaves pairs of an image and the expert's action for it.
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
# Start of the tool relative to its home position: the policy sees the arm in different places.
START_MIN_M, START_MAX_M = (-0.06, -0.12, -0.08), (0.06, 0.12, 0.03)
# Age of the image when its step begins, in control periods: the time that camera, inference and
# the wait for a step boundary take. It is shorter than a step.
MIN_AGE, MAX_AGE = 2, 9
NUDGED_EPISODES = 0.7
NUDGED_STEPS = 0.2  # with more, few whole chunks are left between two nudges
NUDGE_M = 0.012  # standard deviation along each axis
NUDGE_PERIODS = 2  # one to move, one to come to rest before the next image


@dataclass(frozen=True, slots=True)
class Course:
    """Everything besides the scene that the seed determines.

    Attributes:
        start_rad: joints (J,) at the start.
        age_s: age of the image when its step begins.
        nudges_M3: nudge after each step, m; zero: none.
    """

    start_rad: Float64
    age_s: float
    nudges_M3: Float64

    @classmethod
    def draw(
        cls, rng: np.random.Generator, cell: Cell, embodiment: Embodiment, noise: bool
    ) -> Course:
        """Draw a course; with `noise`, some have nudges."""
        age_s = int(rng.integers(MIN_AGE, MAX_AGE + 1)) * CONTROL_PERIOD_S
        is_nudged = rng.random() < NUDGED_EPISODES and noise
        is_moved_M = is_nudged & (rng.random(MAX_STEPS) < NUDGED_STEPS)
        nudges_M3 = rng.normal(0.0, NUDGE_M, (MAX_STEPS, 3)) * is_moved_M[:, None]
        return cls(_draw_start(rng, cell, embodiment), age_s, nudges_M3)


class Demonstration:
    """Runs in a cell that was reset to the start of the course.

    Attributes:
        actions: the expert's actions, each (A,).
        num_nudges: number of nudges.
    """

    def __init__(
        self, cell: Cell, embodiment: Embodiment, course: Course, bag: CellBag | None
    ) -> None:
        assert embodiment.workspace is not None  # the cell's controller requires it
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
        """Act until the task is done, for at most `MAX_STEPS` steps."""
        for _ in range(self._num_careful):  # the bridge scales these steps down
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
            self._pass_time(UNLABELLED, takes_images=False)
        self._pass_time(UNLABELLED)

    def _do(self, action_A: Float64, topic: str) -> None:
        """Act for one step, and take the image for the next."""
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

    def _pass_time(self, topic: str, takes_images: bool = True) -> None:
        """Let one step period pass, with or without taking images."""
        cell, bag, age_s = self._cell, self._bag, self._course.age_s

        def on_tick(_: int, target: SafeTarget | None) -> None:
            if bag is not None:
                bag.tick(target, topic)

        cell.advance(self._action.step_period_s - age_s, on_tick)
        if takes_images:
            self._image_ns = cell.now_ns
        if takes_images and bag is not None:
            bag.look(cell.observe())
        cell.advance(age_s, on_tick)


def _rest(gripper: float) -> Float64:
    return np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper])


def _draw_start(rng: np.random.Generator, cell: Cell, embodiment: Embodiment) -> Float64:
    """Joints (J,) with the tool near its home position, inside the workspace."""
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
