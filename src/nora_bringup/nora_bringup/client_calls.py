"""The calls behind the client commands of `nora`: services, the action, status topics.

Exit codes: 0 done, 1 refused by a node (its message is printed), 2 bad input or no answer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nora_bringup.clients import (
    Command,
    Estop,
    Home,
    Mode,
    Recording,
    Reset,
    Say,
    Start,
    Status,
    Stop,
)

if TYPE_CHECKING:
    from rclpy.node import Node
    from rclpy.task import Future

DONE, REFUSED, NO_ANSWER = 0, 1, 2
POLL_S = 0.02
SILENCE_S = 5.0
STATUS_PERIOD_S = 1.0


def run_client(command: Command | Recording) -> int:
    """Run one command; its exit code.

    Raises:
        ValueError: bad input, before anything is sent.
    """
    if isinstance(command, Recording):
        command = command.command
    _require_sensible(command)
    from nora_bringup.client_node import client_node  # rclpy only when it is needed

    with client_node("cli") as node:
        try:
            return _Client(node).run(command)
        except TimeoutError as error:
            print(f"error: {error}", file=sys.stderr)
            return NO_ANSWER


def _require_sensible(command: Command) -> None:
    if not command.timeout > 0:
        raise ValueError(f"timeout: expected more than 0, got {command.timeout}")
    if isinstance(command, Say | Home) and not command.seconds > 0:
        raise ValueError(f"seconds: expected more than 0, got {command.seconds}")
    if isinstance(command, Say) and not (command.text.strip() or command.topic):
        raise ValueError("text: the instruction is empty; with --topic, that stops the policy")
    if isinstance(command, Start) and not command.instruction.strip():
        raise ValueError("instruction: it is empty")
    if isinstance(command, Stop) and command.distractor_grasps < 0:
        raise ValueError(f"distractor-grasps: expected 0 or more, got {command.distractor_grasps}")


class _Client:
    """Calls services and the action with a node that is spun elsewhere."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def run(self, command: Command) -> int:
        from nora_msgs.srv import EndEpisode, SetMode, StartEpisode

        from nora_core.types import Outcome

        match command:
            case Say(topic=True):
                return self._publish(command)
            case Say():
                return self._say(command)
            case Mode():
                mode = {"hold": SetMode.Request.HOLD, "policy": SetMode.Request.POLICY}
                request = SetMode.Request(mode=mode[command.mode])
                return self._call("bridge/set_mode", SetMode, request, command.timeout)
            case Home():
                return self._home(command)
            case Estop():
                return self._trigger("bridge/estop", command.timeout)
            case Reset():
                return self._trigger("bridge/reset_estop", command.timeout)
            case Start():
                start = StartEpisode.Request(instruction=command.instruction, notes=command.notes)
                name = "recorder/start_episode"
                return self._call(name, StartEpisode, start, command.timeout)
            case Stop():
                end = EndEpisode.Request(
                    outcome=int(Outcome[command.outcome.upper()]),
                    distractor_grasps=command.distractor_grasps,
                    notes=command.notes,
                    discard=command.discard,
                )
                return self._call("recorder/end_episode", EndEpisode, end, command.timeout)
            case Status():
                return self._status(command)

    def _trigger(self, name: str, timeout_s: float) -> int:
        from std_srvs.srv import Trigger

        return self._call(name, Trigger, Trigger.Request(), timeout_s)

    def _call(self, name: str, kind: Any, request: Any, timeout_s: float) -> int:
        client = self._node.create_client(kind, name)
        end_s = time.monotonic() + timeout_s
        _wait(client.service_is_ready, end_s, f"no node offers {name}; is `nora up` running?")
        answer = self._answer(client.call_async(request), end_s, name)
        is_refused = not answer.success if hasattr(answer, "success") else answer.error_code
        message = getattr(answer, "error_msg", getattr(answer, "message", ""))
        if is_refused:
            return _refused(message)
        print(f"done: {_said(answer) or name}")
        return DONE

    def _answer(self, future: Future, end_s: float, name: str) -> Any:
        _wait(future.done, end_s, f"{name} did not answer in time")
        return future.result()

    def _publish(self, command: Say) -> int:
        from std_msgs.msg import String

        publisher = self._node.create_publisher(String, "instruction", 1)
        end_s = time.monotonic() + command.timeout
        text = "nobody listens to the topic instruction; is the policy node running?"
        _wait(lambda: publisher.get_subscription_count() > 0, end_s, text)
        publisher.publish(String(data=command.text))
        publisher.wait_for_all_acked()
        print(f"done: sent {command.text!r}")
        return DONE

    def _say(self, command: Say) -> int:
        from nora_msgs.action import ExecuteInstruction
        from rclpy.action import ActionClient

        from nora_core.types import GoalError, Outcome

        heard_s = [time.monotonic()]
        is_shown = sys.stdout.isatty()

        def hear(message: Any) -> None:
            heard_s[-1] = time.monotonic()
            now = message.feedback
            line = f"{now.chunks} chunks, images {now.observation_age * 1e3:.0f} ms old"
            if is_shown:
                print(f"\r{line}, inference {now.latency * 1e3:.0f} ms  ", end="", flush=True)

        client = ActionClient(self._node, ExecuteInstruction, "execute_instruction")
        end_s = time.monotonic() + command.timeout
        _wait(client.server_is_ready, end_s, "no policy node is there; is `nora up` running?")
        goal = ExecuteInstruction.Goal(instruction=command.text, timeout=command.seconds)
        sent = client.send_goal_async(goal, feedback_callback=hear)
        handle = self._answer(sent, end_s, "execute_instruction")
        answered = handle.get_result_async()
        heard_s[-1] = time.monotonic()
        try:
            end_s = time.monotonic() + 10 * command.seconds + command.timeout
            _wait(_done_or_silent(answered, heard_s), end_s, "execute_instruction did not answer")
            answer = answered.result().result
        except KeyboardInterrupt:
            handle.cancel_goal_async()
            _wait(answered.done, time.monotonic() + command.timeout, "the policy did not cancel")
            raise
        if is_shown:
            print()
        error = GoalError(answer.error_code)
        if error is not GoalError.NONE:
            outcome = Outcome(answer.outcome).text
            return _refused(f"{error.name.lower()}: {answer.error_msg}; outcome {outcome}")
        print(f"done: {command.text}")
        return DONE

    def _home(self, command: Home) -> int:
        from nora_msgs.msg import CommandStatus

        statuses: list[CommandStatus] = []
        self._node.create_subscription(CommandStatus, "bridge/status", statuses.append, 10)
        _wait(
            lambda: bool(statuses),
            time.monotonic() + command.timeout,
            "the bridge sends no status; is `nora up` running?",
        )
        if code := self._trigger("bridge/home", command.timeout):
            return code
        is_homing = lambda: statuses[-1].mode == CommandStatus.MODE_HOMING  # noqa: E731
        seen = len(statuses)
        _wait(
            lambda: len(statuses) > seen and not is_homing(),
            time.monotonic() + command.seconds,
            f"the arm is not home after {command.seconds:g} s",
        )
        status = statuses[-1]
        return _refused(status.hold_detail) if status.estopped else DONE

    def _status(self, command: Status) -> int:
        from nora_msgs.msg import CommandStatus, RecorderStatus

        bridge: list[CommandStatus] = []
        recorder: list[RecorderStatus] = []
        self._node.create_subscription(CommandStatus, "bridge/status", bridge.append, 10)
        self._node.create_subscription(RecorderStatus, "recorder/status", recorder.append, 10)
        while True:
            text = "the bridge sends no status; is `nora up` running?"
            _wait(lambda: bool(bridge), time.monotonic() + command.timeout, text)
            if self._node.count_publishers("recorder/status"):
                end_s = time.monotonic() + command.timeout
                _wait(lambda: bool(recorder), end_s, "the recorder sends no status")
            print(_status_line(bridge[-1], recorder[-1] if recorder else None), flush=True)
            if not command.watch:
                return DONE
            bridge.clear()
            recorder.clear()
            time.sleep(STATUS_PERIOD_S)


