"""The arm bridge node: chunks in, safe joint targets out, 50 times a second."""

from __future__ import annotations

import time
from dataclasses import replace

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from nora_msgs.msg import ActionChunk, CommandStatus, EndEffectorDelta
from nora_msgs.srv import SetMode
from std_srvs.srv import Trigger

from nora_bringup.drivers.sim import make_driver
from nora_core.control.controller import CONTROL_PERIOD_S, ArmController
from nora_core.control.kinematics import MinkKinematics
from nora_core.control.loop_monitor import LoopMonitor
from nora_core.control.safety_gate import SafeTarget
from nora_core.control.status import Mode, ModeError, Status
from nora_core.ros import convert
from nora_core.ros.managed_node import ManagedNode, load_embodiment, run
from nora_core.types import ArmState, Reason, Rejection

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
        self.driver = make_driver(
            self, self.embodiment, on_state=self._on_state, on_problem=self._on_problem
        )
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
        self.published_ns, self.activated_ns = 0, self._now_ns()
        self.was_wrong = False
        self.monitor = LoopMonitor(CONTROL_PERIOD_S)
        self.loop_timers = (
            self.create_timer(CONTROL_PERIOD_S, self._tick),
            self.create_timer(DIAGNOSTICS_PERIOD_S, self._publish_diagnostics),
        )
        self.get_logger().info(f"ready: {self.embodiment.name}, mode HOLD")

    def deactivate(self) -> None:
        for timer in self.loop_timers:
            self.destroy_timer(timer)
        now_ns, hold = self._now_ns(), Rejection(Reason.MODE_HOLD, INACTIVE)
        last = replace(
            self.controller.status, mode=Mode.HOLD, hold=hold, observation_stamp_ns=None
        )
        self.status.publish(convert.status_to_msg(last, now_ns, self.frame))

    def cleanup(self) -> None:
        self.driver.close()
        self.destroy_subscription(self.chunks)
        for service in self.requests:
            self.destroy_service(service)
        for publisher in (self.command, self.target_pose, self.ee_pose, self.status):
            self.destroy_publisher(publisher)
        self.destroy_publisher(self.diagnostics)

    def _new_controller(self) -> ArmController:
        """A controller without measurements or counts; an e-stop stays latched in it."""
        path = self.get_parameter("embodiment_file").value
        try:
            if self.embodiment.arm is None:
                raise ValueError("arm: the kinematic model is missing")
            self.kinematics = MinkKinematics(self.embodiment.arm)
            controller = ArmController(self.embodiment, self.kinematics, CONTROL_PERIOD_S)
            if self.embodiment.driver is None:
                raise ValueError("driver: kind and topics are missing")
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
        self.controller.refuse(Rejection(Reason.WRONG_SHAPE, problem))

    def _on_chunk(self, msg: ActionChunk) -> None:
        if not self.is_active:
            return
        try:
            chunk = convert.chunk_from_msg(msg)
        except ValueError as error:
            self.controller.refuse_chunk(Rejection(Reason.WRONG_SHAPE, str(error)))
        else:
            self.controller.on_chunk(chunk, self._now_ns())

    def _set_mode(self, request: SetMode.Request, response: SetMode.Response) -> SetMode.Response:
        rejection: Rejection[ModeError] | None = Rejection(ModeError.NOT_ACTIVE, INACTIVE)
        if self.is_active:
            rejection = self.controller.set_mode(request.mode, self._now_ns())
        response.error_code = int(rejection.reason if rejection else ModeError.NONE)
        response.error_msg = rejection.detail if rejection else ""
        return response

    def _home(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.message = INACTIVE
        if self.is_active:
            rejection = self.controller.home(self._now_ns())
            response.success = rejection is None
            response.message = rejection.detail if rejection else ""
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
            self.command.publish(convert.executed_to_msg(executed, self.frame))
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
        self._log_hold(status, now_ns)
        self.status.publish(convert.status_to_msg(status, now_ns, self.frame))
        self.published, self.published_ns = comparable, now_ns

    def _log_hold(self, status: Status, now_ns: int) -> None:
        """Warn when the arm begins to hold for a reason that somebody should look at."""
        is_wrong = status.is_wrong(self._active_s(now_ns))
        is_new = self.published is None or _reason(status) is not _reason(self.published)
        if status.hold is not None and is_wrong and (is_new or not self.was_wrong):
            self.get_logger().warning(
                f"holding: {status.hold.detail}", throttle_duration_sec=WARN_PERIOD_S
            )
        self.was_wrong = is_wrong

    def _publish_diagnostics(self) -> None:
        """Publish health, mode, loop times and every rule that ever refused something."""
        now_ns, status = self._now_ns(), self.controller.status
        is_wrong = status.is_wrong(self._active_s(now_ns))
        level = DiagnosticStatus.WARN if is_wrong else DiagnosticStatus.OK
        refused = {
            f"refused {reason.name}": f"{count}, last: {detail}"
            for reason, (count, detail) in sorted(self.controller.rejections.items())
        }
        self.diagnostics.publish(
            convert.diagnostics_to_msg(
                name="nora/bridge",
                hardware_id=self.embodiment.name,
                level=DiagnosticStatus.ERROR if status.is_estopped else level,
                message=status.hold.detail if status.hold else "moving",
                values={
                    "mode": status.mode.name,
                    **self.monitor.summary(),
                    "observation age (s)": status.observation_age_s(now_ns),
                    **refused,
                },
                now_ns=now_ns,
            )
        )

    def _active_s(self, now_ns: int) -> float:
        return (now_ns - self.activated_ns) * 1e-9

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def _reason(status: Status) -> Reason | None:
    return status.hold.reason if status.hold else None


def main() -> None:
    """Entry point of `ros2 run nora_bringup bridge`."""
    run(BridgeNode)


if __name__ == "__main__":
    main()
