"""The judge on real physics: scripted picks, places and distractors; the grammar of tasks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nora_core.control.kinematics import MinkKinematics
from nora_core.embodiment import Embodiment
from nora_core.sim.simulator import Simulator
from nora_core.sim.task import HOLD_NS, Judge, ObjectState, Task, TaskState, parse
from nora_core.types import Float64, Pose

CONFIG = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
OBJECTS = ("red cube", "green cylinder", "blue ball")
RECEPTACLES = ("plate", "bowl")
STEP_M = 0.03
GRASP_Z_M = 0.023
ABOVE_M = np.array([0.0, 0.0, 0.12])


def object_state(
    *,
    radius_m: float = 0.02,
    lift_m: float = 0.0,
    speed_m_s: float = 0.0,
    touches: Iterable[str] = (),
    tool_m: float = np.inf,
) -> ObjectState:
    """An object at the origin."""
    return ObjectState(
        position_m=np.zeros(3),
        radius_m=radius_m,
        lift_m=lift_m,
        speed_m_s=speed_m_s,
        touches=frozenset(touches),
        tool_m=tool_m,
    )


class Hand:
    """Moves the tool of a simulated arm in a straight line, pointing down, in steps of 5 Hz."""

    def __init__(self, sim: Simulator, kinematics: MinkKinematics) -> None:
        self.sim, self._kinematics = sim, kinematics
        self._joints_rad = sim.arm_state().joints_rad
        self._pose = kinematics.forward(self._joints_rad)
        self._gripper = 1.0

    def grip(self, opening: float) -> None:
        self._gripper = opening
        self.sim.command(self._joints_rad, opening)
        self.sim.step(0.6)

    def move(self, goal_m: Float64) -> None:
        start_m = self._pose.position_m
        num_steps = int(np.ceil(np.linalg.norm(goal_m - start_m) / STEP_M))
        for k in range(1, num_steps + 1):
            position_m = start_m + (goal_m - start_m) * k / num_steps
            self._pose = Pose(position_m, self._pose.rotation)
            joints_rad = self._kinematics.inverse(self._pose, self._joints_rad)
            assert joints_rad is not None, f"unreachable: {position_m}"
            self._joints_rad = joints_rad
            self.sim.command(joints_rad, self._gripper)
            self.sim.step(0.2)

    def pick(self, name: str) -> None:
        position_m = self.sim.object_positions[name]
        at_m = np.array([position_m[0], position_m[1], GRASP_Z_M])
        self.move(at_m + ABOVE_M)
        self.move(at_m)
        self.grip(0.0)
        self.move(at_m + ABOVE_M)

    def place(self, at_m: Float64, height_m: float) -> None:
        release_m = np.array([at_m[0], at_m[1], GRASP_Z_M + height_m])
        self.move(np.array([*release_m[:2], self._pose.position_m[2]]))
        self.move(release_m)
        self.grip(1.0)
        self.move(release_m + ABOVE_M)
        self.sim.step(0.6)


@pytest.fixture(scope="module")
def sim() -> Simulator:
    return Simulator(Embodiment.load(CONFIG))


@pytest.fixture(scope="module")
def kinematics() -> MinkKinematics:
    arm = Embodiment.load(CONFIG).arm
    assert arm is not None
    return MinkKinematics(arm)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize(("receptacle", "height_m"), [("plate", 0.012), ("bowl", 0.045)])
def test_scripted_pick_and_place_succeeds(
    sim: Simulator,
    kinematics: MinkKinematics,
    seed: int,
    name: str,
    receptacle: str,
    height_m: float,
) -> None:
    instruction = f"put the {name} on the {receptacle}"
    sim.reset(seed, instruction)
    hand = Hand(sim, kinematics)
    hand.pick(name)
    assert sim.task_state == TaskState(
        instruction=instruction, success=False, partial=True, distractor=0, reached=True
    )
    hand.place(sim.object_positions[receptacle], height_m)
    assert sim.task_state == TaskState(
        instruction=instruction, success=True, partial=True, distractor=0, reached=True
    )


@pytest.mark.parametrize("name", OBJECTS)
def test_distractor_grasp_is_counted_once_and_is_no_partial(
    sim: Simulator, kinematics: MinkKinematics, name: str
) -> None:
    named = OBJECTS[OBJECTS.index(name) - 1]
    sim.reset(5, f"put the {named} on the plate")
    Hand(sim, kinematics).pick(name)
    sim.step(1.0)
    state = sim.task_state
    assert (state.success, state.partial, state.distractor) == (False, False, 1)
    assert not state.reached


def test_partial_survives_a_drop_beside_the_receptacle(
    sim: Simulator, kinematics: MinkKinematics
) -> None:
    sim.reset(6, "put the red cube on the plate")
    hand = Hand(sim, kinematics)
    hand.pick("red cube")
    hand.grip(1.0)
    sim.step(1.0)
    state = sim.task_state
    assert (state.success, state.partial, state.distractor) == (False, True, 0)


def test_a_squeeze_is_no_grasp_until_it_lifts(sim: Simulator, kinematics: MinkKinematics) -> None:
    sim.reset(6, "put the red cube on the plate")
    hand = Hand(sim, kinematics)
    at_m = np.array([*sim.object_positions["red cube"][:2], GRASP_Z_M])
    hand.move(at_m + ABOVE_M)
    hand.move(at_m)
    hand.grip(0.0)
    assert not sim.task_state.partial
    hand.move(at_m + ABOVE_M)
    assert sim.task_state.partial


@pytest.mark.parametrize(
    ("touches", "lift_m", "expected"),
    [
        ({"left_finger", "right_finger"}, 0.03, True),
        ({"left_finger", "table"}, 0.03, False),
        ({"right_finger"}, 0.03, False),
        ({"left_finger", "right_finger"}, 0.005, False),
        (set(), 0.03, False),
    ],
)
def test_a_grasp_needs_both_fingers_and_a_lift(
    touches: set[str], lift_m: float, expected: bool
) -> None:
    state = object_state(lift_m=lift_m, touches=touches)
    assert state.is_grasped == expected


@pytest.mark.parametrize(
    ("touches", "tool_m", "expected"),
    [(set(), 0.031, False), (set(), 0.029, True), ({"table"}, 0.1, False)]
    + [({finger, "table"}, 0.1, True) for finger in ("left_finger", "right_finger")],
)
def test_to_reach_is_to_touch_or_to_come_close(
    touches: set[str], tool_m: float, expected: bool
) -> None:
    state = object_state(touches=touches, tool_m=tool_m)
    assert state.is_reached == expected


def test_held_over_the_plate_is_no_success(sim: Simulator, kinematics: MinkKinematics) -> None:
    sim.reset(7, "put the blue ball on the plate")
    hand = Hand(sim, kinematics)
    hand.pick("blue ball")
    x, y, _ = sim.object_positions["plate"]
    hand.move(np.array([x, y, 0.12]))
    hand.move(np.array([x, y, GRASP_Z_M + 0.008]))
    sim.step(1.0)
    assert not sim.task_state.success


def test_pick_up(sim: Simulator, kinematics: MinkKinematics) -> None:
    sim.reset(8, "Pick up the green cylinder.")
    hand = Hand(sim, kinematics)
    hand.pick("green cylinder")
    sim.step(0.5)
    assert sim.task_state.success
    hand.grip(1.0)
    assert not sim.task_state.success  # the state of the scene now, not a memory


def test_move_near(sim: Simulator, kinematics: MinkKinematics) -> None:
    sim.reset(2, "move the red cube near the green cylinder")
    hand = Hand(sim, kinematics)
    hand.pick("red cube")
    beside_m = sim.object_positions["green cylinder"] + np.array([0.06, 0.0, 0.0])
    hand.place(beside_m, 0.005)
    assert sim.task_state.success


@given(
    moved=st.sampled_from(OBJECTS),
    target=st.sampled_from(RECEPTACLES),
    preposition=st.sampled_from(["on", "onto", "in", "into", "on top of", "near", "next to"]),
    article=st.sampled_from(["the ", ""]),
    end=st.sampled_from(["", ".", "  "]),
)
def test_grammar_reads_every_wording(
    moved: str, target: str, preposition: str, article: str, end: str
) -> None:
    instruction = f"Put {article}{moved.upper()} {preposition} {article}{target}{end}"
    relation = "near" if preposition in ("near", "next to") else "on"
    assert parse(instruction, OBJECTS, RECEPTACLES) == Task(moved, relation, target)


@pytest.mark.parametrize(
    ("instruction", "names"),
    [
        ("put the banana on the plate", ["banana", "red cube"]),
        ("put the red cube on the shelf", ["shelf", "plate"]),
        ("put the red cube on the green cylinder", ["green cylinder", "bowl"]),
        ("move the red cube near the red cube", ["red cube", "blue ball"]),
        ("dance", ["dance", "put the A on the B", "red cube", "plate"]),
        ("", ["red cube", "plate"]),
    ],
)
def test_unknown_instruction_says_what_there_is(instruction: str, names: list[str]) -> None:
    with pytest.raises(ValueError, match="instruction: expected") as error:
        parse(instruction, OBJECTS, RECEPTACLES)
    assert all(name in str(error.value) for name in names)


def test_success_needs_rest_for_a_while() -> None:
    """One finger's flicker, a rolling ball or a touch in passing is not a success."""

    def scene(speed_m_s: float, touches: set[str]) -> dict[str, ObjectState]:
        ball = object_state(lift_m=0.005, speed_m_s=speed_m_s, touches=touches)
        return {"blue ball": ball, "plate": object_state(radius_m=0.075)}

    judge = Judge("", Task("blue ball", "on", "plate"))
    resting, rolling = scene(0.0, {"plate"}), scene(0.1, {"plate"})
    touched = scene(0.0, {"plate", "left_finger"})
    assert not judge.update(0, resting).success
    assert judge.update(HOLD_NS, resting).success
    assert not judge.update(HOLD_NS + 1, rolling).success
    assert not judge.update(HOLD_NS + 2, resting).success
    assert not judge.update(2 * HOLD_NS + 2, touched).success
