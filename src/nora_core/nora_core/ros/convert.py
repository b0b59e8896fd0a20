"""Conversions between ROS messages and the types of nora_core: the only place that knows both."""

from __future__ import annotations

from array import array

import numpy as np
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped, Vector3
from nora_msgs.msg import ActionChunk as ActionChunkMsg
from nora_msgs.msg import CommandStatus, EndEffectorDelta
from numpy.typing import NDArray
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header

from nora_core import observation
from nora_core.control.status import Executed, Status
from nora_core.types import ActionChunk, Pose

# Training reads the same messages from bags, without ROS, by the same functions.
NS_PER_S = observation.NS_PER_S
to_ns = observation.to_ns
frame_from_msg = observation.frame_from_image


def to_time(stamp_ns: int) -> Time:
    sec, nanosec = divmod(stamp_ns, NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


def header(stamp_ns: int, frame_id: str) -> Header:
    return Header(stamp=to_time(stamp_ns), frame_id=frame_id)


def image_to_msg(rgb_HW3: NDArray[np.uint8], stamp_ns: int, frame_id: str) -> Image:
    height, width, _ = rgb_HW3.shape
    data = array("B")  # the only container that rclpy takes without a copy per element
    data.frombytes(np.ascontiguousarray(rgb_HW3).data)
    return Image(
        header=header(stamp_ns, frame_id),
        height=height,
        width=width,
        encoding="rgb8",
        step=3 * width,
        data=data,
    )


def chunk_to_msg(chunk: ActionChunk, inference_time_s: float) -> ActionChunkMsg:
    return ActionChunkMsg(
        header=header(chunk.stamp_ns, chunk.frame),
        instruction=chunk.instruction,
        action_names=list(chunk.action_names),
        step_period=chunk.step_period_s,
        num_steps=len(chunk.actions_TA),
        actions=array("d", chunk.actions_TA.ravel().tolist()),
        inference_time=inference_time_s,
    )


def chunk_from_msg(msg: ActionChunkMsg) -> ActionChunk:
    """Raises `ValueError` when the number of values is not num_steps * len(action_names)."""
    num_steps, num_names = msg.num_steps, len(msg.action_names)
    if num_steps < 1 or len(msg.actions) != num_steps * num_names:
        raise ValueError(
            f"actions: expected at least one step and num_steps {num_steps} * {num_names} names "
            f"values, got {len(msg.actions)}"
        )
    actions_TA = np.array(msg.actions, np.float64).reshape(num_steps, num_names)
    return ActionChunk(
        actions_TA=actions_TA,
        step_period_s=msg.step_period,
        stamp_ns=to_ns(msg.header.stamp),
        instruction=msg.instruction,
        action_names=tuple(msg.action_names),
        frame=msg.header.frame_id,
    )


def pose_to_msg(pose: Pose, stamp_ns: int, frame_id: str) -> PoseStamped:
    msg = PoseStamped(header=header(stamp_ns, frame_id))
    position, orientation = msg.pose.position, msg.pose.orientation
    position.x, position.y, position.z = pose.position_m.tolist()
    orientation.x, orientation.y, orientation.z, orientation.w = pose.rotation.as_quat().tolist()
    return msg


def joints_to_msg(
    names: list[str], values: list[float], *, stamp_ns: int, frame_id: str
) -> JointState:
    position = array("d", values)  # taken without a copy per element, like the pixels
    return JointState(header=header(stamp_ns, frame_id), name=names, position=position)


def status_to_msg(status: Status, now_ns: int, frame_id: str) -> CommandStatus:
    return CommandStatus(header=header(now_ns, frame_id), **status.message_fields(now_ns))


def executed_to_msg(executed: Executed, frame_id: str) -> EndEffectorDelta:
    delta = executed.delta
    return EndEffectorDelta(
        header=header(executed.start_ns, frame_id),
        translation=_vector(delta.translation_m.tolist()),
        rotation=_vector(delta.rotation_rad.tolist()),
        gripper=delta.gripper,
        observation_stamp=to_time(executed.observation_stamp_ns),
    )


def diagnostics_to_msg(
    *,
    name: str,
    hardware_id: str,
    level: bytes,
    message: str,
    values: dict[str, object],
    now_ns: int,
) -> DiagnosticArray:
    status = DiagnosticStatus(
        level=level,
        name=name,
        hardware_id=hardware_id,
        message=message,
        values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()],
    )
    return DiagnosticArray(header=header(now_ns, ""), status=[status])


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _vector(values: list[float]) -> Vector3:
    x, y, z = values
    return Vector3(x=x, y=y, z=z)
