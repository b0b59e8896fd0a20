"""The process graph as plain child processes, where there is no launch system."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ament_index_python.packages import get_package_prefix

from nora_bringup.graph import NodeSpec, fastdds_environment
from nora_bringup.shared_memory import remove_abandoned
from nora_core.processes import dies_with_parent
from nora_core.topics import NAMESPACE

STOP_TIMEOUT_S = 5.0  # usually 0.1 s; 2 s on a busy machine


class Graph:
    """Running nodes; use `start_graph`.

    Each child has a session of its own, so that a Ctrl-C reaches it only through this process; if
    this process is killed, the kernel sends SIGTERM to the children.
    """

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, spec: NodeSpec, log_dir: Path | None) -> None:
        executable = Path(get_package_prefix(spec.package), "lib", spec.package, spec.executable)
        arguments = [str(executable), "--ros-args", "-r", f"__ns:=/{NAMESPACE}"]
        for name, value in spec.parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            arguments += ["-p", f"{name}:={text}"]
        with contextlib.ExitStack() as stack:
            log = None
            if log_dir is not None:
                log = stack.enter_context((log_dir / f"{spec.executable}.log").open("wb"))
            self._processes[spec.executable] = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                env={**os.environ, **fastdds_environment()},
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )

    def ended(self) -> str | None:
        """Name and exit code of the first node that has ended; None: all run."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                return f"{name} ended with exit code {process.returncode}"
        return None

    def stop(self) -> list[str]:
        """End every node, kill those that run after `STOP_TIMEOUT_S`; names of the killed.

        With SIGTERM, on which a node that is still importing ends at once without a traceback.
        """
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        killed = []
        for name, process in self._processes.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed.append(name)
        return killed


@contextlib.contextmanager
def start_graph(specs: tuple[NodeSpec, ...], log_dir: Path | None = None) -> Iterator[Graph]:
    """Run the nodes while the context lasts.

    Args:
        specs: from `graph.node_specs`.
        log_dir: folder for the output, one file per node; None: the terminal.
    """
    remove_abandoned()
    graph = Graph()
    try:
        for spec in specs:
            graph.start(spec, log_dir)
        yield graph
    finally:
        for name in graph.stop():
            print(f"{name} did not end within {STOP_TIMEOUT_S:g} s and was killed")


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    """Refuse to run two graphs of this machine side by side: their bridges would share an arm.

    Raises:
        RuntimeError: another `nora up` runs in this ROS domain.
    """
    domain = os.environ.get("ROS_DOMAIN_ID") or "0"
    path = Path(tempfile.gettempdir(), f"nora_up_{os.getuid()}_domain_{domain}.lock")
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RuntimeError(
                f"nora up runs already in ROS domain {domain}, as process {file.read().strip()}: "
                "end it first, or set another ROS_DOMAIN_ID"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def run_until_ended(specs: tuple[NodeSpec, ...]) -> int:
    """Run the nodes until one ends by itself, which is exit code 1, or until Ctrl-C."""
    from nora_bringup.client_node import client_node  # rclpy only when nodes are started
    from nora_bringup.readiness import wait_until_ready

    names = [spec.executable for spec in specs]

    def check() -> None:
        if graph.ended():
            raise _NodeEnded

    _say(f"starting {', '.join(names)}; Ctrl-C ends them")
    with _only_one(), start_graph(specs) as graph:
        with contextlib.suppress(_NodeEnded):
            with client_node("up") as node:
                wait_until_ready(node, names, check=check, say=_say)
            if "policy" in names:
                _say('next: nora mode policy, then nora say "TEXT"; nora --help lists the rest')
            while not graph.ended():
                time.sleep(0.1)
        ended = graph.ended()
    _say(f"stopped: {ended}")
    return 1


def _say(line: str) -> None:
    print(f"nora: {line}", flush=True)


class _NodeEnded(Exception):
    """Ends the wait for a graph of which a node has ended."""
