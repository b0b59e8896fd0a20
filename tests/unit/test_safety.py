from dataclasses import replace

import numpy as np
import pytest
from gantry import M_PER_RAD, PERIOD_S, Gantry, gantry_embodiment, step
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from nora_core.control.limited_motion import Motion
from nora_core.control.safety_gate import SafetyGate
from nora_core.types import Reason

EMBODIMENT = gantry_embodiment()
HOME = np.array(EMBODIMENT.arm.home_rad)
LIMITS = EMBODIMENT.limits
numbers = st.floats(-1.0, 1.0)


def make_gate(embodiment=EMBODIMENT, kinematics=None, joints_rad=HOME):
    gate = SafetyGate(embodiment, kinematics or Gantry(), PERIOD_S)
    gate.anchor(joints_rad, 1.0)
    return gate


def settle(gate, limit=400):
    """Advance until the goal is reached."""
    for _ in range(limit):
        _, refusal = gate.advance(0)
        assert refusal is None
        if gate.is_at_goal:
            return
    pytest.fail("never reached the goal")


def start(gate, scale=1.0, **axes):
    return gate.start_step(np.array(step(**axes)), scale)


def joints_at(x, y, z):
    return np.array([x, y, z, 0.0, 0.0, 0.0]) / np.array([M_PER_RAD] * 3 + [1.0] * 3)


# one axis


@given(
    st.tuples(numbers, numbers).map(sorted), st.floats(0, 1), numbers, st.lists(st.floats(0, 1))
)
def test_motion_whose_standstill_and_targets_lie_in_an_interval_stays_in_it(
    interval, where, velocity, targets
):
    low, high = interval
    motion = Motion(np.array([1.0]), np.array([4.0]), PERIOD_S)
    position = np.array([low + where * (high - low)])
    stop = position + velocity * abs(velocity) / (2 * 4.0)
    if not low <= stop[0] <= high or not low <= position[0] <= high:
        velocity = 0.0
    velocity = np.array([velocity])
    for target in targets:
        for _ in range(7):
            before = velocity
            position, velocity = motion.towards(
                position, velocity, np.array([low + target * (high - low)])
            )
            assert low - 1e-9 <= position[0] <= high + 1e-9
            assert abs(velocity[0]) <= 1.0 + 1e-9
            assert abs(velocity[0] - before[0]) <= 4.0 * PERIOD_S + 1e-9


@given(st.floats(-1.0, 1.0))
def test_braking_ends_at_rest_after_the_shortest_way(velocity):
    motion = Motion(np.array([1.0]), np.array([4.0]), PERIOD_S)
    position, speed = np.zeros(1), np.array([velocity])
    for _ in range(int(np.ceil(motion.stop_time_s / PERIOD_S - 1e-9))):
        position, speed = motion.braking(position, speed)
    assert speed[0] == 0.0
    assert position[0] == pytest.approx(velocity * abs(velocity) / 8.0, abs=1e-12)


# steps


@given(st.lists(st.tuples(*[st.floats(-0.02, 0.02)] * 3, *[st.floats(-0.2, 0.2)] * 3), max_size=4))
def test_targets_integrate_as_in_bridge_data(deltas):
    """Position adds; rotation is extrinsic x-y-z about the base axes, on the left."""
    gate = make_gate()
    position, rotation = gate.pose.position_m, gate.pose.rotation
    for delta in deltas:
        gate.start_step(np.array([*delta, 1.0]), 1.0)
        position = np.clip(
            position + delta[:3], EMBODIMENT.workspace.min_m, EMBODIMENT.workspace.max_m
        )
        roll, pitch, yaw = delta[3:]
        about_x, about_y, about_z = (Rotation.from_rotvec(v) for v in np.diag([roll, pitch, yaw]))
        rotation = about_z * about_y * about_x * rotation
    settle(gate)
    assert gate.pose.position_m == pytest.approx(position, abs=1e-8)
    assert (gate.pose.rotation * rotation.inv()).magnitude() < 1e-8


def test_a_step_builds_on_the_commanded_target_not_on_where_the_arm_got_to():
    gate = make_gate()
    start(gate, x=0.03)
    gate.advance(0)
    start(gate, x=0.03)
    settle(gate)
    assert gate.pose.position_m[0] == pytest.approx(0.28 + 0.06, abs=1e-8)


@pytest.mark.parametrize(("axis", "value"), [("x", 0.3), ("y", -1e300), ("yaw", 1e9)])
def test_large_steps_are_clipped_and_named(axis, value):
    delta, notes = start(make_gate(), **{axis: value})
    moved = np.append(delta.translation_m, delta.rotation_rad)
    limit = LIMITS.step_rad if axis == "yaw" else LIMITS.step_m
    assert np.abs(moved).sum() == pytest.approx(limit)
    assert notes[0].reason is Reason.STEP_LIMIT
    assert axis in notes[0].detail
    assert f"limit {limit:g}" in notes[0].detail


