"""Inverse kinematics: round trips, limits, bounded work, and facts of the WidowX."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from nora_core.control.kinematics import MinkKinematics
from nora_core.embodiment import Arm, Embodiment
from nora_core.types import Float64, Pose

CONFIG = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
EMBODIMENT = Embodiment.load(CONFIG)
# Where the arm works: bent elbow, hand down or nearly so.
WORKING_LOWER = np.array([-0.9, -0.6, -0.4, -0.5, 0.7, -1.0])
WORKING_UPPER = np.array([0.9, 0.8, 1.2, 0.5, 2.0, 1.0])
units = st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6).map(np.array)


def require_arm() -> Arm:
    assert EMBODIMENT.arm is not None
    return EMBODIMENT.arm


ARM = require_arm()
HOME = np.array(ARM.home_rad)
KINEMATICS = MinkKinematics(ARM)


def errors(joints_rad: Float64, target: Pose) -> tuple[float, float]:
    reached = KINEMATICS.forward(joints_rad)
    turn = (target.rotation * reached.rotation.inv()).magnitude()
    return float(np.linalg.norm(reached.position_m - target.position_m)), float(turn)


def within_limits(joints_rad: Float64) -> bool:
    return bool(
        (joints_rad >= KINEMATICS.lower_rad).all() and (joints_rad <= KINEMATICS.upper_rad).all()
    )


@settings(max_examples=200, deadline=None)
@given(where=units, off=units)
def test_round_trip_near_the_working_region(where: Float64, off: Float64) -> None:
    joints_rad = WORKING_LOWER + where * (WORKING_UPPER - WORKING_LOWER)
    target = KINEMATICS.forward(joints_rad)
    found = KINEMATICS.inverse(target, joints_rad + 0.1 * (off - 0.5))
    assert found is not None
    distance_m, turn_rad = errors(found, target)
    assert distance_m < 1e-3
    assert turn_rad < 1e-2
    assert within_limits(found)


@settings(max_examples=200, deadline=None)
@given(
    position_m=st.tuples(*[st.floats(-1.0, 1.0)] * 3).map(np.array),
    turn_rad=st.tuples(*[st.floats(-math.pi, math.pi)] * 3).map(np.array),
    where=units,
)
def test_any_answer_is_right_and_inside_the_limits(
    position_m: Float64, turn_rad: Float64, where: Float64
) -> None:
    seed = 4.0 * (where - 0.5)  # beyond some limits, too
    target = Pose(position_m, Rotation.from_rotvec(turn_rad))
    found = KINEMATICS.inverse(target, seed)
    if found is not None:
        distance_m, turn = errors(found, target)
        assert distance_m < 1.1e-3
        assert turn < 1.1e-2
        assert within_limits(found)


def test_out_of_reach_is_none_soon() -> None:
    target = Pose(np.array([0.9, 0.0, 0.2]), KINEMATICS.forward(HOME).rotation)
    start = time.perf_counter()
    assert all(KINEMATICS.inverse(target, HOME) is None for _ in range(20))
    assert time.perf_counter() - start < 2.0  # 3 ms each here; a search without bound would show


def test_same_question_same_answer() -> None:
    target = Pose(np.array([0.3, 0.1, 0.1]), KINEMATICS.forward(HOME).rotation)
    first = KINEMATICS.inverse(target, HOME)
    KINEMATICS.inverse(Pose(np.array([0.2, -0.1, 0.2]), target.rotation), HOME + 0.1)
    again = KINEMATICS.inverse(target, HOME)
    assert first is not None
    assert again is not None
    np.testing.assert_array_equal(first, again)


def test_holding_still_does_not_creep() -> None:
    target = KINEMATICS.forward(HOME)
    joints_rad = HOME
    for _ in range(100):
        found = KINEMATICS.inverse(target, joints_rad)
        assert found is not None
        joints_rad = found
    np.testing.assert_allclose(joints_rad, HOME, atol=1e-9)


def test_small_steps_along_the_workspace_never_jump() -> None:
    rng = np.random.default_rng(0)
    assert EMBODIMENT.workspace is not None
    lower, upper = np.array(EMBODIMENT.workspace.min_m), np.array(EMBODIMENT.workspace.max_m)
    pose, joints_rad = KINEMATICS.forward(HOME), HOME
    for _ in range(500):
        position_m = (pose.position_m + rng.uniform(-0.01, 0.01, 3)).clip(lower, upper)
        found = KINEMATICS.inverse(Pose(position_m, pose.rotation), joints_rad)
        if found is None:  # the far upper edge of the box
            continue
        assert np.abs(found - joints_rad).max() < 0.3
        pose, joints_rad = Pose(position_m, pose.rotation), found


def test_nearly_all_of_the_workspace_is_reachable_pointing_down() -> None:
    assert EMBODIMENT.workspace is not None
    down = KINEMATICS.forward(HOME).rotation
    axes = [
        np.linspace(lo, hi, 7)
        for lo, hi in zip(EMBODIMENT.workspace.min_m, EMBODIMENT.workspace.max_m, strict=True)
    ]
    points_m = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3)
    reached = []
    for point_m in points_m:
        waist = math.atan2(point_m[1], point_m[0])
        seed = HOME + np.array([waist, 0, 0, 0, 0, -waist])
        reached.append(KINEMATICS.inverse(Pose(point_m, down), seed) is not None)
    assert np.mean(reached) > 0.94
    assert all(np.array(reached)[points_m[:, 0] < 0.36])


def test_geometry_of_the_wx250s() -> None:
    """Sums of the maker's link offsets, arm stretched forward; the home pose points down."""
    zero = KINEMATICS.forward(np.zeros(6))
    np.testing.assert_allclose(zero.position_m, [0.458325, 0.0, 0.36065], atol=1e-9)
    np.testing.assert_allclose(zero.rotation.as_matrix(), np.eye(3), atol=1e-9)
    home = KINEMATICS.forward(HOME)
    np.testing.assert_allclose(home.position_m, [0.28, 0.0, 0.20], atol=1e-3)
    np.testing.assert_allclose(home.rotation.apply([1.0, 0.0, 0.0]), [0.0, 0.0, -1.0], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": "ur5.xml"}, FileNotFoundError, "wx250s.xml"),
        ({"tool_site": "tcp"}, ValueError, "available.*tool"),
        ({"joint_names": ("waist", "hip", *ARM.joint_names[2:])}, ValueError, "hip.*shoulder"),
    ],
)
def test_wrong_arm_says_what_there_is(
    change: dict[str, str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        MinkKinematics(dataclasses.replace(ARM, **change))
