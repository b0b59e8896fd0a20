"""Drivers send safe targets to the robot's own topics and hand its measurements back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState

from nora_core.control.safety_gate import SafeTarget
from nora_core.embodiment import GRIPPER_JOINT, Embodiment, Gripper
from nora_core.ros import convert
from nora_core.ros.qos import NEWEST
from nora_core.types import ArmState


class Driver(Protocol):
    """One robot arm."""

    def send(self, target: SafeTarget) -> None:
        """Command the arm; returns at once."""

    def close(self) -> None:
        """Release publishers and subscriptions."""


def make_driver(
    node: Node,
    embodiment: Embodiment,
    *,
    on_state: Callable[[ArmState], None],
    on_problem: Callable[[str], None],
) -> Driver:
    """Create the driver that the embodiment names.

    Args:
        node: creates the driver's publishers and subscriptions.
        embodiment: one that has `driver` and `arm`.
        on_state: called with every measurement.
        on_problem: called with the reason when a measurement cannot be read.

    Raises:
        ValueError: the embodiment has no driver or no arm.
    """
    if embodiment.driver is None:
        raise ValueError("driver: kind and topics are missing; the arm will not move")
    match embodiment.driver.kind:
        case "sim":
            return SimDriver(node, embodiment, on_state=on_state, on_problem=on_problem)


class SimDriver:
    """Sends and reads sensor_msgs/JointState: the arm's joints, then `left_finger`."""

    def __init__(
        self,
        node: Node,
        embodiment: Embodiment,
        *,
        on_state: Callable[[ArmState], None],
        on_problem: Callable[[str], None],
    ) -> None:
        if embodiment.arm is None or embodiment.driver is None:
            raise ValueError("arm, driver: both are required")
        self._node = node
        self._gripper = embodiment.gripper
        self._names = [*embodiment.arm.joint_names, GRIPPER_JOINT]
        self._on_state, self._on_problem = on_state, on_problem
        driver = embodiment.driver
        self._publisher = node.create_publisher(JointState, driver.command_topic, 1)
        self._subscription = node.create_subscription(
            JointState, driver.state_topic, self._on_message, NEWEST
        )

    def send(self, target: SafeTarget) -> None:
        finger = self._gripper.to_driver(target.gripper)
        values = [*target.joints_rad.tolist(), finger]
        self._publisher.publish(
            convert.joints_to_msg(self._names, values, stamp_ns=target.stamp_ns, frame_id="")
        )

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)
        self._node.destroy_publisher(self._publisher)

    def _on_message(self, msg: JointState) -> None:
        try:
            state = arm_state_from_msg(msg, self._names, self._gripper)
        except ValueError as error:
            self._on_problem(str(error))
        else:
            self._on_state(state)


def arm_state_from_msg(msg: JointState, names: list[str], gripper: Gripper) -> ArmState:
    """Read the joints `names`, the last of which is the finger; other joints are ignored.

    Raises:
        ValueError: a joint is missing, or names and positions differ in number.
    """
    if len(msg.name) != len(msg.position):
        raise ValueError(
            f"joint state: expected a position per name, got {len(msg.name)} names and "
            f"{len(msg.position)} positions"
        )
    positions = dict(zip(msg.name, msg.position, strict=True))
    missing = [name for name in names if name not in positions]
    if missing:
        raise ValueError(f"joint state: {missing} are missing, received {list(msg.name)}")
    *joints_rad, finger = (positions[name] for name in names)
    stamp_ns = convert.to_ns(msg.header.stamp)
    return ArmState(np.array(joints_rad), gripper.from_driver(finger), stamp_ns)
