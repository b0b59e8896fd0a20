"""A client of the running nodes that runs one trial: home, place the objects, follow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nora_msgs.action import ExecuteInstruction
from nora_msgs.msg import CommandStatus
from nora_msgs.srv import EndEpisode, ResetSimulation, SetMode, StartEpisode
from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

from nora_bringup.client_node import client_node
from nora_bringup.readiness import wait_until_ready
from nora_bringup.trials.telemetry import Telemetry, Trial
from nora_core.embodiment import Embodiment
from nora_core.types import Outcome

READY_TIMEOUT_S = 120.0
HOME_TIMEOUT_S = 30.0
SLOWEST = 0.1  # real-time factor below which the simulation counts as stopped
CALL_TIMEOUT_S = 10.0
POLL_S = 0.02


class TrialClient:
    """Client of the policy, bridge, recorder and simulator nodes.

    Args:
        node: in the namespace of the graph, spun by a thread of its own.
        embodiment: of the graph.
        check: called while waiting; raises `RuntimeError` when the graph no longer runs.
        has_recorder: whether the graph has a recorder.
    """

    def __init__(
        self,
        node: Node,
        embodiment: Embodiment,
        check: Callable[[], None],
        *,
        has_recorder: bool = False,
    ) -> None:
        self._node, self._check = node, check
        self._telemetry = Telemetry(node, embodiment)
        self._execute = ActionClient(node, ExecuteInstruction, "execute_instruction")
        services = {"bridge/set_mode": SetMode, "bridge/home": Trigger}
        self._has_simulator = embodiment.is_simulated
        if self._has_simulator:
            services["sim/reset"] = ResetSimulation
        if has_recorder:
            services |= {
                "recorder/start_episode": StartEpisode,
                "recorder/end_episode": EndEpisode,
            }
        self._clients: dict[str, Client] = {
            name: node.create_client(kind, name) for name, kind in services.items()
        }

    def wait_until_ready(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Return when bridge and policy are active and everything else answers.

        Args:
            say: gets one line per node, see `readiness.wait_until_ready`.
        """
        names = ["bridge", "policy"]
        if self._has_simulator:
            names.insert(0, "sim")
        if "recorder/start_episode" in self._clients:
            names.append("recorder")
        wait_until_ready(self._node, names, check=self._check, say=say, timeout_s=READY_TIMEOUT_S)
        for name, client in self._clients.items():
            self._wait(client.service_is_ready, READY_TIMEOUT_S, f"service {name}")
        self._wait(self._execute.server_is_ready, READY_TIMEOUT_S, "action execute_instruction")

    def prepare(self, instruction: str, seed: int) -> None:
        """Bring the arm home and, in simulation, place the objects.

        Raises:
            RuntimeError: a node refused, or did not answer in time.
        """
        self._set_mode(SetMode.Request.HOLD)
        self._wait(self._try_home, CALL_TIMEOUT_S, "the bridge to accept bridge/home")
        self._wait(self._is_homing, CALL_TIMEOUT_S, "the home motion to begin", optional=True)
        self._wait_in_node_time(
            lambda: not self._is_homing(), HOME_TIMEOUT_S, "the arm to reach its home pose"
        )
        if self._has_simulator:
            request = ResetSimulation.Request(seed=seed, instruction=instruction)
            self._demand("sim/reset", request)

    def start_episode(self, instruction: str, notes: str) -> Path:
        """Start to record; the folder of the bag. Raises `RuntimeError`."""
        request = StartEpisode.Request(instruction=instruction, notes=notes)
        return Path(self._demand("recorder/start_episode", request).path)

    def end_episode(self, outcome: Outcome, distractor_grasps: int) -> None:
        """End the recording. Raises `RuntimeError`."""
        request = EndEpisode.Request(outcome=int(outcome), distractor_grasps=distractor_grasps)
        self._demand("recorder/end_episode", request)

    def discard_episode(self) -> None:
        """Delete the recording. Raises `RuntimeError`."""
        self._demand("recorder/end_episode", EndEpisode.Request(discard=True))

    def run(
        self,
        instruction: str,
        seed: int,
        *,
        timeout_s: float,
        on_progress: Callable[[float], None] = lambda _: None,
        is_over: Callable[[], bool] = lambda: False,
        settle_s: float = 0.0,
    ) -> Trial:
        """Follow the instruction for at most `timeout_s`.

        Args:
            instruction: the task.
            seed: of the scene, for the record.
            timeout_s: limit.
            on_progress: gets the seconds since the start, again and again.
            is_over: polled; true ends the trial.
            settle_s: how long the arm holds at the end before the last judgement counts.
        """
        trial, telemetry = Trial(instruction=instruction, seed=seed), self._telemetry
        before = telemetry.status
        telemetry.begin(trial)
        try:
            self._wait(self._try_policy_mode, CALL_TIMEOUT_S, "the bridge to accept mode POLICY")
            result = self._follow(instruction, timeout_s, on_progress, is_over)
            trial.duration_s = self._elapsed_s()
            self._set_mode(SetMode.Request.HOLD)
            self._wait_in_node_time(lambda: False, settle_s, "the scene to settle", optional=True)
        finally:
            telemetry.end()
            self._set_mode(SetMode.Request.HOLD)
        trial.clamped = telemetry.status.steps_clamped - before.steps_clamped
        trial.refused = _num_refused(telemetry.status) - _num_refused(before)
        trial.error_code, trial.error_msg = result.error_code, result.error_msg
        answered = Outcome(result.outcome)
        newest = (trial.outcome, answered) if settle_s else (answered, trial.outcome)
        trial.outcome = newest[0] or newest[1]
        return trial

    def _follow(
        self,
        instruction: str,
        timeout_s: float,
        on_progress: Callable[[float], None],
        is_over: Callable[[], bool],
    ) -> Any:
        """The result of the goal."""
        goal = ExecuteInstruction.Goal(instruction=instruction, timeout=timeout_s)
        handle = self._result_of(self._execute.send_goal_async(goal), "execute_instruction")
        result = handle.get_result_async()

        def is_done() -> bool:
            on_progress(self._elapsed_s())
            return bool(result.done()) or is_over()

        self._wait_in_node_time(is_done, timeout_s + CALL_TIMEOUT_S, "the trial to end")
        if not result.done():
            handle.cancel_goal_async()
            self._wait(result.done, CALL_TIMEOUT_S, "the policy to stop")
        return result.result().result

    def _try_home(self) -> bool:
        """Ask again: on a busy machine a joint state may be late, and the bridge refuses then."""
        answer = self._request("bridge/home", Trigger.Request())
        if not answer.success:
            self._node.get_logger().info(answer.message, throttle_duration_sec=1.0)
        return bool(answer.success)

    def _try_policy_mode(self) -> bool:
        """Ask again for the same reason as `_try_home`."""
        answer = self._request("bridge/set_mode", SetMode.Request(mode=SetMode.Request.POLICY))
        if answer.error_code not in (SetMode.Response.NONE, SetMode.Response.NO_STATE):
            raise RuntimeError(f"bridge/set_mode: {answer.error_msg}")
        return bool(answer.error_code == SetMode.Response.NONE)

    def _set_mode(self, mode: int) -> None:
        self._demand("bridge/set_mode", SetMode.Request(mode=mode))

    def _demand(self, name: str, request: object) -> Any:
        """Raises `RuntimeError` when the answer is an error."""
        answer = self._request(name, request)
        if answer.error_code:
            raise RuntimeError(f"{name}: {answer.error_msg}")
        return answer

    def _request(self, name: str, request: object) -> Any:
        return self._result_of(self._clients[name].call_async(request), name)

    def _result_of(self, future: Future, name: str) -> Any:
        self._wait(future.done, CALL_TIMEOUT_S, f"an answer of {name}")
        return future.result()

    def _wait(
        self,
        is_done: Callable[[], bool],
        timeout_s: float,
        what: str,
        *,
        optional: bool = False,
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_done():
            self._check()
            if time.monotonic() > deadline:
                if optional:
                    return
                raise RuntimeError(f"waited {timeout_s:g} s for {what}")
            time.sleep(POLL_S)

    def _wait_in_node_time(
        self,
        is_done: Callable[[], bool],
        timeout_s: float,
        what: str,
        *,
        optional: bool = False,
    ) -> None:
        """Wait on the clock of the nodes, which may be slow but must not stand still."""
        end_ns = self._telemetry.now_ns() + round(timeout_s * 1e9)
        wall_s = timeout_s / SLOWEST + CALL_TIMEOUT_S
        self._wait(lambda: is_done() or self._telemetry.now_ns() >= end_ns, wall_s, what)
        if not (optional or is_done()):
            raise RuntimeError(f"waited {timeout_s:g} s for {what}")

    def _is_homing(self) -> bool:
        return bool(self._telemetry.status.mode == CommandStatus.MODE_HOMING)

    def _elapsed_s(self) -> float:
        return (self._telemetry.now_ns() - self._telemetry.start_ns) * 1e-9


@contextlib.contextmanager
def trial_client(
    embodiment: Embodiment,
    check: Callable[[], None],
    *,
    has_recorder: bool = False,
    use_sim_time: bool = False,
) -> Iterator[TrialClient]:
    """A `TrialClient` whose node is spun while the context lasts."""
    with client_node("trials", use_sim_time) as node:
        yield TrialClient(node, embodiment, check, has_recorder=has_recorder)


def _num_refused(status: CommandStatus) -> int:
    return int(status.chunks_refused + status.steps_refused)
