"""A ROS domain of its own per test session, a spun test node, and real child processes."""

from __future__ import annotations

import atexit
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

CONFIG = Path(__file__).parents[2] / "src/nora_bringup/config"
IS_BUILT = all(importlib.util.find_spec(name) for name in ("rclpy", "nora_msgs"))
WAIT_S = 10.0
STOP_S = 5.0
DEATH_CRIES = ("Traceback (most recent call last)", "terminate called")


def _claim_domain() -> int:
    """A domain id that no other test session of this machine uses."""
    for domain in range(1, 102):
        path = Path(tempfile.gettempdir(), f"nora_ros_domain_{domain}.lock")
        lock = os.open(path, os.O_CREAT | os.O_RDWR)  # open, and locked, until this process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return domain
    raise RuntimeError("ROS_DOMAIN_ID: expected a free one in 1 ... 101, all are taken")


# Before anything imports a message package: the generated code reads its variable only once.
if IS_BUILT:
    _log_dir = tempfile.mkdtemp(prefix="nora_ros_log_")
    atexit.register(shutil.rmtree, _log_dir, ignore_errors=True)
    os.environ |= {
        "ROS_DOMAIN_ID": str(_claim_domain()),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": _log_dir,
        "ROS_PYTHON_CHECK_FIELDS": "1",
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(CONFIG / "fastdds.xml"),
        "FASTDDS_DEFAULT_PROFILES_FILE": str(CONFIG / "fastdds.xml"),
    }


class _NotBuilt(pytest.Module):
    def collect(self) -> Any:
        pytest.skip("nora_msgs is not importable: build and source the workspace first")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Any:
    return None if IS_BUILT else _NotBuilt.from_parent(parent, path=module_path)


def wait_for(predicate: Callable[[], Any], timeout: float = WAIT_S, what: str = "") -> Any:
    """The first true value of `predicate`; fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout:g} s for {what or 'a condition'}")
        time.sleep(0.005)
    return value


class Ros:
    """A test node in namespace `nora`, spun by a thread; `node` for all that is not here."""

    def __init__(self) -> None:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("test", namespace="nora")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = ThreadPoolExecutor(1)
        self._spinning = self._thread.submit(self._executor.spin)

    def wait_for(
        self, predicate: Callable[[], Any], timeout: float = WAIT_S, what: str = ""
    ) -> Any:
        """As the function; fails at once with the error of a callback, if one raised."""

        def check() -> Any:
            if self._spinning.done():
                self._spinning.result()
                pytest.fail("the test node no longer spins")
            return predicate()

        return wait_for(check, timeout, what)

    def collect(self, topic: str, msg_type: Any, qos: Any = 100) -> list[Any]:
        """A list that grows by every message received from now on."""
        received: list[Any] = []
        self.node.create_subscription(msg_type, topic, received.append, qos)
        return received

    def publisher(self, topic: str, msg_type: Any, qos: Any = 10) -> Any:
        """A publisher that has found at least one subscription."""
        publisher = self.node.create_publisher(msg_type, topic, qos)
        self.wait_for(publisher.get_subscription_count, what=f"a subscription to {topic}")
        return publisher

    def call(self, service: str, srv_type: Any, request: Any = None) -> Any:
        """The service's response, once it is there."""
        client = self.node.create_client(srv_type, service)
        self.wait_for(client.service_is_ready, what=f"service {service}")
        future = client.call_async(request or srv_type.Request())
        self.wait_for(future.done, what=f"an answer of {service}")
        self.node.destroy_client(client)
        return future.result()

    def now_ns(self) -> int:
        return int(self.node.get_clock().now().nanoseconds)

    def close(self) -> None:
        import rclpy

        self._executor.shutdown()
        self._thread.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()
        self._spinning.result()


class Child:
    """A real process in a session of its own, output in a file."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str]) -> None:
        self.command, self.log = command, log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_output(self, text: str, timeout: float = WAIT_S) -> None:
        wait_for(lambda: text in self.output, timeout, f"{text!r} in the output:\n{self.output}")

    def signal(self, number: int) -> None:
        """Signal the whole process group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def wait(self, timeout: float = WAIT_S) -> int:
        """The exit code."""
        return self.process.wait(timeout)

    def end(self) -> list[str]:
        """Interrupt it if it still runs; what went wrong, the group is gone afterwards."""
        problems = []
        if self.process.poll() is None:
            self.signal(signal.SIGINT)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                problems.append(f"did not end within {STOP_S:g} s of SIGINT")
        orphans = [pid for pid in _living_members(self.process.pid) if pid != self.process.pid]
        if orphans:
            problems.append(f"left orphans {orphans}")
        if self.process.poll() is None or orphans:
            self.signal(signal.SIGKILL)
            self.process.wait()
        return problems


def _living_members(group: int) -> list[int]:
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        if int(pgrp) == group and state != "Z":
            members.append(int(stat.parent.name))
    return members


@pytest.fixture
def ros() -> Iterator[Ros]:
    ros = Ros()
    try:
        yield ros
    finally:
        ros.close()


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """`spawn(module or path, parameters)` starts a real ROS process.

    Every process has ended after the test; an orphan, a process that does not end on SIGINT or a
    traceback fails the test, the last one unless `expect_traceback`.
    """
    children: list[tuple[Child, bool]] = []

    def start(
        program: str,
        parameters: dict[str, bool | int | float | str] | None = None,
        namespace: str = "nora",
        remaps: dict[str, str] | None = None,
        env: dict[str, str] | None = None,
        expect_traceback: bool = False,
    ) -> Child:
        command = [program] if "/" in program else [sys.executable, "-m", program]
        if program.endswith(".py"):
            command = [sys.executable, program]
        command += ["--ros-args", "-r", f"__ns:=/{namespace}"]
        for old, new in (remaps or {}).items():
            command += ["-r", f"{old}:={new}"]
        for name, value in (parameters or {}).items():
            command += ["-p", f"{name}:={json.dumps(value)}"]  # JSON is YAML
        log = tmp_path / f"{len(children)}_{Path(program).name}.log"
        child = Child(command, log, env or {})
        children.append((child, expect_traceback))
        return child

    yield start
    problems = []
    for child, expect_traceback in reversed(children):
        found = child.end()
        if not expect_traceback:
            found += [f"said {cry!r}" for cry in DEATH_CRIES if cry in child.output]
        if found:
            problems.append(f"{child.command[:3]} {'; '.join(found)}:\n{child.output}")
    assert not problems, "\n".join(problems)
