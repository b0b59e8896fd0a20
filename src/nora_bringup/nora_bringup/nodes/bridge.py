"""The arm bridge node: chunks in, safe joint targets out, 50 times a second."""

from __future__ import annotations

import time
from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from nora_msgs.msg import ActionChunk, CommandStatus, EndEffectorDelta
from nora_msgs.srv import SetMode
from std_srvs.srv import Trigger

from nora_bringup.drivers.sim import make_driver
from nora_bringup.nodes import bridge_messages
from nora_core.control.controller import CONTROL_PERIOD_S, ArmController
from nora_core.control.kinematics import MinkKinematics
from nora_core.control.loop_monitor import LoopMonitor
from nora_core.control.safety_gate import Reason, Refusal, SafeTarget
from nora_core.control.status import ModeError, Status
from nora_core.ros import convert
from nora_core.ros.managed_node import ManagedNode, load_embodiment, run
from nora_core.types import ArmState

STATUS_PERIOD_NS = 200_000_000
DIAGNOSTICS_PERIOD_S = 1.0
WARN_PERIOD_S = 2.0
INACTIVE = "the bridge is not active"


class BridgeNode(ManagedNode):
    """One process between the policy and the arm; decides nothing, `ArmController` does."""

    def __init__(self) -> None:
        super().__init__("bridge")
        self.is_estopped = False  # outlives the controller, which is new with every activation
        self.embodiment = load_embodiment(self)
        self.frame = self.embodiment.action.frame

    # lifecycle

    def configure(self) -> None:
        self.controller = self._new_controller()
        self.driver = make_driver(self, self.embodiment, self._on_state, self._on_problem)
        self.command = self.create_publisher(EndEffectorDelta, "bridge/command", 10)
        self.target_pose = self.create_publisher(PoseStamped, "bridge/target_pose", 10)
        self.ee_pose = self.create_publisher(PoseStamped, "bridge/ee_pose", 10)
        self.status = self.create_publisher(CommandStatus, "bridge/status", 10)
        self.diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.chunks = self.create_subscription(
            ActionChunk, "policy/action_chunk", self._on_chunk, 1
        )
        self.requests = (
            self.create_service(SetMode, "bridge/set_mode", self._set_mode),
            self.create_service(Trigger, "bridge/home", self._home),
            self.create_service(Trigger, "bridge/estop", self._estop),
            self.create_service(Trigger, "bridge/reset_estop", self._reset_estop),
        )

    def activate(self) -> None:
        self.controller = self._new_controller()
        self.published: Status | None = None
        self.published_ns = 0
        self.monitor = LoopMonitor(CONTROL_PERIOD_S)
        self.loop_timers = (
            self.create_timer(CONTROL_PERIOD_S, self._tick),
            self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics),
        )
        self.get_logger().info(f"ready: {self.embodiment.name}, mode HOLD")

    def deactivate(self) -> None:
        for timer in self.loop_timers:
            self.destroy_timer(timer)

    def cleanup(self) -> None:
        self.driver.close()
        self.destroy_subscription(self.chunks)
        for service in self.requests:
            self.destroy_service(service)
        for publisher in (self.command, self.target_pose, self.ee_pose, self.status):
            self.destroy_publisher(publisher)
        self.destroy_publisher(self.diagnostics)

    def _new_controller(self) -> ArmController:
        """Knows nothing yet, counts from zero; but an e-stop stays latched."""
        path = self.get_parameter("embodiment_file").value
        try:
            if self.embodiment.arm is None:
                raise ValueError("arm: expected a kinematic model, got none")
            self.kinematics = MinkKinematics(self.embodiment.arm)
            controller = ArmController(self.embodiment, self.kinematics, CONTROL_PERIOD_S)
            if self.embodiment.driver is None:
                raise ValueError("driver: expected kind and topics, got none")
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{path}: {error}; the arm will not move") from error
        if self.is_estopped:
            controller.estop()
        return controller

    # inputs

    def _on_state(self, state: ArmState) -> None:
        if self.is_active:
            self.controller.on_state(state)

    def _on_problem(self, problem: str) -> None:
        self.get_logger().error(problem, throttle_duration_sec=WARN_PERIOD_S)
        self.controller.refuse(Refusal(Reason.WRONG_SHAPE, problem))

    def _on_chunk(self, msg: ActionChunk) -> None:
        if not self.is_active:
            return
        try:
            chunk = convert.chunk_from_msg(msg)
        except ValueError as error:
            self.controller.refuse_chunk(Refusal(Reason.WRONG_SHAPE, str(error)))
        else:
            self.controller.on_chunk(chunk, self._now_ns())

    def _set_mode(self, request: SetMode.Request, response: SetMode.Response) -> SetMode.Response:
        error, response.error_msg = ModeError.NOT_ACTIVE, INACTIVE
        if self.is_active:
            error, response.error_msg = self.controller.set_mode(request.mode, self._now_ns())
        response.error_code = int(error)
        return response

    def _home(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.message = INACTIVE
        if self.is_active:
            refusal = self.controller.home(self._now_ns())
            response.success = refusal is None
            response.message = refusal.detail if refusal else ""
        return response

    def _estop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.is_estopped = True
        self.controller.estop()
        self.get_logger().warning("e-stop")
        response.success = True
        return response

    def _reset_estop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self.is_estopped = False
        self.controller.reset_estop()
        self.get_logger().info("e-stop reset, mode HOLD")
        response.success = True
        return response

    # outputs

    def _tick(self) -> None:
        start_ns = time.monotonic_ns()
        now_ns = self._now_ns()
        target = self.controller.tick(now_ns)
        if target is not None:
            self.driver.send(target)
            self._publish_poses(target)
        if executed := self.controller.executed:
            self.command.publish(bridge_messages.command_to_msg(executed, self.frame))
        self._publish_status(now_ns)
        self.monitor.record(now_ns, time.monotonic_ns() - start_ns)

    def _publish_poses(self, target: SafeTarget) -> None:
        self.target_pose.publish(convert.pose_to_msg(target.pose, target.stamp_ns, self.frame))
        if (state := self.controller.state) is not None:
            pose = self.kinematics.forward(state.joints_rad)
            self.ee_pose.publish(convert.pose_to_msg(pose, state.stamp_ns, self.frame))

    def _publish_status(self, now_ns: int) -> None:
        status = self.controller.status
        comparable = replace(status, observation_stamp_ns=None)
        age_ns = now_ns - self.published_ns
        if comparable == self.published and 0 <= age_ns < STATUS_PERIOD_NS:
            return
        if self.published is None or status.hold.reason is not self.published.hold.reason:
            self._log_hold(status.hold)
        self.status.publish(bridge_messages.status_to_msg(status, now_ns, self.frame))
        self.published, self.published_ns = comparable, now_ns

    def _log_hold(self, hold: Refusal) -> None:
        if hold.reason not in bridge_messages.CALM:
            self.get_logger().warning(
                f"holding: {hold.detail}", throttle_duration_sec=WARN_PERIOD_S
            )

    def _publish_diagnostics(self) -> None:
        now_ns = self._now_ns()
        status = self.controller.status
        values = self.monitor.summary()
        values["observation age (s)"] = bridge_messages.observation_age_s(status, now_ns)
        health = bridge_messages.diagnostic(
            "nora/bridge", status, self.controller.refusals, values
        )
        health.hardware_id = self.embodiment.name
        self.diagnostics.publish(
            DiagnosticArray(header=convert.header(now_ns, ""), status=[health])
        )

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def main() -> None:
    """Entry point of `ros2 run nora_bringup bridge`."""
    run(BridgeNode)


if __name__ == "__main__":
    main()
