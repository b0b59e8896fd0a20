"""One trial against the running graph: home, reset the scene, follow an instruction."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import rclpy
from geometry_msgs.msg import PoseArray, PoseStamped
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from nora_msgs.action import ExecuteInstruction
from nora_msgs.msg import ActionChunk, CommandStatus, EndEffectorDelta, TaskOutcome
from nora_msgs.srv import EndEpisode, ResetSimulation, SetMode, StartEpisode
from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from nora_bringup.graph import Options, node_specs
from nora_bringup.standalone import start_graph
from nora_core.embodiment import Camera, Embodiment
from nora_core.paths import embodiment_file
from nora_core.ros import convert
from nora_core.topics import NAMESPACE
from nora_core.types import Frame

READY_TIMEOUT_S = 120.0
HOME_TIMEOUT_S = 30.0
SLOWEST = 0.1  # seconds of the simulation per second; a slower one is taken for a stopped one
CALL_TIMEOUT_S = 10.0
ASK_AGAIN_S = 1.0
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

    `inference_s` is the exception: it is of the computer's clock, however slow the simulation.
    `image_age_s` and `chunk_age_s` are from camera stamp to receipt of image and chunk here,
    `observation_age_s` from camera stamp to the start of a step; `commanded` and `measured` are
    time, x, y, z of the tool. `views`: with every image of the first camera the newest of the
    others, in the embodiment's order, as soon as there is one of each. `grasp_s`: until the named
    object was first known to be grasped. `things`: in simulation, x, y, z of everything at every
    judgement, in the simulator's order, and of the tool then, last.
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
    views: list[tuple[Frame, ...]] = field(default_factory=list)
    things: list[list[tuple[float, float, float]]] = field(default_factory=list)
    grasp_s: float | None = None
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
        embodiment: whose cameras are watched.
        check: called while waiting; raises `RuntimeError` when the graph is no longer alive.
        has_recorder: whether the graph has a recorder, for bags.
    """

    def __init__(
        self,
        node: Node,
        embodiment: Embodiment,
        check: Callable[[], None],
        has_recorder: bool = False,
    ) -> None:
        self._node, self._check = node, check
        self._trial: Trial | None = None
        self._start_ns = 0
        self._status = CommandStatus()
        self._newest: dict[str, Frame] = {}
        self._cameras = embodiment.cameras
        best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        for camera in embodiment.cameras:
            take = partial(self._on_image, camera)
            node.create_subscription(Image, camera.topic, take, best_effort)
        node.create_subscription(ActionChunk, "policy/action_chunk", self._on_chunk, 10)
        node.create_subscription(EndEffectorDelta, "bridge/command", self._on_command, 10)
        node.create_subscription(CommandStatus, "bridge/status", self._on_status, 10)
        node.create_subscription(TaskOutcome, "task_outcome", self._on_outcome, 10)
        node.create_subscription(PoseStamped, "bridge/target_pose", self._on_target, 10)
        node.create_subscription(PoseStamped, "bridge/ee_pose", self._on_measured, 10)
        self._execute = ActionClient(node, ExecuteInstruction, "execute_instruction")
        services = {"bridge/set_mode": SetMode, "bridge/home": Trigger}
        self._has_simulator = embodiment.driver is not None and embodiment.driver.kind == "sim"
        if self._has_simulator:
            services["sim/reset"] = ResetSimulation
            node.create_subscription(PoseArray, "sim/object_poses", self._on_things, 10)
        if has_recorder:
            services |= {
                "recorder/start_episode": StartEpisode,
                "recorder/end_episode": EndEpisode,
            }
        self._clients: dict[str, Client] = {
            name: node.create_client(kind, name) for name, kind in services.items()
        }

    def wait_until_ready(self) -> None:
        """Return when bridge and policy are active and everything else answers."""
        for name in ("bridge", "policy"):
            state = self._state(name)
            if state.id != State.PRIMARY_STATE_ACTIVE:
                raise RuntimeError(f"{name} node: expected to be active, got {state.label}")
        for name, client in self._clients.items():
            self._wait(client.service_is_ready, READY_TIMEOUT_S, f"service {name}")
        self._wait(self._execute.server_is_ready, READY_TIMEOUT_S, "action execute_instruction")

    def _state(self, name: str) -> State:
        """Asked again and again: a node may hear us for some time before it can answer us.

        When it can, it knows all our other clients as well, for it has heard of them before.
        """
        service = f"{name}/get_state"
        client = self._node.create_client(GetState, service)
        self._wait(client.service_is_ready, READY_TIMEOUT_S, f"{name} node to start")
        asked: list[Future] = []

        def is_answered() -> bool:
            return any(future.done() for future in asked)

        while not is_answered():
            if len(asked) * ASK_AGAIN_S >= CALL_TIMEOUT_S:
                raise RuntimeError(f"waited {CALL_TIMEOUT_S:g} s for an answer of {service}")
            asked.append(client.call_async(GetState.Request()))
            self._wait(is_answered, ASK_AGAIN_S, f"an answer of {service}", optional=True)
        return next(future.result().current_state for future in asked if future.done())

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
        """The folder of the bag that is recorded from now on. Raises `RuntimeError`."""
        request = StartEpisode.Request(instruction=instruction, notes=notes)
        return Path(self._demand("recorder/start_episode", request).path)

    def end_episode(self, outcome: int, distractor_grasps: int) -> None:
        """Raises `RuntimeError`."""
        request = EndEpisode.Request(outcome=outcome, distractor_grasps=distractor_grasps)
        self._demand("recorder/end_episode", request)

    def discard_episode(self) -> None:
        """Raises `RuntimeError`."""
        self._demand("recorder/end_episode", EndEpisode.Request(discard=True))

    def run(
        self,
        instruction: str,
        seed: int,
        timeout_s: float,
        on_progress: Callable[[float], None],
        is_over: Callable[[], bool] = lambda: False,
        settle_s: float = 0.0,
    ) -> Trial:
        """Follow the instruction for at most `timeout_s`.

        Args:
            instruction: the task.
            seed: of the scene, for the record.
            timeout_s: limit.
            on_progress: gets the seconds gone.
            is_over: asked all the time; true ends the trial.
            settle_s: how long the arm holds at the end before the last judgement counts.
        """
        trial = Trial(instruction, seed)
        before = self._status
        self._start_ns = start_ns = self._now_ns()
        self._newest.clear()
        self._trial = trial
        try:
            self._wait(self._try_policy_mode, CALL_TIMEOUT_S, "the bridge to accept mode POLICY")
            goal = ExecuteInstruction.Goal(instruction=instruction, timeout=timeout_s)
            handle = self._result_of(self._execute.send_goal_async(goal), "execute_instruction")
            result = handle.get_result_async()

            def is_done() -> bool:
                on_progress((self._now_ns() - start_ns) * 1e-9)
                return bool(result.done()) or is_over()

            self._wait_in_node_time(is_done, timeout_s + CALL_TIMEOUT_S, "the trial to end")
            if not result.done():
                handle.cancel_goal_async()
                self._wait(result.done, CALL_TIMEOUT_S, "the policy to stop")
            trial.duration_s = (self._now_ns() - start_ns) * 1e-9
            self._set_mode(SetMode.Request.HOLD)
            self._wait_in_node_time(lambda: False, settle_s, "the scene to settle", optional=True)
        finally:
            self._trial = None
            self._set_mode(SetMode.Request.HOLD)
        trial.clamped = self._status.steps_clamped - before.steps_clamped
        trial.refused = _refused(self._status) - _refused(before)
        answer = result.result().result
        trial.error_code, trial.error_msg = answer.error_code, answer.error_msg
        last = (trial.outcome, answer.outcome) if settle_s else (answer.outcome, trial.outcome)
        trial.outcome = last[0] or last[1]
        return trial

    def _try_home(self) -> bool:
        """A busy machine may starve the joint states for a moment; the bridge then refuses."""
        answer = self._request("bridge/home", Trigger.Request())
        if not answer.success:
            self._node.get_logger().info(answer.message, throttle_duration_sec=1.0)
        return bool(answer.success)

    def _try_policy_mode(self) -> bool:
        """As `_try_home`: a joint state that comes late is no reason to end the trials."""
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

    def _wait_in_node_time(
        self, is_done: Callable[[], bool], timeout_s: float, what: str, optional: bool = False
    ) -> None:
        """As `_wait`, but in time of the nodes, which may pass slowly and must not stand still."""
        end_ns = self._now_ns() + round(timeout_s * 1e9)
        wall_s = timeout_s / SLOWEST + CALL_TIMEOUT_S
        self._wait(lambda: is_done() or self._now_ns() >= end_ns, wall_s, what)
        if not (optional or is_done()):
            raise RuntimeError(f"waited {timeout_s:g} s for {what}")

    def _is_homing(self) -> bool:
        return bool(self._status.mode == CommandStatus.MODE_HOMING)

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _on_image(self, camera: Camera, msg: Image) -> None:
        if (trial := self._trial) is None:
            return
        frame = self._newest[camera.name] = convert.frame_from_msg(msg, camera.encoding)
        if camera.name != self._cameras[0].name:
            return
        trial.image_age_s.append((self._now_ns() - frame.stamp_ns) * 1e-9)
        if len(self._newest) == len(self._cameras):
            trial.views.append(tuple(self._newest[c.name] for c in self._cameras))

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
            is_grasped = msg.outcome in (TaskOutcome.PARTIAL, TaskOutcome.SUCCESS)
            if is_grasped and trial.grasp_s is None:
                trial.grasp_s = (self._now_ns() - self._start_ns) * 1e-9

    def _on_things(self, msg: PoseArray) -> None:
        trial = self._trial
        if trial is not None and trial.measured:
            at = [(p.position.x, p.position.y, p.position.z) for p in msg.poses]
            trial.things.append([*at, trial.measured[-1][1:]])

    def _on_target(self, msg: PoseStamped) -> None:
        if (trial := self._trial) is not None:
            trial.commanded.append(_stamped_position(msg))

    def _on_measured(self, msg: PoseStamped) -> None:
        if (trial := self._trial) is not None:
            trial.measured.append(_stamped_position(msg))


