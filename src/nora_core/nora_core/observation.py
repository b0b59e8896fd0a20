"""Camera messages to one observation, or the reason why there is none (numpy layer)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from nora_core.embodiment import Camera
from nora_core.types import Frame, Observation

NS_PER_S = 1_000_000_000
CHANNELS = {"rgb8": slice(None), "bgr8": slice(None, None, -1)}


class TimeMessage(Protocol):
    """`builtin_interfaces/Time`, of ROS or out of a bag."""

    sec: Any
    nanosec: Any


class ImageMessage(Protocol):
    """`sensor_msgs/Image`, of ROS or out of a bag."""

    header: Any
    height: Any
    width: Any
    encoding: Any
    step: Any
    data: Any


def to_ns(time: TimeMessage) -> int:
    return int(time.sec) * NS_PER_S + int(time.nanosec)


def frame_from_image(msg: ImageMessage, encoding: str) -> Frame:
    """Image message to RGB frame; a view of the message's bytes where the layout allows.

    Raises:
        ValueError: the encoding is not the expected one, or the sizes do not fit the data.
    """
    if msg.encoding != encoding:
        raise ValueError(f"image encoding: expected {encoding}, got {msg.encoding!r}")
    height, width, step = msg.height, msg.width, msg.step
    if min(height, width) < 1 or step < 3 * width or len(msg.data) != height * step:
        raise ValueError(
            f"image data: expected height * step bytes with step >= 3 * width, got "
            f"{len(msg.data)} bytes, height {height}, width {width}, step {step}"
        )
    rows = np.frombuffer(msg.data, np.uint8).reshape(height, step)
    pixels_HW3 = rows[:, : 3 * width].reshape(height, width, 3)
    return Frame(pixels_HW3[..., CHANNELS[encoding]], to_ns(msg.header.stamp))


class ObservationBuffer:
    """Newest frame of every camera; live nodes and offline training use the same object."""

    def __init__(self, cameras: tuple[Camera, ...]) -> None:
        self._cameras = cameras
        self._frames: dict[str, Frame] = {}

    def put(self, camera: str, frame: Frame, now_ns: int) -> bool:
        """Keep `frame` if it is newer than the one held; say whether it was.

        One that is held but ahead of the clock (which was set back, or its stamp was wrong) gives
        way to any other.
        """
        held = self._frames.get(camera)
        is_newer = held is None or frame.stamp_ns > held.stamp_ns or held.stamp_ns > now_ns
        if is_newer:
            self._frames[camera] = frame
        return is_newer

    def snapshot(self, now_ns: int, instruction: str) -> Observation | str:
        """The newest frames as one observation, or the reason why there is none.

        Args:
            now_ns: current time on the frames' clock.
            instruction: what the robot is asked to do; empty means stop.
        """
        if not instruction.strip():
            return "no instruction"
        images = []
        stamps = []
        for camera in self._cameras:
            frame = self._frames.get(camera.name)
            if frame is None:
                return f"camera {camera.name}: no image yet on {camera.topic}"
            age_s = (now_ns - frame.stamp_ns) * 1e-9
            if age_s > camera.max_age_s:
                return (
                    f"camera {camera.name}: image is {age_s:.2f} s old, limit {camera.max_age_s} s"
                )
            if age_s < -camera.max_age_s:
                return f"camera {camera.name}: image is {-age_s:.2f} s ahead; check the clocks"
            images.append(frame.rgb_HW3)
            stamps.append(frame.stamp_ns)
        return Observation(tuple(images), instruction, min(stamps))
