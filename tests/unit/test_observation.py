"""The observation buffer: newest frame wins, and no observation without a reason."""

import numpy as np
import pytest

from nora_core.embodiment import Camera
from nora_core.observation import NoObservation, ObservationBuffer
from nora_core.types import Frame, Observation, Rejection

SECOND = 1_000_000_000
CAMERAS = (
    Camera(name="front", topic="front/image", encoding="rgb8", max_age_s=0.5),
    Camera(name="wrist", topic="wrist/image", encoding="rgb8", max_age_s=0.5),
)


def frame(value: int, stamp_ns: int) -> Frame:
    return Frame(np.full((4, 6, 3), value, np.uint8), stamp_ns)


def test_snapshot_has_the_newest_frame_of_every_camera_and_the_oldest_stamp():
    buffer = ObservationBuffer(CAMERAS)
    now_ns = 5 * SECOND + 30
    assert buffer.put("wrist", frame(9, 5 * SECOND), now_ns)
    assert buffer.put("front", frame(1, 5 * SECOND + 10), now_ns)
    assert buffer.put("front", frame(2, 5 * SECOND + 20), now_ns)
    observation = buffer.snapshot(5 * SECOND + 30, "go")
    assert isinstance(observation, Observation)
    assert [image[0, 0, 0] for image in observation.images] == [2, 9]
    assert observation.stamp_ns == 5 * SECOND


def test_a_frame_that_is_not_newer_is_refused():
    buffer = ObservationBuffer(CAMERAS[:1])
    assert buffer.put("front", frame(1, 100), 100)
    assert not buffer.put("front", frame(2, 100), 100)
    assert not buffer.put("front", frame(3, 50), 100)
    assert buffer.snapshot(100, "go").images[0][0, 0, 0] == 1


@pytest.mark.parametrize(
    ("stamps", "now_ns", "instruction", "reason"),
    [
        ((SECOND, SECOND), SECOND, "  ", "no instruction"),
        ((SECOND, None), SECOND, "go", "camera wrist: no image yet on wrist/image"),
        ((SECOND, 2 * SECOND), 2 * SECOND, "go", "camera front: image is 1.00 s old, limit 0.5 s"),
        ((0, SECOND), SECOND, "go", "camera front: the stamp is zero: the driver does not set"),
        ((3 * SECOND, 2 * SECOND), 2 * SECOND, "go", "camera front: image is 1.00 s ahead"),
    ],
)
def test_no_observation_says_why(stamps, now_ns, instruction, reason):
    buffer = ObservationBuffer(CAMERAS)
    for camera, stamp_ns in zip(CAMERAS, stamps, strict=True):
        if stamp_ns is not None:
            buffer.put(camera.name, frame(0, stamp_ns), now_ns)
    answer = buffer.snapshot(now_ns, instruction)
    assert isinstance(answer, Rejection)
    assert answer.detail.startswith(reason)


def test_a_stamp_from_the_future_does_not_blind_for_ever():
    buffer = ObservationBuffer(CAMERAS[:1])
    buffer.put("front", frame(1, 400 * SECOND), SECOND)
    assert buffer.snapshot(SECOND, "go").reason is NoObservation.IMAGE_AHEAD
    assert buffer.put("front", frame(2, SECOND), SECOND)
    assert buffer.snapshot(SECOND, "go").stamp_ns == SECOND


@pytest.mark.parametrize(
    "array",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)],
)
def test_a_frame_is_checked_at_the_door(array):
    with pytest.raises(ValueError, match=r"frame: expected uint8 of shape \(H, W, 3\), got"):
        Frame(array, 0)
