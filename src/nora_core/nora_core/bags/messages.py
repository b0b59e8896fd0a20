"""Serialise our types as ROS messages (CDR) for a bag, without ROS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nora_core.bags.definitions import NS_PER_S, Definitions
from nora_core.types import Float64, Frame, Pose

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A serialised message."""

    type_name: str
    data: bytes


class Encoder:
    """Makes messages of the types in `definitions`; `frame_id` goes into every header."""

    def __init__(self, definitions: Definitions, frame_id: str) -> None:
        self._definitions, self._frame_id = definitions, frame_id

    def text(self, data: str) -> Encoded:
        return self._encode("std_msgs/msg/String", data=data)

    def image(self, frame: Frame, camera: str) -> Encoded:
        """Encode an image as rgb8, with the camera's name as frame."""
        height, width, _ = frame.rgb_HW3.shape
        return self._encode(
            "sensor_msgs/msg/Image",
            header=self._header(frame.stamp_ns, camera),
            height=height,
            width=width,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * width,
            data=np.ascontiguousarray(frame.rgb_HW3).ravel(),
        )

    def joints(self, names: Sequence[str], values: Sequence[float], stamp_ns: int) -> Encoded:
        none = np.zeros(0)
        return self._encode(
            "sensor_msgs/msg/JointState",
            header=self._header(stamp_ns),
            name=list(names),
            position=np.array(values, np.float64),
            velocity=none,
            effort=none,
        )

    def pose(self, pose: Pose, stamp_ns: int) -> Encoded:
        x, y, z, w = pose.rotation.as_quat().tolist()
        orientation = self._new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)
        position = self._vector("geometry_msgs/msg/Point", pose.position_m)
        inner = self._new("geometry_msgs/msg/Pose", position=position, orientation=orientation)
        header = self._header(stamp_ns)
        return self._encode("geometry_msgs/msg/PoseStamped", header=header, pose=inner)

    def delta(
        self,
        translation_m: Float64,
        rotation_rad: Float64,
        gripper: float,
        stamp_ns: int,
        observation_stamp_ns: int,
    ) -> Encoded:
        return self._encode(
            "nora_msgs/msg/EndEffectorDelta",
            header=self._header(stamp_ns),
            translation=self._vector("geometry_msgs/msg/Vector3", translation_m),
            rotation=self._vector("geometry_msgs/msg/Vector3", rotation_rad),
            gripper=gripper,
            observation_stamp=self._time(observation_stamp_ns),
        )

    def stamped(self, type_name: str, stamp_ns: int, fields: Fields) -> Encoded:
        """Encode any message whose other fields are numbers and texts."""
        return self._encode(type_name, header=self._header(stamp_ns), **fields)

    def _encode(self, type_name: str, **fields: Any) -> Encoded:
        message = self._new(type_name, **fields)
        data = self._definitions.store(type_name).serialize_cdr(message, type_name)
        return Encoded(type_name, bytes(data))

    def _new(self, type_name: str, **fields: Any) -> Any:
        return self._definitions.store(type_name).types[type_name](**fields)

    def _header(self, stamp_ns: int, frame_id: str | None = None) -> Any:
        frame_id = self._frame_id if frame_id is None else frame_id
        return self._new("std_msgs/msg/Header", stamp=self._time(stamp_ns), frame_id=frame_id)

    def _time(self, stamp_ns: int) -> Any:
        sec, nanosec = divmod(stamp_ns, NS_PER_S)
        return self._new("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)

    def _vector(self, type_name: str, values: Float64) -> Any:
        x, y, z = values.tolist()
        return self._new(type_name, x=x, y=y, z=z)
