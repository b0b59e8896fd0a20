"""What the nodes publish during a trial, collected by a client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from geometry_msgs.msg import PoseArray, PoseStamped
from nora_msgs.msg import ActionChunk, CommandStatus, EndEffectorDelta, TaskOutcome
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from nora_core.embodiment import Camera, Embodiment
from nora_core.ros import convert
from nora_core.types import Frame, GoalError, Outcome

Position = tuple[float, float, float]
StampedPosition = tuple[float, float, float, float]  # s, then x, y, z in m


@dataclass(frozen=True, slots=True)
class View:
    """An image of every camera, in the embodiment's order, and the outcome known by then."""

    frames: tuple[Frame, ...]
    outcome: Outcome


@dataclass(slots=True, kw_only=True)
class Trial:
    """What happened in a trial; times in s on the node clock, positions in m in the base frame.

    Attributes:
        instruction: the task.
        seed: of the scene.
        error_code: how the goal of the policy node ended.
        error_msg: the same in words.
        outcome: the last judgement.
        distractor_grasps: grasps of another object.
        duration_s: from the start to the end.
        inference_s: of each chunk, on the computer's clock, however slow the simulation is.
        image_age_s: from the camera stamp to the receipt of the image here.
        chunk_age_s: from the camera stamp to the receipt of the chunk here.
        observation_age_s: from the camera stamp to the start of the step.
        commanded: time and position of the tool as commanded.
        measured: time and position of the tool as measured.
        views: one for every image of the first camera, once there is an image of each camera.
        objects: in simulation, at every judgement: the position of each object and receptacle in
            the simulator's order, then of the tool.
        grasp_s: until the first report that the named object is grasped.
        clamped: number of steps that the bridge clamped.
        refused: number of chunks and steps that the bridge refused.
    """

    instruction: str
    seed: int
    error_code: int = GoalError.NONE
    error_msg: str = ""
    outcome: Outcome = Outcome.UNKNOWN
    distractor_grasps: int = 0
    duration_s: float = 0.0
    inference_s: list[float] = field(default_factory=list)
    image_age_s: list[float] = field(default_factory=list)
    chunk_age_s: list[float] = field(default_factory=list)
    observation_age_s: list[float] = field(default_factory=list)
    commanded: list[StampedPosition] = field(default_factory=list)
    measured: list[StampedPosition] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    objects: list[list[Position]] = field(default_factory=list)
    grasp_s: float | None = None
    clamped: int = 0
    refused: int = 0

    @property
    def chunk_rate_hz(self) -> float:
        return len(self.inference_s) / self.duration_s if self.duration_s else float("nan")


class Telemetry:
    """Subscribes to everything that a trial records; collects between `begin` and `end`.

    Attributes:
        status: newest status of the bridge.
        start_ns: node time of the last `begin`.
    """

    def __init__(self, node: Node, embodiment: Embodiment) -> None:
        self._node = node
        self._trial: Trial | None = None
        self._newest: dict[str, Frame] = {}
        self._cameras = embodiment.cameras
        self.status = CommandStatus()
        self.start_ns = 0
        self._subscribe(embodiment)

    def begin(self, trial: Trial) -> None:
        self._newest.clear()
        self.start_ns = self.now_ns()
        self._trial = trial

    def end(self) -> None:
        self._trial = None

    def now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _subscribe(self, embodiment: Embodiment) -> None:
        best_effort = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        for camera in embodiment.cameras:
            on_image = partial(self._on_image, camera)
            self._node.create_subscription(Image, camera.topic, on_image, best_effort)
        subscriptions: list[tuple[str, type, Callable[..., None]]] = [
            ("policy/action_chunk", ActionChunk, self._on_chunk),
            ("bridge/command", EndEffectorDelta, self._on_command),
            ("bridge/status", CommandStatus, self._on_status),
            ("task_outcome", TaskOutcome, self._on_outcome),
            ("bridge/target_pose", PoseStamped, self._on_target),
            ("bridge/ee_pose", PoseStamped, self._on_measured),
        ]
        if embodiment.is_simulated:
            subscriptions.append(("sim/object_poses", PoseArray, self._on_objects))
        for topic, kind, callback in subscriptions:
            self._node.create_subscription(kind, topic, callback, 10)

    def _on_image(self, camera: Camera, msg: Image) -> None:
        if (trial := self._trial) is None:
            return
        frame = self._newest[camera.name] = convert.frame_from_msg(msg, camera.encoding)
        if camera.name != self._cameras[0].name:
            return
        trial.image_age_s.append((self.now_ns() - frame.stamp_ns) * 1e-9)
        if len(self._newest) == len(self._cameras):
            frames = tuple(self._newest[c.name] for c in self._cameras)
            trial.views.append(View(frames, trial.outcome))

    def _on_chunk(self, msg: ActionChunk) -> None:
        if (trial := self._trial) is not None:
            trial.inference_s.append(msg.inference_time)
            trial.chunk_age_s.append((self.now_ns() - convert.to_ns(msg.header.stamp)) * 1e-9)

    def _on_command(self, msg: EndEffectorDelta) -> None:
        if (trial := self._trial) is not None:
            age_ns = convert.to_ns(msg.header.stamp) - convert.to_ns(msg.observation_stamp)
            trial.observation_age_s.append(age_ns * 1e-9)

    def _on_status(self, msg: CommandStatus) -> None:
        self.status = msg

    def _on_outcome(self, msg: TaskOutcome) -> None:
        trial = self._trial
        if trial is None or msg.instruction != trial.instruction:
            return
        trial.outcome = Outcome(msg.outcome)
        trial.distractor_grasps = msg.distractor_grasps
        is_grasped = trial.outcome in (Outcome.PARTIAL, Outcome.SUCCESS)
        if is_grasped and trial.grasp_s is None:
            trial.grasp_s = (self.now_ns() - self.start_ns) * 1e-9

    def _on_objects(self, msg: PoseArray) -> None:
        trial = self._trial
        if trial is not None and trial.measured:
            positions = [(p.position.x, p.position.y, p.position.z) for p in msg.poses]
            trial.objects.append([*positions, trial.measured[-1][1:]])

    def _on_target(self, msg: PoseStamped) -> None:
        if (trial := self._trial) is not None:
            trial.commanded.append(_stamped_position(msg))

    def _on_measured(self, msg: PoseStamped) -> None:
        if (trial := self._trial) is not None:
            trial.measured.append(_stamped_position(msg))


def _stamped_position(msg: PoseStamped) -> StampedPosition:
    position = msg.pose.position
    return convert.to_ns(msg.header.stamp) * 1e-9, position.x, position.y, position.z
