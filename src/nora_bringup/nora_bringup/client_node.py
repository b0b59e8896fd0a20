"""The ROS node of a command line: spun by a thread of its own while a context lasts."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from nora_bringup.graph import fastdds_environment
from nora_core.topics import NAMESPACE


@contextlib.contextmanager
def client_node(name: str, use_sim_time: bool = False) -> Iterator[Node]:
    """A node in the namespace of the arm, with the suite's Fast DDS profile."""
    for variable, value in fastdds_environment().items():
        os.environ.setdefault(variable, value)
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    clock = Parameter("use_sim_time", value=use_sim_time)
    node = rclpy.create_node(name, namespace=NAMESPACE, parameter_overrides=[clock])
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, name="spin")
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.try_shutdown()
