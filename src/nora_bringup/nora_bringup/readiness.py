"""Wait until the nodes of a graph are ready, and say which one is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from rclpy.task import Future

ASK_AGAIN_S = 1.0
REMIND_S = 10.0
POLL_S = 0.05
PLAIN_NODES = ("sim",)  # without a lifecycle: ready when they answer at all


class Readiness:
    """Asks nodes for their state until each has answered.

    A node is asked again every second: its participant may be discovered before it can send an
    answer. Once it has answered, it also knows the other clients of `node`.

    Args:
        node: spun elsewhere.
        names: of nodes in the same namespace.
    """

    def __init__(self, node: Node, names: Sequence[str]) -> None:
        self._clients = {
            name: node.create_client(GetParameters, f"{name}/get_parameters")
            if name in PLAIN_NODES
            else node.create_client(GetState, f"{name}/get_state")
            for name in names
        }
        self._asked: dict[str, list[Future]] = {name: [] for name in names}
        self._next_s = dict.fromkeys(names, 0.0)
        self.waiting = tuple(names)

    def poll(self, now_s: float) -> list[str]:
        """Names of the nodes that have become ready since the last call.

        Raises:
            RuntimeError: a node answers that it is not active.
        """
        ready = [name for name in self.waiting if self._is_ready(name, now_s)]
        self.waiting = tuple(name for name in self.waiting if name not in ready)
        return ready

    def _is_ready(self, name: str, now_s: float) -> bool:
        for future in self._asked[name]:
            if future.done():
                _require_active(name, future.result())
                return True
        if now_s >= self._next_s[name] and self._clients[name].service_is_ready():
            kind = GetParameters if name in PLAIN_NODES else GetState
            self._asked[name].append(self._clients[name].call_async(kind.Request()))
            self._next_s[name] = now_s + ASK_AGAIN_S
        return False


def wait_until_ready(
    node: Node,
    names: Sequence[str],
    *,
    check: Callable[[], None],
    say: Callable[[str], None],
    timeout_s: float | None = None,
) -> None:
    """Return when all nodes are ready.

    Args:
        node: spun elsewhere.
        names: of the nodes.
        check: called while waiting; raises when waiting is pointless.
        say: gets one line per node that becomes ready, and every 10 s what is waited for.
        timeout_s: limit; None: no limit.

    Raises:
        RuntimeError: a node is not active, or the time is up.
    """
    readiness = Readiness(node, names)
    start_s = time.monotonic()
    said_s = start_s
    while readiness.waiting:
        check()
        now_s = time.monotonic()
        for name in readiness.poll(now_s):
            waiting = ", ".join(n for n in readiness.waiting)
            rest = f"; waiting for {waiting}" if waiting else ""
            say(f"ready: {name} ({now_s - start_s:.1f} s){rest}")
            said_s = now_s
        waiting = ", ".join(readiness.waiting)
        if timeout_s is not None and now_s - start_s > timeout_s and waiting:
            raise RuntimeError(f"not ready after {timeout_s:g} s: {waiting}")
        if now_s - said_s >= REMIND_S and waiting:
            say(f"still waiting for {waiting} ({now_s - start_s:.0f} s)")
            said_s = now_s
        time.sleep(POLL_S)
    say(f"all ready: {', '.join(names)}")


def _require_active(name: str, answer: object) -> None:
    state = getattr(answer, "current_state", None)
    if state is not None and state.id != State.PRIMARY_STATE_ACTIVE:
        raise RuntimeError(f"the node {name} is {state.label}, not active")
