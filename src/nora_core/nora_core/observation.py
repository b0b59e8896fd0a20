"""From camera messages to one observation, or the reason why there is none (numpy layer)."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Protocol

import numpy as np

from nora_core.embodiment import Camera
from nora_core.types import ZERO_STAMP, Frame, Observation, Rejection

NS_PER_S = 1_000_000_000
CHANNELS = {"rgb8": slice(None), "bgr8": slice(None, None, -1)}


class NoObservation(IntEnum):
    """Why there is no observation."""

    NO_INSTRUCTION = 1
    NO_IMAGE = 2
    IMAGE_STALE = 3
    IMAGE_AHEAD = 4


class TimeMessage(Protocol):
    """A `builtin_interfaces/Time`, received over ROS or read from a bag."""

    sec: Any
    nanosec: Any


class ImageMessage(Protocol):
    """A `sensor_msgs/Image`, received over ROS or read from a bag."""

    header: Any
    height: Any
    width: Any
    encoding: Any
    step: Any
    data: Any


def to_ns(time: TimeMessage) -> int:
    return int(time.sec) * NS_PER_S + int(time.nanosec)


def frame_from_image(msg: ImageMessage, encoding: str) -> Frame:
    """Convert an image message to an RGB frame, a view of its bytes where the layout allows.

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
        """Keep `frame` if it is newer than the one kept; say whether it was.

        A kept frame that is ahead of the clock (the clock was set back, or the stamp was wrong)
        gives way to any other.
        """
        kept = self._frames.get(camera)
        is_newer = kept is None or frame.stamp_ns > kept.stamp_ns or kept.stamp_ns > now_ns
        if is_newer:
            self._frames[camera] = frame
        return is_newer

    def snapshot(self, now_ns: int, instruction: str) -> Observation | Rejection[NoObservation]:
        """The newest frames as one observation, or the reason why there is none.

        Args:
            now_ns: current time on the frames' clock.
            instruction: what the robot is asked to do; empty means stop.
        """
        if not instruction.strip():
            return Rejection(NoObservation.NO_INSTRUCTION, "no instruction")
        frames = []
        for camera in self._cameras:
            frame = self._frames.get(camera.name)
            if frame is None:
                detail = f"camera {camera.name}: no image yet on {camera.topic}"
                return Rejection(NoObservation.NO_IMAGE, detail)
            if rejection := _age_problem(camera, frame, now_ns):
                return rejection
            frames.append(frame)
        return Observation(
            tuple(frame.rgb_HW3 for frame in frames),
            instruction,
            min(frame.stamp_ns for frame in frames),
        )


def _age_problem(camera: Camera, frame: Frame, now_ns: int) -> Rejection[NoObservation] | None:
    age_s = (now_ns - frame.stamp_ns) * 1e-9
    if age_s > camera.max_age_s and frame.stamp_ns == 0:
        detail = f"camera {camera.name}: {ZERO_STAMP}"
        return Rejection(NoObservation.IMAGE_STALE, detail)
    if age_s > camera.max_age_s:
        text = f"image is {age_s:.2f} s old, limit {camera.max_age_s} s"
        return Rejection(NoObservation.IMAGE_STALE, f"camera {camera.name}: {text}")
    if age_s < -camera.max_age_s:
        text = f"image is {-age_s:.2f} s ahead; check the clocks"
        return Rejection(NoObservation.IMAGE_AHEAD, f"camera {camera.name}: {text}")
    return None