@pytest.mark.parametrize(("wanted", "opening"), [(1.4, 1.0), (-0.1, 0.0)])
def test_gripper_opening_stays_between_closed_and_open(wanted, opening):
    delta, notes = start(make_gate(), gripper=wanted)
    assert delta.gripper == opening
    assert notes[0].reason is Reason.STEP_LIMIT


def test_first_motion_scale_applies_to_the_motion_but_not_to_the_gripper():
    delta, notes = start(make_gate(), scale=0.25, x=0.04, yaw=0.2, gripper=0.8)
    assert delta.translation_m[0] == pytest.approx(0.01)
    assert delta.rotation_rad[2] == pytest.approx(0.05)
    assert delta.gripper == 0.8
    assert not notes


def test_a_target_outside_the_box_is_clamped_or_refused_as_configured():
    edge = EMBODIMENT.workspace.max_m[1]
    joints_rad = joints_at(0.28, edge - 0.01, 0.14)
    delta, notes = start(make_gate(joints_rad=joints_rad), y=0.03, x=0.01)
    assert delta.translation_m == pytest.approx([0.01, 0.01, 0.0])
    assert notes[0].reason is Reason.WORKSPACE
    assert f"{edge:.3f}" in notes[0].detail

    gate = make_gate(gantry_embodiment(workspace={"on_violation": "refuse"}), None, joints_rad)
    delta, notes = start(gate, y=0.03, x=0.01)
    assert delta is None
    assert notes[-1].reason is Reason.WORKSPACE
    assert gate.is_at_goal


def test_from_outside_the_tool_only_comes_closer():
    low = EMBODIMENT.workspace.min_m[2]
    gate = make_gate(joints_rad=joints_at(0.28, 0.0, low - 0.02))
    assert gate.far_outside() is None
    start(gate, z=-0.05)
    settle(gate)
    assert gate.pose.position_m[2] == pytest.approx(low - 0.02)
    start(gate, z=0.05)
    settle(gate)
    assert gate.outside() is None
    assert make_gate(joints_rad=joints_at(0.28, 0.0, low - 0.2)).far_outside().reason is (
        Reason.WORKSPACE
    )


# motion


def test_a_pose_out_of_reach_slows_the_arm_to_a_stop_and_is_named():
    reach_m = 0.34
    gate = make_gate(kinematics=Gantry(reach_m))
    speeds, refusal = [], None
    for _ in range(100):
        start(gate, x=0.02)
        before = gate.pose.position_m[0]
        _, refusal = gate.advance(0)
        speeds.append((gate.pose.position_m[0] - before) / PERIOD_S)
        if refusal:
            break
    assert refusal.reason is Reason.IK
    assert gate.is_at_rest
    assert gate.is_at_goal
    assert np.linalg.norm(gate.pose.position_m) <= reach_m
    assert np.max(np.abs(np.diff(speeds))) <= LIMITS.acceleration_m_s2 * PERIOD_S + 1e-9
    start(gate, x=-0.02)
    settle(gate)


def test_a_joint_at_its_limit_stops_the_arm_and_is_named():
    kinematics = Gantry()
    kinematics.upper_rad = np.where(np.arange(6) == 3, 0.3, kinematics.upper_rad)
    gate = make_gate(kinematics=kinematics)
    refusal = None
    for _ in range(100):
        start(gate, roll=0.1)
        _, refusal = gate.advance(0)
        if refusal:
            break
    assert refusal.reason is Reason.JOINT_LIMIT
    assert gate.joints_rad[3] <= 0.3 + 1e-9


def test_a_slow_joint_makes_the_whole_motion_slow():
    limits = {"joint_velocity_rad_s": 0.5}
    gate = make_gate(gantry_embodiment(limits=limits))
    start(gate, x=0.05)
    num_periods = 0
    while not gate.is_at_goal:
        before = gate.joints_rad
        _, refusal = gate.advance(0)
        assert refusal is None
        assert np.max(np.abs(gate.joints_rad - before)) <= 0.5 * PERIOD_S + 1e-9
        num_periods += 1
        assert num_periods < 200
    assert num_periods * PERIOD_S >= 0.05 / M_PER_RAD / 0.5
    assert gate.pose.position_m[0] == pytest.approx(0.33)


def test_freeze_stands_still_at_once_and_brake_does_not_jump_back():
    gate = make_gate()
    start(gate, x=0.05)
    for _ in range(5):
        gate.advance(0)
    at_m = gate.pose.position_m.copy()
    frozen = gate.freeze(7)
    assert frozen.pose.position_m == pytest.approx(at_m, abs=0)
    assert frozen.stamp_ns == 7
    assert gate.is_at_goal

    start(gate, x=0.05)
    positions = [gate.advance(0)[0].pose.position_m[0] for _ in range(4)]
    positions += [gate.brake(0).pose.position_m[0] for _ in range(20)]
    assert np.all(np.diff(positions) >= 0)
    assert gate.is_at_goal
    assert positions[-1] - positions[3] > 0


def test_no_box_no_gate():
    with pytest.raises(ValueError, match="workspace: the box is missing"):
        SafetyGate(replace(EMBODIMENT, workspace=None), Gantry(), PERIOD_S)
