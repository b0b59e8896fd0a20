"""How every node of the suite starts, fails and ends.

`ManagedNode` turns bad input in a lifecycle transition into one logged line (rclpy drops
exceptions there); `run` spins a node on a single-threaded executor and always ends it in the
order rclpy needs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidTopicNameException
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.wait_for_message import wait_for_message
from rosgraph_msgs.msg import Clock

from nora_core.embodiment import Embodiment
from nora_core.processes import end_quietly_when_told
from nora_core.ros.qos import NEWEST

T = TypeVar("T", bool, int, float, str)
BAD_INPUT = (ValueError, OSError, InvalidParameterTypeException, InvalidTopicNameException)
STOP_LATENCY_S = 0.1


def parameter(
    node: Node, name: str, default: T, description: str, *, choices: tuple[str, ...] = ()
) -> T:
    """Declare a read-only parameter and return its value; `ros2 param describe` shows the choices.

    Raises:
        ValueError: the value is none of the choices.
    """
    allowed = f"one of: {', '.join(choices)}" if choices else ""
    descriptor = ParameterDescriptor(
        description=description, additional_constraints=allowed, read_only=True
    )
    value: T = node.declare_parameter(name, default, descriptor).value
    if choices and value not in choices:
        raise ValueError(f"parameter {name}: expected {allowed}, got {value!r}")
    return value


def load_embodiment(node: Node) -> Embodiment:
    """Read the file that the node's `embodiment_file` parameter names.

    Raises:
        ValueError, FileNotFoundError: the parameter is not set, or the file is not right.
    """
    path = parameter(node, "embodiment_file", "", "Embodiment YAML file (required).")
    if not path:
        raise ValueError("parameter embodiment_file: the path of a YAML file is missing")
    return Embodiment.load(Path(path))


class ManagedNode(LifecycleNode):
    """Lifecycle node; subclasses override configure, activate, deactivate and cleanup.

    These four raise `ValueError` or `OSError` for bad input; the transition then fails and that
    line is logged. With the parameter `autostart` the node configures and activates itself.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.exit_code = 0
        self.is_active = False
        self._is_configured = False
        self.autostart = parameter(
            self, "autostart", True, "Configure and activate at start, exit if that fails."
        )

    def configure(self) -> None:
        """Load what the node needs and create publishers and services."""

    def activate(self) -> None:
        """Start doing the job."""

    def deactivate(self) -> None:
        """Stop doing the job; join every thread that `activate` started."""

    def cleanup(self) -> None:
        """Release what `configure` created."""

    def start(self) -> bool:
        """Configure and activate; say whether both went well."""
        success = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() == success and self.trigger_activate() == success

    def close(self) -> None:
        """Deactivate and clean up if needed, whatever the lifecycle state machine says."""
        if self.is_active:
            self.is_active = False
            self.deactivate()
        if self._is_configured:
            self._is_configured = False
            self.cleanup()

    def destroy_node(self) -> None:
        """Destroy the state machine too, which rclpy forgets.

        It would keep the DDS participant alive, and 17 MB of shared memory per run would stay.
        """
        self._state_machine.destroy_when_not_in_use()
        super().destroy_node()

    def fail(self, message: str) -> None:
        """End the process with exit code 1; callable from any thread."""
        self.get_logger().fatal(message)
        self.exit_code = 1

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._attempt(self.configure)
        self._is_configured = result == TransitionCallbackReturn.SUCCESS
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._attempt(self.activate)
        self.is_active = result == TransitionCallbackReturn.SUCCESS
        return super().on_activate(state) if self.is_active else result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.is_active = False
        super().on_deactivate(state)
        return self._attempt(self.deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._is_configured = False
        return self._attempt(self.cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        return self._attempt(self.close)

    def _attempt(self, step: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            step()
        except BAD_INPUT as error:
            self.get_logger().error(f"{step.__name__}: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception:
            self.get_logger().fatal(traceback.format_exc())
            raise  # rclpy swallows it and moves to the error state
        return TransitionCallbackReturn.SUCCESS


def run(make_node: Callable[[], Node]) -> NoReturn:
    """Create a node, spin it until SIGINT, SIGTERM or `fail`, and exit with its exit code.

    rclpy's own signal handlers shut the context down under a running callback; ours end the loop
    between two callbacks.
    """
    end_quietly_when_told()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    node: Node | None = None
    exit_code = 0
    try:
        node = _start(make_node)
        if node is None or (isinstance(node, ManagedNode) and node.autostart and not node.start()):
            exit_code = 1
        else:
            if node.get_parameter("use_sim_time").value:
                _wait_for_clock(node)
            executor.add_node(node)
            _spin(executor, node)
    finally:
        executor.shutdown()
        if isinstance(node, ManagedNode):
            node.close()
            exit_code = exit_code or node.exit_code
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    # Our threads and nodes have ended; unloading torch module by module takes over a second.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _start(make_node: Callable[[], Node]) -> Node | None:
    try:
        return make_node()
    except BAD_INPUT as error:
        get_logger("nora").error(str(error))
        return None


def _wait_for_clock(node: Node) -> None:
    """Wait for the simulated time: what begins at time 0 would be late at the first /clock."""
    while not wait_for_message(Clock, node, "/clock", qos_profile=NEWEST, time_to_wait=1.0)[0]:
        node.get_logger().warning("use_sim_time: no /clock yet", throttle_duration_sec=5.0)


def _spin(executor: SingleThreadedExecutor, node: Node) -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not (stop.is_set() or (isinstance(node, ManagedNode) and node.exit_code)):
        executor.spin_once(timeout_sec=STOP_LATENCY_S)
