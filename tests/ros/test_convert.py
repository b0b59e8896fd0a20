"""Messages to named types and back."""

from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nora_msgs.action import ExecuteInstruction
from nora_msgs.msg import TaskOutcome
from scipy.spatial.transform import Rotation

from nora_core.ros import convert
from nora_core.types import ActionChunk, GoalError, Outcome, Pose

NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@given(st.integers(0, 2**31 * 10**9 - 1))
def test_stamps_are_exact(stamp_ns):
    assert convert.to_ns(convert.to_time(stamp_ns)) == stamp_ns


@given(st.integers(1, 40), st.integers(1, 40))
def test_image_round_trip(height, width):
    rgb = picture(height, width)
    frame = convert.frame_from_msg(convert.image_to_msg(rgb, 123, "camera"), "rgb8")
    np.testing.assert_array_equal(frame.rgb_HW3, rgb)
    assert frame.stamp_ns == 123


def test_image_rows_may_be_padded_and_channels_swapped():
    rgb = picture(4, 5)
    padded = np.zeros((4, 20), np.uint8)
    padded[:, :15] = rgb[..., ::-1].reshape(4, 15)
    msg = convert.image_to_msg(rgb, 1, "camera")
    msg.step, msg.encoding, msg.data = 20, "bgr8", array("B", padded.tobytes())
    np.testing.assert_array_equal(convert.frame_from_msg(msg, "bgr8").rgb_HW3, rgb)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("encoding", "mono8", r"image encoding: expected rgb8, got 'mono8'"),
        ("data", array("B", [1, 2, 3]), r"image data: expected .* got 3 bytes"),
        ("step", 14, r"image data: expected .* step 14"),
        ("height", 0, r"image data: expected .* height 0"),
        ("height", 400, r"image data: expected .* height 400"),
    ],
)
def test_corrupt_images_are_refused(field, value, message):
    msg = convert.image_to_msg(picture(4, 5), 1, "camera")
    setattr(msg, field, value)
    with pytest.raises(ValueError, match=message):
        convert.frame_from_msg(msg, "rgb8")


def chunk_of(actions_TA, stamp_ns) -> ActionChunk:
    return ActionChunk(
        actions_TA=actions_TA,
        step_period_s=0.2,
        stamp_ns=stamp_ns,
        instruction="go",
        action_names=NAMES,
        frame="base_link",
    )


def test_chunk_round_trip():
    actions = np.random.default_rng(1).normal(size=(5, 7))
    chunk = chunk_of(actions, 1_700_000_000_123_456_789)
    msg = convert.chunk_to_msg(chunk, 0.01)
    back = convert.chunk_from_msg(msg)
    np.testing.assert_array_equal(back.actions_TA, actions)
    assert (back.step_period_s, back.stamp_ns, back.instruction, back.action_names) == (
        0.2,
        chunk.stamp_ns,
        "go",
        NAMES,
    )
    assert msg.header.frame_id == "base_link"


@pytest.mark.parametrize(("steps", "values"), [(5, 34), (0, 0), (4, 35)])
def test_chunks_of_wrong_length_are_refused(steps, values):
    chunk = chunk_of(np.zeros((5, 7)), 1)
    msg = convert.chunk_to_msg(chunk, 0.0)
    msg.num_steps, msg.actions = steps, array("d", [0.0] * values)
    with pytest.raises(ValueError, match=rf"actions: expected .* got {values}"):
        convert.chunk_from_msg(msg)


def test_pose_keeps_position_and_orientation():
    pose = Pose(np.array([0.1, -0.2, 0.3]), Rotation.from_euler("xyz", [0.1, 0.2, 0.3]))
    msg = convert.pose_to_msg(pose, 5, "base_link").pose
    assert (msg.position.x, msg.position.y, msg.position.z) == (0.1, -0.2, 0.3)
    orientation = msg.orientation
    quaternion = [orientation.x, orientation.y, orientation.z, orientation.w]
    error = Rotation.from_quat(quaternion) * pose.rotation.inv()
    assert error.magnitude() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("enum", "interface"), [(GoalError, ExecuteInstruction.Result), (Outcome, TaskOutcome)]
)
def test_enums_equal_the_interface_constants(enum, interface):
    for member in enum:
        assert getattr(interface, member.name) == member.value