@contextlib.contextmanager
def trial_client(
    embodiment: Embodiment,
    check: Callable[[], None],
    has_recorder: bool = False,
    use_sim_time: bool = False,
) -> Iterator[TrialClient]:
    """A `TrialClient` whose node is spun while the context lasts."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    clock = Parameter("use_sim_time", value=use_sim_time)
    node = rclpy.create_node("trials", namespace=NAMESPACE, parameter_overrides=[clock])
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, name="spin")
    thread.start()
    try:
        yield TrialClient(node, embodiment, check, has_recorder)
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.try_shutdown()


@contextlib.contextmanager
def graph_client(options: Options, logs: Path) -> Iterator[TrialClient]:
    """A ready client of a graph that runs while the context lasts; one log file per node.

    Raises:
        RuntimeError: a node ended, with its last words, or did not answer; at any time.
    """
    logs.mkdir(parents=True, exist_ok=True)
    embodiment = Embodiment.load(embodiment_file(options.embodiment))
    with start_graph(node_specs(options), logs) as graph:

        def check() -> None:
            if ended := graph.ended():
                lines = (logs / f"{ended.split()[0]}.log").read_text(errors="replace").splitlines()
                raise RuntimeError(f"{ended}: {lines[-1] if lines else 'it said nothing'}")

        has_recorder = bool(options.record_dir)
        with trial_client(embodiment, check, has_recorder, options.use_sim_time) as client:
            client.wait_until_ready()
            yield client


def _refused(status: CommandStatus) -> int:
    return int(status.chunks_refused + status.steps_refused)


def _stamped_position(msg: PoseStamped) -> tuple[float, float, float, float]:
    position = msg.pose.position
    return convert.to_ns(msg.header.stamp) * 1e-9, position.x, position.y, position.z
