"""The `sim` node: the simulator behind a robot's topics, in wall time or with its own /clock."""

from __future__ import annotations

import math
from dataclasses import dataclass

from geometry_msgs.msg import PoseArray
from nora_msgs.msg import TaskOutcome
from nora_msgs.srv import ResetSimulation
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import Image, JointState

from nora_core.embodiment import GRIPPER_JOINT, Embodiment
from nora_core.ros import convert
from nora_core.ros.managed_node import load_embodiment, parameter, run
from nora_core.ros.qos import NEWEST
from nora_core.sim.pacing import Pacer
from nora_core.sim.simulator import TICK_NS, Simulator

MAX_LAG_NS = 200_000_000
OUTCOME_RATE_HZ = 5
WARN_PERIOD_S = 5.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """State period, and every how many of them images and the outcome are published."""

    period_ns: int
    camera_every: int
    outcome_every: int

    @classmethod
    def from_rates(cls, state_rate_hz: int, camera_rate_hz: int) -> Schedule:
        ticks_per_s = convert.NS_PER_S // TICK_NS
        if state_rate_hz < 1 or ticks_per_s % state_rate_hz:
            raise ValueError(
                f"state_rate_hz: expected a divisor of {ticks_per_s}, got {state_rate_hz}"
            )
        if camera_rate_hz < 1 or state_rate_hz % camera_rate_hz:
            raise ValueError(
                f"camera_rate_hz: expected a divisor of state_rate_hz ({state_rate_hz}), "
                f"got {camera_rate_hz}"
            )
        return cls(
            convert.NS_PER_S // state_rate_hz,
            state_rate_hz // camera_rate_hz,
            max(1, state_rate_hz // OUTCOME_RATE_HZ),
        )


class SimNode(Node):
    """Publishes what a robot and its camera publish, obeys joint targets, judges the task."""

    def __init__(self) -> None:
        super().__init__("sim")
        self._embodiment = load_embodiment(self)
        seed = parameter(self, "seed", 0, "Seed of the object placement.")
        instruction = parameter(
            self, "instruction", "put the red cube on the plate", "The task judged until a reset."
        )
        height = parameter(self, "image_height", 256, "Image height, px.")
        width = parameter(self, "image_width", 256, "Image width, px.")
        camera_rate = parameter(self, "camera_rate_hz", 10, "Images per simulated second.")
        state_rate = parameter(self, "state_rate_hz", 50, "Joint states per simulated second.")
        self._owns_clock = parameter(
            self, "publish_clock", False, "Publish /clock from simulated time (else: wall time)."
        )
        factor = parameter(
            self, "real_time_factor", 1.0, "With publish_clock: speed; 0 is as fast as possible."
        )
        if not (math.isfinite(factor) and (factor >= 0 if self._owns_clock else factor == 1.0)):
            raise ValueError(
                f"real_time_factor: expected 1 in wall time, >= 0 with publish_clock, got {factor}"
            )
        self._schedule = Schedule.from_rates(state_rate, camera_rate)
        self._num_periods = 0
        _require_sim(self._embodiment)
        self._sim = Simulator(self._embodiment, (height, width))
        self._sim.reset(seed, instruction)
        for camera in self._embodiment.cameras:
            self._sim.render(camera.name)  # a wrong camera or missing OpenGL ends the node here
        self._connect()
        self._factor = factor
        self._pacer = Pacer(
            self._schedule.period_ns, factor, MAX_LAG_NS // self._schedule.period_ns
        )
        # Paced by a clock that nobody sets; at full speed every call advances one period.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        timer_s = self._schedule.period_ns / convert.NS_PER_S / factor if factor else 1e-4
        self.create_timer(timer_s, self._on_timer, clock=self._steady)

    def destroy_node(self) -> None:
        if hasattr(self, "_sim"):
            self._sim.close()
        super().destroy_node()

    def _connect(self) -> None:
        driver = self._embodiment.driver
        assert driver is not None
        self._images = [
            (camera.name, self.create_publisher(Image, camera.topic, NEWEST))
            for camera in self._embodiment.cameras
        ]
        self._states = self.create_publisher(JointState, driver.state_topic, 10)
        self._outcomes = self.create_publisher(TaskOutcome, "task_outcome", 10)
        self._poses = self.create_publisher(PoseArray, "sim/object_poses", 10)
        self._clock_pub = (
            self.create_publisher(ClockMsg, "/clock", 10) if self._owns_clock else None
        )
        self.create_subscription(JointState, driver.command_topic, self._on_command, 1)
        self.create_service(ResetSimulation, "sim/reset", self._on_reset)

    def _on_command(self, msg: JointState) -> None:
        try:
            self._sim.command_by_name(msg.name, msg.position)
        except ValueError as error:
            self.get_logger().error(str(error), throttle_duration_sec=WARN_PERIOD_S)

    def _on_reset(
        self, request: ResetSimulation.Request, response: ResetSimulation.Response
    ) -> ResetSimulation.Response:
        try:
            self._sim.reset(request.seed, request.instruction)
        except ValueError as error:
            response.error_code = ResetSimulation.Response.UNKNOWN_INSTRUCTION
            response.error_msg = str(error)
        return response

    def _on_timer(self) -> None:
        due, dropped = self._pacer.due(self._steady.now().nanoseconds) if self._factor else (1, 0)
        if dropped:
            lag_s = dropped * self._schedule.period_ns / convert.NS_PER_S
            self.get_logger().warning(
                f"slower than asked: dropped {lag_s:.2f} s",
                throttle_duration_sec=WARN_PERIOD_S,
            )
        for _ in range(due):
            self._advance()

    def _advance(self) -> None:
        self._sim.step(self._schedule.period_ns / convert.NS_PER_S)
        self._num_periods += 1
        if self._clock_pub is not None:
            self._clock_pub.publish(ClockMsg(clock=convert.to_time(self._sim.time_ns)))
        self._publish_state()
        if self._num_periods % self._schedule.outcome_every == 0:
            self._publish_outcome()
        if self._num_periods % self._schedule.camera_every == 0:
            self._publish_images()

    def _now_ns(self) -> int:
        return self._sim.time_ns if self._owns_clock else int(self.get_clock().now().nanoseconds)

    def _publish_state(self) -> None:
        state, names = self._sim.arm_state(), self._sim.joint_names
        finger = self._embodiment.gripper.to_driver(state.gripper)
        self._states.publish(
            convert.joints_to_msg(
                [*names, GRIPPER_JOINT],
                [*state.joints_rad.tolist(), finger],
                stamp_ns=self._now_ns(),
                frame_id=self._embodiment.action.frame,
            )
        )

    def _publish_images(self) -> None:
        stamp_ns = self._now_ns()  # the instant that all images show
        for camera, publisher in self._images:
            image_HW3 = self._sim.render(camera)
            publisher.publish(convert.image_to_msg(image_HW3, stamp_ns, camera))

    def _publish_outcome(self) -> None:
        header = convert.header(self._now_ns(), self._embodiment.action.frame)
        state = self._sim.task_state
        self._outcomes.publish(
            TaskOutcome(
                header=header,
                instruction=state.instruction,
                outcome=int(state.outcome),
                distractor_grasps=state.distractor,
            )
        )
        poses = [convert.pose_to_msg(pose, 0, "").pose for pose in self._sim.object_poses.values()]
        self._poses.publish(PoseArray(header=header, poses=poses))


def _require_sim(embodiment: Embodiment) -> None:
    kind = None if embodiment.driver is None else embodiment.driver.kind
    if kind != "sim":
        raise ValueError(f"driver.kind: expected sim, got {kind} ({embodiment.name})")
    for camera in embodiment.cameras:
        if camera.encoding != "rgb8":
            raise ValueError(
                f"cameras.{camera.name}.encoding: expected rgb8 in simulation, "
                f"got {camera.encoding}"
            )


def main() -> None:
    run(SimNode)


if __name__ == "__main__":
    main()