def _status_line(bridge: Any, recorder: Any | None) -> str:
    modes = {bridge.MODE_HOLD: "hold", bridge.MODE_POLICY: "policy", bridge.MODE_HOMING: "homing"}
    parts = [f"mode {modes.get(bridge.mode, bridge.mode)}"]
    if bridge.estopped:
        parts.append("EMERGENCY STOP")
    parts.append("moving" if bridge.is_moving else f"holding: {bridge.hold_detail or 'no reason'}")
    parts.append(f"steps {bridge.steps_executed} (clamped {bridge.steps_clamped})")
    parts.append(f"refused {bridge.chunks_refused} chunks, {bridge.steps_refused} steps")
    if recorder is not None:
        is_on = recorder.is_recording
        parts.append(f"recording {recorder.path}" if is_on else "not recording")
        if recorder.problem:
            parts.append(f"recorder: {recorder.problem}")
    return " | ".join(parts)


def _said(answer: Any) -> str:
    """What an answer of the recorder adds."""
    if not hasattr(answer, "path"):
        return ""
    if not hasattr(answer, "is_green") or not answer.path:
        return str(answer.path)
    verdict = "green" if answer.is_green else f"red: {'; '.join(answer.audit.splitlines())}"
    return f"{answer.path}, audit {verdict}" if answer.is_green or answer.audit else answer.path


def _refused(message: str) -> int:
    print(f"refused: {message}", file=sys.stderr)
    return REFUSED


def _done_or_silent(answered: Future, heard_s: list[float]) -> Callable[[], bool]:
    """Whether the goal has its result; raises `RuntimeError` when feedback stops coming.

    The policy node sends feedback ten times per second of its clock while it follows a goal. A
    node that was killed stays in the ROS graph for many seconds; its feedback does not.
    """

    def check() -> bool:
        if time.monotonic() - heard_s[-1] > SILENCE_S:
            raise RuntimeError(
                f"the policy node says nothing for {SILENCE_S:g} s: it has ended or is stuck"
            )
        return bool(answered.done())

    return check


def _wait(is_done: Callable[[], bool], end_s: float, otherwise: str) -> None:
    """Raises `TimeoutError` with the text `otherwise`."""
    while not is_done():
        if time.monotonic() > end_s:
            raise TimeoutError(otherwise)
        time.sleep(POLL_S)
