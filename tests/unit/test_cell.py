"""The simulated cell: the real safety chain on simulated time."""

from pathlib import Path

import numpy as np
import pytest

from nora_core.control.status import Mode
from nora_core.embodiment import Embodiment
from nora_core.sim.cell import START_NS, Cell
from nora_core.types import ActionChunk

CONFIG = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
EMBODIMENT = Embodiment.load(CONFIG)
TASK = "put the red cube on the plate"
ACTION = EMBODIMENT.action


@pytest.fixture(scope="module")
def cell():
    made = Cell(EMBODIMENT, (64, 64))
    yield made
    made.close()


def chunk(stamp_ns, *xyz, gripper=1.0):
    action_A = np.array([*xyz, 0.0, 0.0, 0.0, gripper])
    return ActionChunk(
        actions_TA=action_A[None],
        step_period_s=ACTION.step_period_s,
        stamp_ns=stamp_ns,
        instruction=TASK,
        action_names=ACTION.names,
        frame=ACTION.frame,
    )


def targets(cell, *steps):
    seen = []
    for step in steps:
        cell.play(chunk(cell.now_ns, *step))
        cell.advance(ACTION.step_period_s, lambda now_ns, target: seen.append(target))
    return seen


def test_a_step_moves_the_tool_as_far_as_it_says(cell):
    cell.reset(3, TASK)
    for _ in range(EMBODIMENT.safety.first_motion_steps):
        targets(cell, (0.0, 0.0, 0.0))
    before = cell.kinematics.forward(cell.arm_state().joints_rad).position_m
    commanded = targets(cell, (0.02, -0.03, -0.04))
    cell.advance(0.4)
    after = cell.kinematics.forward(cell.arm_state().joints_rad).position_m
    moved = commanded[-1].pose.position_m - commanded[0].pose.position_m
    assert np.abs(moved - [0.02, -0.03, -0.04]).max() < 1e-3 + 0.35 * 0.02
    assert np.abs(after - before - [0.02, -0.03, -0.04]).max() < 3e-3


def test_every_reset_is_the_same_beginning(cell):
    cell.reset(3, TASK)
    began_ns = cell.now_ns
    first = targets(cell, (0.02, 0.0, -0.04), (0.0, 0.03, 0.0))
    cell.reset(4, TASK)
    targets(cell, (0.04, 0.0, 0.0))
    cell.reset(3, TASK)
    again = targets(cell, (0.02, 0.0, -0.04), (0.0, 0.03, 0.0))
    assert cell.now_ns > began_ns >= START_NS
    assert [t.stamp_ns for t in first] == [t.stamp_ns for t in again]
    assert np.array_equal([t.joints_rad for t in first], [t.joints_rad for t in again])


def test_it_starts_at_home_or_where_told(cell):
    cell.reset(0, TASK)
    assert cell.controller.status.mode is Mode.POLICY
    assert cell.arm_state().joints_rad == pytest.approx(EMBODIMENT.arm.home_rad, abs=2e-3)
    start_rad = np.add(EMBODIMENT.arm.home_rad, [0.3, 0.1, 0.0, 0.0, 0.0, 0.0])
    cell.reset(0, TASK, start_rad)
    assert cell.arm_state().joints_rad == pytest.approx(start_rad, abs=2e-3)
    held = targets(cell, (0.0, 0.0, 0.0))
    assert held[-1].joints_rad == pytest.approx(start_rad, abs=2e-3)


def test_images_are_stamped_with_the_time_of_the_cell(cell):
    cell.reset(0, TASK)
    seen = cell.observe()
    assert list(seen) == [camera.name for camera in EMBODIMENT.cameras]
    for frame in seen.values():
        assert frame.stamp_ns == cell.now_ns
        assert frame.rgb_HW3.shape == (64, 64, 3)


def test_what_the_bridge_refuses_is_an_error(cell):
    cell.reset(0, TASK)
    cell.play(chunk(cell.now_ns, 0.0, 0.0, 0.0))
    with pytest.raises(RuntimeError, match="OUT_OF_ORDER"):
        cell.play(chunk(cell.now_ns, 0.0, 0.0, 0.0))
    cell.advance(1.2)
    with pytest.raises(RuntimeError, match="CHUNK_STALE"):
        cell.play(chunk(cell.now_ns - 1_100_000_000, 0.0, 0.0, 0.0))


@pytest.mark.parametrize("duration_s", [0.03, -0.02, 0.001])
def test_time_passes_in_control_periods(cell, duration_s):
    with pytest.raises(ValueError, match="advance: expected a multiple"):
        cell.advance(duration_s)
