"""How the arm moved in a bag: as commanded, or as measured.

Legend: M messages, N steps, A action dim, J joints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from nora_core.embodiment import GRIPPER_JOINT, Embodiment
from nora_core.observation import NS_PER_S
from nora_core.types import Float64
from nora_training.data.alignment import Int64, ToolPath, commanded_path, held
from nora_training.data.bag_reader import Message, stamps

# In the order of preference: `bridge/command`, `bridge/ee_pose`, the driver's joint states.
Source = Literal["command", "ee_pose", "joint_states"]
Choice = Literal["auto", "command", "ee_pose", "joint_states"]
COMMAND, EE_POSE = "bridge/command", "bridge/ee_pose"

Messages = Mapping[str, Sequence[Message]]  # by topic


@dataclass(frozen=True, slots=True)
class Motion:
    """The tool's path and the gripper's openings (M,), with their own stamps (M,) in ns."""

    source: Source
    path: ToolPath
    gripper_stamps_M: Int64
    gripper_M: Float64

    def steps(self, grid: Int64) -> Float64:
        """Actions (N, A) in the periods of `grid` (N + 1,) ns.

        The gripper is the one commanded by the middle of the period (commands come a little
        early or late), or the one measured at its end.
        """
        is_command = self.source == "command"
        at = (grid[:-1] + grid[1:]) // 2 if is_command else grid[1:]
        gripper_N = held(self.gripper_stamps_M, self.gripper_M, at)
        return np.hstack([self.path.steps(grid), gripper_N[:, None]])


def motion_topics(embodiment: Embodiment) -> dict[str, str]:
    """The topics that `motions` needs, and their types."""
    topics = {
        COMMAND: "nora_msgs/msg/EndEffectorDelta",
        EE_POSE: "geometry_msgs/msg/PoseStamped",
    }
    if embodiment.driver is not None:
        topics[embodiment.driver.state_topic] = "sensor_msgs/msg/JointState"
    return topics


def motions(read: Messages, embodiment: Embodiment, source: Choice) -> list[Motion]:
    """Commanded motion, then measured motion, as far as the messages contain them.

    Joints go through forward kinematics when there are no poses, or when `source` wants them.

    Raises:
        ValueError: messages that cannot be used.
    """
    found = [_commanded(read, embodiment)]
    joints = _joints(read, embodiment)
    if joints is not None:
        poses = None if source == "joint_states" else _poses(read, joints, embodiment.action.frame)
        found += [poses or _forward(embodiment, joints)]
    return [motion for motion in found if motion is not None]


@dataclass(frozen=True, slots=True)
class _Joints:
    stamps_M: Int64
    joints_MJ: Float64
    gripper_M: Float64


def _commanded(read: Messages, embodiment: Embodiment) -> Motion | None:
    stamps_M = stamps(COMMAND, read[COMMAND])
    messages = [message.msg for message in read[COMMAND]]
    if not messages:
        return None
    _check_frame(COMMAND, messages, embodiment.action.frame)
    translations_M3 = np.array([_xyz(msg.translation) for msg in messages])
    rotations_M3 = np.array([_xyz(msg.rotation) for msg in messages])
    gripper_M = np.array([msg.gripper for msg in messages])
    _check_finite(COMMAND, translations_M3, rotations_M3, gripper_M)
    period_ns = round(embodiment.action.step_period_s * NS_PER_S)
    path = commanded_path(stamps_M, translations_M3, rotations_M3, period_ns)
    return Motion("command", path, stamps_M, gripper_M)


def _joints(read: Messages, embodiment: Embodiment) -> _Joints | None:
    """Read joints (M, J) and gripper of the driver's joint states."""
    if embodiment.driver is None or embodiment.arm is None:
        return None
    topic = embodiment.driver.state_topic
    stamps_M = stamps(topic, read[topic])
    if not read[topic]:
        return None
    names = (*embodiment.arm.joint_names, GRIPPER_JOINT)
    rows = []
    for message in read[topic]:
        if (got := len(message.msg.position)) != (expected := len(message.msg.name)):
            raise ValueError(f"{topic}: expected {expected} positions, one per name, got {got}")
        position = dict(zip(message.msg.name, message.msg.position, strict=True))
        if missing := [name for name in names if name not in position]:
            raise ValueError(
                f"{topic}: expected joints {list(names)}, of which {missing} are missing"
            )
        rows.append([position[name] for name in names])
    stamps_M, new = np.unique(stamps_M, return_index=True)
    values = np.array(rows, np.float64)[new]
    _check_finite(topic, values)
    gripper_M = np.array([embodiment.gripper.from_driver(value) for value in values[:, -1]])
    return _Joints(stamps_M, values[:, :-1], gripper_M.clip(0.0, 1.0))


def _poses(read: Messages, joints: _Joints, frame: str) -> Motion | None:
    stamps_M = stamps(EE_POSE, read[EE_POSE])
    if not read[EE_POSE]:
        return None
    messages = [message.msg for message in read[EE_POSE]]
    _check_frame(EE_POSE, messages, frame)
    positions_M3 = np.array([_xyz(msg.pose.position) for msg in messages])
    quaternions = [msg.pose.orientation for msg in messages]
    quaternions_M4 = np.array([(*_xyz(q), q.w) for q in quaternions])
    _check_finite(EE_POSE, positions_M3, quaternions_M4)
    stamps_M, new = np.unique(stamps_M, return_index=True)  # one repeats until the next state
    if len(stamps_M) < 2:
        return None
    path = ToolPath(stamps_M, positions_M3[new], Rotation.from_quat(quaternions_M4[new]))
    return Motion("ee_pose", path, joints.stamps_M, joints.gripper_M)


def _forward(embodiment: Embodiment, joints: _Joints) -> Motion | None:
    if embodiment.arm is None or len(joints.stamps_M) < 2:
        return None
    from nora_core.control.kinematics import MinkKinematics  # MuJoCo, for bags without poses

    kinematics = MinkKinematics(embodiment.arm)
    poses = [kinematics.forward(joints_J) for joints_J in joints.joints_MJ]
    positions_M3 = np.array([pose.position_m for pose in poses])
    rotations = Rotation.concatenate([pose.rotation for pose in poses])
    path = ToolPath(joints.stamps_M, positions_M3, rotations)
    return Motion("joint_states", path, joints.stamps_M, joints.gripper_M)


def _xyz(vector: Any) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z


def _check_frame(topic: str, messages: Sequence[Any], frame: str) -> None:
    for other in {msg.header.frame_id for msg in messages} - {frame}:
        raise ValueError(f"{topic}: expected frame {frame}, got {other!r}")


def _check_finite(topic: str, *arrays: Float64) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"{topic}: expected finite numbers, got NaN or infinity")
