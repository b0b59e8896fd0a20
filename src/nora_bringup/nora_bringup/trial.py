"""One trial against the running graph: home, reset the scene, follow an instruction."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import rclpy
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from nora_msgs.action import ExecuteInstruction
from nora_msgs.msg import ActionChunk, CommandStatus, EndEffectorDelta, TaskOutcome
from nora_msgs.srv import ResetSimulation, SetMode
from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from nora_bringup.graph import NAMESPACE
from nora_policy.embodiment import Embodiment
from nora_policy.nodes import convert
from nora_policy.types import Frame

READY_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 10.0
POLL_S = 0.02
OUTCOMES = {
    TaskOutcome.UNKNOWN: "unknown",
    TaskOutcome.SUCCESS: "success",
    TaskOutcome.PARTIAL: "partial",
    TaskOutcome.FAILURE: "failure",
}


@dataclass(slots=True)
class Trial:
    """What happened in a trial; times in s on the node clock, positions in m in the base frame.

    `image_age_s` and `chunk_age_s` are from camera stamp to receipt of image and chunk here,
    `observation_age_s` from camera stamp to the start of a step; `commanded` and `measured` are
    time, x, y, z of the tool.
    """

    instruction: str
    seed: int
    error_code: int = 0
    error_msg: str = ""
    outcome: int = TaskOutcome.UNKNOWN
    distractor_grasps: int = 0
    duration_s: float = 0.0
    inference_s: list[float] = field(default_factory=list)
    image_age_s: list[float] = field(default_factory=list)
    chunk_age_s: list[float] = field(default_factory=list)
    observation_age_s: list[float] = field(default_factory=list)
    commanded: list[tuple[float, float, float, float]] = field(default_factory=list)
    measured: list[tuple[float, float, float, float]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    clamped: int = 0
    refused: int = 0

    @property
    def outcome_name(self) -> str:
        return OUTCOMES[self.outcome]

    @property
    def chunk_rate_hz(self) -> float:
        return len(self.inference_s) / self.duration_s if self.duration_s else float("nan")


class TrialClient:
    """Client of the policy, bridge and simulator nodes; its node is spun by a thread of its own.

    Args:
        node: named in the namespace of the graph.
        embodiment: whose first camera is recorded.
        check: called while waiting; raises `RuntimeError` when the graph is no longer alive.
    """

    def __init__(self, node: Node, embodiment: Embodiment, check: Callable[[], None]) -> None:
        self._node, self._check = node, check
        self._trial: Trial | None = None
        self._status = CommandStatus()
        camera = embodiment.cameras[0]
        best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)

        def on_image(msg: Image) -> None:
            if (trial := self._trial) is not None:
                frame = convert.frame_from_msg(msg, camera.encoding)
                trial.frames.append(frame)
                trial.image_age_s.append((self._now_ns() - frame.stamp_ns) * 1e-9)

        node.create_subscription(Image, camera.topic, on_image, best_effort)
        node.create_subscription(ActionChunk, "policy/action_chunk", self._on_chunk, 10)
        node.create_subscription(EndEffectorDelta, "bridge/command", self._on_command, 10)
        node.create_subscription(CommandStatus, "bridge/status", self._on_status, 10)
        node.create_subscription(TaskOutcome, "task_outcome", self._on_outcome, 10)
        node.create_subscription(PoseStamped, "bridge/target_pose", self._on_target, 10)
        node.create_subscription(PoseStamped, "bridge/ee_pose", self._on_measured, 10)
        self._execute = ActionClient(node, ExecuteInstruction, "execute_instruction")
        self._clients: dict[str, Client] = {
            "bridge/set_mode": node.create_client(SetMode, "bridge/set_mode"),
            "bridge/home": node.create_client(Trigger, "bridge/home"),
            "sim/reset": node.create_client(ResetSimulation, "sim/reset"),
        }

    def wait_until_ready(self) -> None:
        """Return when bridge and policy are active and the simulator answers."""
        for name in ("bridge", "policy"):
            client = self._node.create_client(GetState, f"{name}/get_state")
            self._wait(client.service_is_ready, READY_TIMEOUT_S, f"{name} node to start")
            state = self._call(client, GetState.Request(), f"{name}/get_state")
            if state.current_state.id != State.PRIMARY_STATE_ACTIVE:
                label = state.current_state.label
                raise RuntimeError(f"{name} node: expected to be active, got {label}")
        for name, client in self._clients.items():
            self._wait(client.service_is_ready, READY_TIMEOUT_S, f"service {name}")
        self._wait(self._execute.server_is_ready, READY_TIMEOUT_S, "action execute_instruction")

    def prepare(self, instruction: str, seed: int) -> None:
        """Bring the arm home and place the objects.

        Raises:
            RuntimeError: a node refused, or did not answer in time.
        """
        self._set_mode(SetMode.Request.HOLD)
        self._wait(self._try_home, CALL_TIMEOUT_S, "the bridge to accept bridge/home")
        self._wait(self._is_homing, CALL_TIMEOUT_S, "the home motion to begin", optional=True)
        self._wait(lambda: not self._is_homing(), 30.0, "the arm to reach its home pose")
        request = ResetSimulation.Request(seed=seed, instruction=instruction)
        reset = self._request("sim/reset", request)
        if reset.error_code:
            raise RuntimeError(f"sim/reset: {reset.error_msg}")

    def run(
        self, instruction: str, seed: int, timeout_s: float, on_progress: Callable[[float], None]
    ) -> Trial:
        """Follow the instruction for at most `timeout_s`; `on_progress` gets the seconds gone."""
        trial = Trial(instruction, seed)
        before = self._status
        start_ns = self._now_ns()
        self._trial = trial
        try:
            self._set_mode(SetMode.Request.POLICY)
            goal = ExecuteInstruction.Goal(instruction=instruction, timeout=timeout_s)
            handle = self._result_of(self._execute.send_goal_async(goal), "execute_instruction")
            result = handle.get_result_async()

            def is_done() -> bool:
                on_progress((self._now_ns() - start_ns) * 1e-9)
                return bool(result.done())

            self._wait(is_done, timeout_s + CALL_TIMEOUT_S, "the trial to end")
        finally:
            self._trial = None
            self._set_mode(SetMode.Request.HOLD)
        trial.duration_s = (self._now_ns() - start_ns) * 1e-9
        trial.clamped = self._status.steps_clamped - before.steps_clamped
        trial.refused = _refused(self._status) - _refused(before)
        answer = result.result().result
        trial.error_code, trial.error_msg = answer.error_code, answer.error_msg
        trial.outcome = answer.outcome or trial.outcome
        return trial

    def _try_home(self) -> bool:
        """A busy machine may starve the joint states for a moment; the bridge then refuses."""
        answer = self._request("bridge/home", Trigger.Request())
        if not answer.success:
            self._node.get_logger().info(answer.message, throttle_duration_sec=1.0)
        return bool(answer.success)

    def _set_mode(self, mode: int) -> None:
        answer = self._request("bridge/set_mode", SetMode.Request(mode=mode))
        if answer.error_code:
            raise RuntimeError(f"bridge/set_mode: {answer.error_msg}")

    def _request(self, name: str, request: object) -> Any:
        return self._call(self._clients[name], request, name)

    def _call(self, client: Client, request: object, name: str) -> Any:
        return self._result_of(client.call_async(request), name)

    def _result_of(self, future: Future, name: str) -> Any:
        self._wait(future.done, CALL_TIMEOUT_S, f"an answer of {name}")
        return future.result()

    def _wait(
        self, is_done: Callable[[], bool], timeout_s: float, what: str, optional: bool = False
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_done():
            self._check()
            if time.monotonic() > deadline:
                if optional:
                    return
                raise RuntimeError(f"waited {timeout_s:g} s for {what}")
            time.sleep(POLL_S)

    def _is_homing(self) -> bool:
        return bool(self._status.mode == CommandStatus.MODE_HOMING)

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _on_chunk(self, msg: ActionChunk) -> None:
        if (trial := self._trial) is not None:
            trial.inference_s.append(msg.inference_time)
            trial.chunk_age_s.append((self._now_ns() - convert.to_ns(msg.header.stamp)) * 1e-9)

    def _on_command(self, msg: EndEffectorDelta) -> None:
        if (trial := self._trial) is not None:
            age_ns = convert.to_ns(msg.header.stamp) - convert.to_ns(msg.observation_stamp)
            trial.observation_age_s.append(age_ns * 1e-9)

    def _on_status(self, msg: CommandStatus) -> None:
        self._status = msg

    def _on_outcome(self, msg: TaskOutcome) -> None:
        trial = self._trial
        if trial is not None and msg.instruction == trial.instruction:
            trial.outcome = msg.outcome
            trial.distractor_grasps = msg.distractor_grasps

    def _on_target(self, msg: PoseStamped) -> None:
        if (trial := self._trial) is not None:
            trial.commanded.append(_stamped_position(msg))

    def _on_measured(self, msg: PoseStamped) -> None:
        if (trial := self._trial) is not None:
            trial.measured.append(_stamped_position(msg))


@contextlib.contextmanager
def trial_client(embodiment: Embodiment, check: Callable[[], None]) -> Iterator[TrialClient]:
    """A `TrialClient` whose node is spun while the context lasts."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("trials", namespace=NAMESPACE)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, name="spin")
    thread.start()
    try:
        yield TrialClient(node, embodiment, check)
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.try_shutdown()


def _refused(status: CommandStatus) -> int:
    return int(status.chunks_refused + status.steps_refused)


def _stamped_position(msg: PoseStamped) -> tuple[float, float, float, float]:
    position = msg.pose.position
    return convert.to_ns(msg.header.stamp) * 1e-9, position.x, position.y, position.z
