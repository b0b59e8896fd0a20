"""Policy node: camera images and an instruction in, chunks of end-effector deltas out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from nora_msgs.action import ExecuteInstruction
from nora_msgs.msg import ActionChunk as ActionChunkMsg
from nora_msgs.msg import TaskOutcome
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.task import Future
from sensor_msgs.msg import Image
from std_msgs.msg import String
from threadpoolctl import threadpool_limits

from nora_core.embodiment import Camera
from nora_core.observation import ObservationBuffer
from nora_core.ros import convert
from nora_core.ros.managed_node import ManagedNode, load_embodiment, parameter, run
from nora_core.types import ActionChunk, GoalError, Observation, Outcome
from nora_policy.cpu_threads import default_threads
from nora_policy.goal import Ending, Goal, goal_problem
from nora_policy.inference import InferenceStats, InferenceWorker
from nora_policy.policy import Policy

LATEST_IMAGE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
GOAL_CHECK_S = 0.1
DIAGNOSTICS_PERIOD_S = 1.0


class PolicyNode(ManagedNode):
    """Answers new images with chunks while there is an instruction; the newest images win.

    Images of several cameras are answered together: when the oldest of them is newer than the
    oldest of those answered before.
    """

    def __init__(self) -> None:
        super().__init__("policy")
        self.embodiment = load_embodiment(self)
        self.checkpoint = parameter(self, "checkpoint", "", "Checkpoint folder (required).")
        self.device = parameter(self, "device", "auto", "auto, cpu or cuda.")
        self.head = parameter(self, "head", "auto", "flow, fast, or auto: the embodiment's.")
        self.seed = parameter(self, "seed", -1, "Seed of the sampling noise; negative: random.")
        self.cpu_threads = parameter(
            self, "cpu_threads", default_threads(), "Threads of inference on the CPU."
        )
        self.instruction = ""
        self.goal: Goal | None = None
        self.goal_handle: ServerGoalHandle | None = None
        self.goal_done = Future()
        self.submitted_ns: int | None = None  # stamp of the newest observation that was answered
        self.bad_images = 0
        self.stats = InferenceStats()
        self.worker: InferenceWorker | None = None

    # lifecycle

    def configure(self) -> None:
        torch.set_num_threads(self.cpu_threads)
        threadpool_limits(self.cpu_threads)  # of numpy, which resizes
        if not self.checkpoint:
            raise ValueError("parameter checkpoint: expected a checkpoint folder, got none")
        seed = None if self.seed < 0 else self.seed
        head = None if self.head == "auto" else self.head
        self.policy = Policy.load(Path(self.checkpoint), self.embodiment, self.device, seed, head)
        self.policy.warm_up()
        self.buffer = ObservationBuffer(self.embodiment.cameras)
        self.chunk_publisher = self.create_publisher(ActionChunkMsg, "policy/action_chunk", 1)
        self.diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.inputs = [
            *(self._subscribe_camera(camera) for camera in self.embodiment.cameras),
            # Volatile: matches every publisher, so that a stop always arrives, and an instruction
            # latched before this node was up moves nothing.
            self.create_subscription(String, "instruction", self._on_instruction, 1),
            self.create_subscription(TaskOutcome, "task_outcome", self._on_outcome, 1),
        ]
        self.action_server = ActionServer(
            self,
            ExecuteInstruction,
            "execute_instruction",
            self._execute,
            goal_callback=lambda _: GoalResponse.ACCEPT,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )
        self.periodic = (
            self.create_timer(GOAL_CHECK_S, self._check_goal),
            self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics),
        )

    def activate(self) -> None:
        if self.worker is not None and self.worker.is_running:
            raise ValueError("the last inference is still running; try again when it has ended")
        self.worker = InferenceWorker(
            self.policy.infer, self._publish_chunk, self._on_failure, self._on_crash
        )
        self.get_logger().info(
            f"ready: {self.policy.name}, {self.policy.head} head, on {self.policy.device}"
        )

    def deactivate(self) -> None:
        self._end_goal(Ending(GoalError.NOT_ACTIVE, "the policy node was deactivated"))
        self.instruction = ""
        if self.worker is not None and not self.worker.stop():
            self.get_logger().warning("the last inference is still running; its chunk is dropped")

    def cleanup(self) -> None:
        self.action_server.destroy()
        for timer in self.periodic:
            self.destroy_timer(timer)
        for subscription in self.inputs:
            self.destroy_subscription(subscription)
        for publisher in (self.chunk_publisher, self.diagnostics):
            self.destroy_publisher(publisher)

    # data chain

    def _subscribe_camera(self, camera: Camera) -> Subscription:
        def on_image(msg: Image) -> None:
            self._on_image(camera, msg)

        return self.create_subscription(Image, camera.topic, on_image, LATEST_IMAGE)

    def _on_image(self, camera: Camera, msg: Image) -> None:
        try:
            frame = convert.frame_from_msg(msg, camera.encoding)
        except ValueError as error:
            self.bad_images += 1
            self.get_logger().error(f"{camera.topic}: {error}", throttle_duration_sec=2.0)
            return
        now_ns = self._now_ns()
        if not self.is_active or not self.buffer.put(camera.name, frame, now_ns):
            return
        observation = self.buffer.snapshot(now_ns, self.instruction)
        if not isinstance(observation, Observation):
            return  # diagnostics and goals say why
        if self.goal is not None:
            self.goal.on_image(now_ns)
        if self.worker is None or self._was_submitted(observation, now_ns):
            return
        self.submitted_ns = observation.stamp_ns
        if not self.worker.submit(observation):
            self.stats.dropped += 1

    def _was_submitted(self, observation: Observation, now_ns: int) -> bool:
        """Before another camera brought a newer image; not if the clock was set back since."""
        newest_ns = self.submitted_ns
        return newest_ns is not None and observation.stamp_ns <= newest_ns <= now_ns

    def _publish_chunk(self, chunk: ActionChunk, inference_s: float) -> None:
        if chunk.instruction != self.instruction:
            return  # it was changed or withdrawn while the model was thinking
        msg = convert.chunk_to_msg(chunk, inference_s)
        now_ns = self._now_ns()
        self.chunk_publisher.publish(msg)
        age_s = (now_ns - chunk.stamp_ns) * 1e-9
        self.stats.record(inference_s, age_s, chunk.num_tokens, now_ns)

    def _on_failure(self, error: Exception) -> None:
        self.stats.failures += 1
        self.get_logger().error(f"inference: {error}", throttle_duration_sec=2.0)
        if (goal := self.goal) is not None:
            goal.on_failure(str(error))

    def _on_crash(self, error: Exception) -> None:
        self.fail(f"inference thread ended: {error!r}")

    # instruction and goal

    def _set_instruction(self, instruction: str) -> None:
        if instruction != self.instruction:
            self.get_logger().info(f"instruction: {instruction!r}")
        self.instruction = instruction
        if self.worker is not None:
            self.worker.clear()

    def _on_instruction(self, msg: String) -> None:
        if not self.is_active:
            self.get_logger().warning("instruction ignored: the node is not active")
            return
        self._end_goal(Ending(GoalError.PREEMPTED, "replaced by a message on instruction"))
        self._set_instruction(msg.data.strip())

    async def _execute(self, handle: ServerGoalHandle) -> ExecuteInstruction.Result:
        request = handle.request
        if not self.is_active:
            return _finish(handle, Ending(GoalError.NOT_ACTIVE, "the policy node is not active"))
        if problem := goal_problem(request.instruction, request.timeout):
            return _finish(handle, Ending(GoalError.INVALID_GOAL, problem))
        self._end_goal(Ending(GoalError.PREEMPTED, f"replaced by {request.instruction!r}"))
        self.goal = Goal(request.instruction.strip(), request.timeout, self._now_ns())
        self.goal_handle, done = handle, Future()
        self.goal_done, self.goal_first_chunk = done, self.stats.chunks
        self._set_instruction(self.goal.instruction)
        return _finish(handle, await done)

    def _end_goal(self, ending: Ending) -> None:
        """Stop following the goal's instruction; `_execute` wakes up and answers the client."""
        if self.goal is None:
            return
        self.goal = self.goal_handle = None
        self._set_instruction("")
        self.goal_done.set_result(ending)

    def _check_goal(self) -> None:
        if self.goal is None or self.goal_handle is None:
            return
        now_ns = self._now_ns()
        missing = self.buffer.snapshot(now_ns, self.goal.instruction)
        if self.goal_handle.is_cancel_requested:
            ending = Ending(GoalError.CANCELLED, "cancelled by the client", self.goal.outcome)
            self._end_goal(ending)
        elif found := self.goal.ending(now_ns, missing if isinstance(missing, str) else ""):
            self._end_goal(found)
        else:
            self.goal_handle.publish_feedback(
                ExecuteInstruction.Feedback(
                    chunks=self.stats.chunks - self.goal_first_chunk,
                    observation_age=self.stats.last_observation_age_s,
                    latency=self.stats.last_inference_s,
                )
            )

    def _on_outcome(self, msg: TaskOutcome) -> None:
        try:
            outcome = Outcome(msg.outcome)
        except ValueError as error:
            self.get_logger().error(f"task_outcome: {error}", throttle_duration_sec=2.0)
            return
        if self.goal is not None:
            self.goal.on_outcome(msg.instruction, outcome, convert.to_ns(msg.header.stamp))

    # state

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _publish_diagnostics(self) -> None:
        now_ns = self._now_ns()
        values = {
            "checkpoint": self.policy.name,
            "device": str(self.policy.device),
            "head": self.policy.head,
            "instruction": self.instruction,
            **dataclasses.asdict(self.stats.summary(now_ns)),
            "bad_images": self.bad_images,
        }
        level, message = self._health(now_ns)
        status = DiagnosticStatus(
            level=level,
            name="nora/policy",
            hardware_id=self.embodiment.name,
            message=message,
            values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()],
        )
        header = convert.header(now_ns, "")
        self.diagnostics.publish(DiagnosticArray(header=header, status=[status]))

    def _health(self, now_ns: int) -> tuple[bytes, str]:
        if not self.is_active:
            return DiagnosticStatus.WARN, "not active"
        if not self.instruction:
            return DiagnosticStatus.OK, "waiting for an instruction"
        problem = self.buffer.snapshot(now_ns, self.instruction)
        if isinstance(problem, str):
            return DiagnosticStatus.ERROR, problem
        return DiagnosticStatus.OK, "running"


def _finish(handle: ServerGoalHandle, ending: Ending) -> ExecuteInstruction.Result:
    """Put the goal into its final state; succeeded means that the task was judged done."""
    if ending.error == GoalError.NONE:
        handle.succeed()
    elif ending.error == GoalError.CANCELLED:
        handle.canceled()
    else:
        handle.abort()
    return ExecuteInstruction.Result(
        error_code=int(ending.error), error_msg=ending.message, outcome=int(ending.outcome)
    )


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Entry point of `ros2 run nora_policy policy`."""
    run(PolicyNode)


if __name__ == "__main__":
    main()
