"""Policy node: camera images and an instruction in, chunks of end-effector deltas out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from nora_msgs.action import ExecuteInstruction
from nora_msgs.msg import ActionChunk as ActionChunkMsg
from nora_msgs.msg import TaskOutcome
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.subscription import Subscription
from rclpy.task import Future
from sensor_msgs.msg import Image
from std_msgs.msg import String
from threadpoolctl import threadpool_limits

from nora_core.embodiment import Camera
from nora_core.observation import NoObservation
from nora_core.ros import convert
from nora_core.ros.managed_node import ManagedNode, load_embodiment, parameter, run
from nora_core.ros.qos import NEWEST
from nora_core.types import ActionChunk, GoalError, Outcome
from nora_policy.cpu_threads import default_threads
from nora_policy.inference import InferenceWorker
from nora_policy.policy import Policy
from nora_policy.session import Ending, PolicySession

GOAL_CHECK_S = 0.1
DIAGNOSTICS_PERIOD_S = 1.0
DEVICES, HEADS = ("auto", "cpu", "cuda"), ("auto", "flow", "fast")


class PolicyNode(ManagedNode):
    """Answers new images with chunks while there is an instruction; `PolicySession` decides."""

    def __init__(self) -> None:
        super().__init__("policy")
        self.embodiment = load_embodiment(self)
        self.checkpoint = parameter(self, "checkpoint", "", "Checkpoint folder (required).")
        self.device = parameter(
            self, "device", "auto", "Where inference runs: auto, cpu or cuda.", choices=DEVICES
        )
        self.head = parameter(
            self, "head", "auto", "Head: flow, fast, or auto (the embodiment's).", choices=HEADS
        )
        self.seed = parameter(self, "seed", -1, "Seed of the sampling noise; negative: random.")
        self.cpu_threads = parameter(
            self, "cpu_threads", default_threads(), "Threads of inference on the CPU."
        )
        self.goal_handle: ServerGoalHandle | None = None
        self.goal_done = Future()
        self.logged_instruction = ""
        self.bad_images = 0
        self.worker: InferenceWorker | None = None

    # lifecycle

    def configure(self) -> None:
        torch.set_num_threads(self.cpu_threads)
        threadpool_limits(self.cpu_threads)  # numpy resizes the images
        if not self.checkpoint:
            raise ValueError("parameter checkpoint: the checkpoint folder is missing")
        seed = None if self.seed < 0 else self.seed
        head = None if self.head == "auto" else self.head
        self.policy = Policy.load(
            Path(self.checkpoint), self.embodiment, self.device, seed=seed, head=head
        )
        self.policy.warm_up()
        self.session = PolicySession(self.embodiment.cameras)
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
            infer=self.policy.infer,
            on_chunk=self._publish_chunk,
            on_failure=self._on_failure,
            on_crash=self._on_crash,
        )
        self.get_logger().info(
            f"ready: {self.policy.name}, {self.policy.head} head, on {self.policy.device}"
        )

    def deactivate(self) -> None:
        self._end_goal(Ending(GoalError.NOT_ACTIVE, "the policy node was deactivated"))
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

        return self.create_subscription(Image, camera.topic, on_image, NEWEST)

    def _on_image(self, camera: Camera, msg: Image) -> None:
        try:
            frame = convert.frame_from_msg(msg, camera.encoding)
        except ValueError as error:
            self.bad_images += 1
            self.get_logger().error(f"{camera.topic}: {error}", throttle_duration_sec=2.0)
            return
        if not self.is_active or self.worker is None:
            return
        observation = self.session.on_image(camera.name, frame, self._now_ns())
        if observation is not None and not self.worker.submit(observation):
            self.session.stats.dropped += 1

    def _publish_chunk(self, chunk: ActionChunk, inference_s: float) -> None:
        if not self.session.is_wanted(chunk):
            return
        msg = convert.chunk_to_msg(chunk, inference_s)
        now_ns = self._now_ns()
        self.chunk_publisher.publish(msg)
        age_s = (now_ns - chunk.stamp_ns) * 1e-9
        self.session.stats.record(
            inference_s=inference_s,
            observation_age_s=age_s,
            num_tokens=chunk.num_tokens,
            now_ns=now_ns,
        )

    def _on_failure(self, error: Exception) -> None:
        self.get_logger().error(f"inference: {error}", throttle_duration_sec=2.0)
        self.session.on_failure(str(error))

    def _on_crash(self, error: Exception) -> None:
        self.fail(f"inference thread ended: {error!r}")

    # instruction and goal

    def _on_instruction(self, msg: String) -> None:
        if not self.is_active:
            self.get_logger().warning("instruction ignored: the node is not active")
            return
        self._begin(self.session.instruct(msg.data))

    async def _execute(self, handle: ServerGoalHandle) -> ExecuteInstruction.Result:
        request = handle.request
        if not self.is_active:
            return _finish(handle, Ending(GoalError.NOT_ACTIVE, "the policy node is not active"))
        if rejection := self.session.problem(request.instruction, request.timeout):
            return _finish(handle, Ending(rejection.reason, rejection.detail))
        self._begin(self.session.begin(request.instruction, request.timeout, self._now_ns()))
        self.goal_handle, self.goal_done = handle, Future()
        return _finish(handle, await self.goal_done)

    def _begin(self, preempted: Ending | None) -> None:
        """Answer the client of the goal before, and turn to the new instruction."""
        self._answer(preempted)
        self._on_new_instruction()

    def _on_new_instruction(self) -> None:
        """Forget the observation that waits for the model, and log a change."""
        if self.worker is not None:
            self.worker.clear()
        if self.session.instruction != self.logged_instruction:
            self.get_logger().info(f"instruction: {self.session.instruction!r}")
        self.logged_instruction = self.session.instruction

    def _end_goal(self, ending: Ending) -> None:
        """Stop following instructions; the goal, if there is one, ends like this."""
        had_goal = self.session.has_goal
        self.session.end()
        self._on_new_instruction()
        self._answer(ending if had_goal else None)

    def _answer(self, ending: Ending | None) -> None:
        """Wake `_execute`, which answers the client."""
        if ending is not None:
            self.goal_handle = None
            self.goal_done.set_result(ending)

    def _check_goal(self) -> None:
        if self.goal_handle is None:
            return
        is_cancelled = self.goal_handle.is_cancel_requested
        ending = self.session.cancelled() if is_cancelled else self.session.ending(self._now_ns())
        if ending is not None:
            self._end_goal(ending)
            return
        feedback = self.session.feedback
        self.goal_handle.publish_feedback(
            ExecuteInstruction.Feedback(
                chunks=feedback.chunks,
                observation_age=feedback.observation_age_s,
                latency=feedback.inference_s,
            )
        )

    def _on_outcome(self, msg: TaskOutcome) -> None:
        try:
            outcome = Outcome(msg.outcome)
        except ValueError as error:
            self.get_logger().error(f"task_outcome: {error}", throttle_duration_sec=2.0)
            return
        self.session.on_outcome(msg.instruction, outcome, convert.to_ns(msg.header.stamp))

    # state

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _publish_diagnostics(self) -> None:
        now_ns = self._now_ns()
        level, message = self._health(now_ns)
        self.diagnostics.publish(
            convert.diagnostics_to_msg(
                name="nora/policy",
                hardware_id=self.embodiment.name,
                level=level,
                message=message,
                values={
                    "checkpoint": self.policy.name,
                    "device": self.policy.device,
                    "head": self.policy.head,
                    "instruction": self.session.instruction,
                    **dataclasses.asdict(self.session.stats.summary(now_ns)),
                    "bad_images": self.bad_images,
                },
                now_ns=now_ns,
            )
        )

    def _health(self, now_ns: int) -> tuple[bytes, str]:
        if not self.is_active:
            return DiagnosticStatus.WARN, "not active"
        rejection = self.session.no_observation(now_ns)
        if rejection is None:
            return DiagnosticStatus.OK, "running"
        if rejection.reason is NoObservation.NO_INSTRUCTION:
            return DiagnosticStatus.OK, "waiting for an instruction"
        return DiagnosticStatus.ERROR, rejection.detail


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


def main() -> None:
    """Entry point of `ros2 run nora_policy policy`."""
    run(PolicyNode)


if __name__ == "__main__":
    main()
