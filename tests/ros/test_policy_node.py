"""The policy node as a process: images and instructions in, chunks out or a reason."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from action_msgs.msg import GoalStatus
from ament_index_python.packages import get_package_prefix
from conftest import wait_for
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nora_msgs.action import ExecuteInstruction
from nora_msgs.msg import ActionChunk, TaskOutcome
from rcl_interfaces.srv import DescribeParameters
from rclpy.action import ActionClient
from sensor_msgs.msg import Image
from std_msgs.msg import String

from nora_core.ros import convert
from nora_core.ros.qos import LATCHED, NEWEST

EMBODIMENT = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
NODE = "nora_policy.nodes.policy"
START_S = 60.0
ERROR = ExecuteInstruction.Result


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny = [sys.executable, "-m", "nora_policy.checkpoints.untrained", "--out", str(folder)]
    subprocess.run([*tiny, "--embodiment", str(EMBODIMENT)], check=True)
    return folder


class Client:
    """Publishes images and instructions, collects chunks, sends goals."""

    def __init__(self, ros, spawn, checkpoint: Path, **changes) -> None:
        self.ros = ros
        parameters = {
            "embodiment_file": str(EMBODIMENT),
            "checkpoint": str(checkpoint),
            "device": "cpu",
            "cpu_threads": 1,
            **changes,
        }
        self.child = spawn(NODE, parameters)
        self.child.wait_for_output("ready:", START_S)
        self.chunks = ros.collect("policy/action_chunk", ActionChunk)
        self.images = ros.publisher("camera/image_raw", Image, NEWEST)
        self.wrist = ros.publisher("wrist/image_raw", Image, NEWEST)
        self.instructions = ros.publisher("instruction", String, LATCHED)
        self.action = ActionClient(ros.node, ExecuteInstruction, "execute_instruction")
        ros.wait_for(self.action.server_is_ready)

    def send_image(self, stamp_ns: int | None = None) -> int:
        stamp_ns = self.ros.now_ns() if stamp_ns is None else stamp_ns
        rgb = np.random.default_rng(stamp_ns % 2**32).integers(0, 256, (64, 64, 3), np.uint8)
        for images in (self.wrist, self.images):
            images.publish(convert.image_to_msg(rgb, stamp_ns, "camera"))
        return stamp_ns

    def stream_until(self, condition, timeout: float = 10.0) -> None:
        def step() -> bool:
            self.send_image()
            return condition()

        self.ros.wait_for(step, timeout)

    def send_goal(self, instruction: str, timeout: float):
        goal = ExecuteInstruction.Goal(instruction=instruction, timeout=timeout)
        feedback = []
        sent = self.action.send_goal_async(goal, lambda msg: feedback.append(msg.feedback))
        self.ros.wait_for(sent.done)
        return sent.result(), sent.result().get_result_async(), feedback


@pytest.fixture
def client(ros, spawn, checkpoint):
    client = Client(ros, spawn, checkpoint)
    yield client
    client.action.destroy()


def test_chunks_carry_the_stamp_of_their_image_and_stop_with_the_instruction(client):
    client.send_image()
    client.instructions.publish(String(data="put the red cube on the plate"))
    stamps = set()
    client.stream_until(lambda: stamps.add(client.send_image()) or len(client.chunks) >= 3)
    chunk = client.chunks[-1]
    assert chunk.header.frame_id == "base_link"
    assert chunk.instruction == "put the red cube on the plate"
    assert chunk.step_period == 0.2
    assert (chunk.num_steps, len(chunk.actions)) == (5, 35)
    assert np.isfinite(chunk.actions).all()
    assert 0 < chunk.inference_time < 5
    ages = [client.ros.now_ns() - convert.to_ns(c.header.stamp) for c in client.chunks]
    assert all(0 < age < 10e9 for age in ages)
    assert len({convert.to_ns(c.header.stamp) for c in client.chunks}) == len(client.chunks)

    client.instructions.publish(String(data=""))
    diagnostics = client.ros.collect("/diagnostics", DiagnosticArray)
    client.ros.wait_for(
        lambda: diagnostics and diagnostics[-1].status[0].message == "waiting for an instruction"
    )
    so_far = len(client.chunks)
    client.stream_until(lambda: len(diagnostics) >= 2)
    assert len(client.chunks) == so_far


def test_the_images_of_all_cameras_are_answered_together_and_once(client):
    def stamps():
        return [convert.to_ns(chunk.header.stamp) for chunk in client.chunks]

    client.instructions.publish(String(data="go"))
    client.stream_until(lambda: client.chunks)
    sent = []
    for _ in range(4):
        sent.append(client.send_image())
        client.ros.wait_for(lambda: sent[-1] in stamps())
    assert [stamps().count(stamp_ns) for stamp_ns in sent] == [1, 1, 1, 1]


def test_the_token_head_can_be_chosen_and_counts_its_tokens(ros, spawn, checkpoint):
    client = Client(ros, spawn, checkpoint, head="fast")
    diagnostics = ros.collect("/diagnostics", DiagnosticArray)
    client.instructions.publish(String(data="go"))
    client.stream_until(lambda: len(client.chunks) >= 3)
    so_far = len(diagnostics)
    client.stream_until(lambda: len(diagnostics) > so_far)
    values = {item.key: item.value for item in diagnostics[-1].status[0].values}
    client.action.destroy()
    assert values["head"] == "fast"
    assert 1 <= float(values["tokens_p50"]) <= float(values["tokens_max"]) <= 70
    assert {gripper for chunk in client.chunks for gripper in chunk.actions[6::7]} <= {0.0, 1.0}


def test_a_frozen_camera_gives_no_new_chunk_and_diagnostics_say_why(client):
    diagnostics = client.ros.collect("/diagnostics", DiagnosticArray)
    client.instructions.publish(String(data="go"))
    client.stream_until(lambda: client.chunks)
    frozen = client.ros.now_ns()
    client.ros.wait_for(
        lambda: (
            client.send_image(frozen)
            and diagnostics
            and "old" in diagnostics[-1].status[0].message
        )
    )
    last = max(convert.to_ns(chunk.header.stamp) for chunk in client.chunks)
    assert last <= frozen
    assert diagnostics[-1].status[0].level == b"\x02"


def test_corrupt_images_are_named_counted_and_never_answered(client):
    client.instructions.publish(String(data="go"))
    diagnostics = client.ros.collect("/diagnostics", DiagnosticArray)
    corrupt = convert.image_to_msg(np.zeros((8, 8, 3), np.uint8), client.ros.now_ns(), "camera")
    corrupt.height = 480

    def counted() -> bool:
        client.images.publish(corrupt)
        values = {v.key: v.value for v in diagnostics[-1].status[0].values} if diagnostics else {}
        return int(values.get("bad_images", "0")) > 0

    client.ros.wait_for(counted)
    assert "camera/image_raw: image data: expected height * step bytes" in client.child.output
    assert client.chunks == []


def test_goal_succeeds_when_the_task_is_judged_done(client):
    outcomes = client.ros.publisher("task_outcome", TaskOutcome)
    handle, result, feedback = client.send_goal("put the red cube on the plate", 30.0)
    assert handle.accepted
    client.stream_until(lambda: client.chunks and feedback and feedback[-1].chunks > 0)
    assert 0 < feedback[-1].observation_age < 5
    judged = TaskOutcome(instruction="put the red cube on the plate", outcome=TaskOutcome.SUCCESS)
    judged.header.stamp = convert.to_time(client.ros.now_ns())
    outcomes.publish(judged)
    client.stream_until(result.done)
    assert result.result().status == GoalStatus.STATUS_SUCCEEDED
    assert result.result().result.error_code == ERROR.NONE
    assert result.result().result.outcome == TaskOutcome.SUCCESS


def test_an_outcome_that_is_none_is_ignored(client):
    outcomes = client.ros.publisher("task_outcome", TaskOutcome)
    _, result, _ = client.send_goal("go", 2.0)
    outcomes.publish(TaskOutcome(instruction="go", outcome=9))
    client.child.wait_for_output("9 is not a valid Outcome")
    client.stream_until(result.done)
    assert result.result().result.error_code == ERROR.TIMEOUT


def test_device_and_head_list_their_values(client):
    names = ["device", "head"]
    answer = client.ros.call(
        "policy/describe_parameters", DescribeParameters, DescribeParameters.Request(names=names)
    )
    allowed = {d.name: d.additional_constraints for d in answer.descriptors}
    assert allowed == {
        "device": "one of: auto, cpu, cuda",
        "head": "one of: auto, flow, fast",
    }
    assert all(d.description for d in answer.descriptors)


def test_sigint_while_it_imports_is_quiet(spawn, checkpoint):
    child = spawn(str(Path(get_package_prefix("nora_policy"), "lib/nora_policy/policy")))
    client_maps = Path(f"/proc/{child.process.pid}/maps")
    wait_for(lambda: "libtorch" in client_maps.read_text(), what="torch to be imported")
    child.signal(signal.SIGINT)
    assert child.wait() == 0
    assert child.output == ""


def test_goals_end_by_timeout_cancel_and_preemption(client):
    _, result, _ = client.send_goal("one", 0.5)
    client.stream_until(result.done)
    assert result.result().result.error_code == ERROR.TIMEOUT

    handle, result, _ = client.send_goal("two", 30.0)
    handle.cancel_goal_async()
    client.stream_until(result.done)
    assert result.result().status == GoalStatus.STATUS_CANCELED
    assert result.result().result.error_code == ERROR.CANCELLED

    _, first, _ = client.send_goal("three", 30.0)
    _, second, _ = client.send_goal("four", 30.0)
    client.stream_until(first.done)
    assert first.result().result.error_code == ERROR.PREEMPTED
    client.instructions.publish(String(data=""))
    client.stream_until(second.done)
    assert second.result().result.error_code == ERROR.PREEMPTED


def test_a_camera_that_never_comes_ends_the_goal_with_the_reason(client):
    _, result, _ = client.send_goal("go", 30.0)
    client.ros.wait_for(result.done, timeout=15.0)
    answer = result.result().result
    assert answer.error_code == ERROR.NO_IMAGE
    assert "camera primary: no image yet on camera/image_raw" in answer.error_msg


def test_it_can_be_taken_down_and_brought_up_again(client):
    for transition in (
        Transition.TRANSITION_DEACTIVATE,
        Transition.TRANSITION_CLEANUP,
        Transition.TRANSITION_CONFIGURE,
        Transition.TRANSITION_ACTIVATE,
    ):
        request = ChangeState.Request()
        request.transition.id = transition
        assert client.ros.call("policy/change_state", ChangeState, request).success
        if transition == Transition.TRANSITION_DEACTIVATE:
            _, result, _ = client.send_goal("go", 5.0)
            client.ros.wait_for(result.done)
            assert result.result().result.error_code == ERROR.NOT_ACTIVE
    client.ros.wait_for(client.images.get_subscription_count)
    client.ros.wait_for(client.instructions.get_subscription_count)
    client.instructions.publish(String(data="go"))
    client.stream_until(lambda: client.chunks)


@pytest.mark.parametrize(("instruction", "timeout"), [("", 5.0), ("go", 0.0)])
def test_invalid_goals_are_answered_with_a_code(client, instruction, timeout):
    _, result, _ = client.send_goal(instruction, timeout)
    client.ros.wait_for(result.done)
    assert result.result().result.error_code == ERROR.INVALID_GOAL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": "/nowhere"}, "/nowhere"),
        ({"checkpoint": ""}, "parameter checkpoint: the checkpoint folder is missing"),
        ({"embodiment_file": "/nowhere.yaml"}, "/nowhere.yaml: no such embodiment file"),
        ({"device": "tpu"}, "parameter device: expected one of: auto, cpu, cuda, got 'tpu'"),
        ({"head": "slow"}, "parameter head: expected one of: auto, flow, fast, got 'slow'"),
    ],
)
def test_bad_parameters_are_one_clear_line_and_a_non_zero_exit(
    spawn, checkpoint, changes, message
):
    parameters = {
        "embodiment_file": str(EMBODIMENT),
        "checkpoint": str(checkpoint),
        "device": "cpu",
        **changes,
    }
    child = spawn(NODE, parameters)
    assert child.wait(START_S) == 1
    assert message in child.output
    assert len(child.output.strip().splitlines()) == 1


def test_a_checkpoint_taught_another_action_space_is_refused(spawn, checkpoint, tmp_path):
    data = yaml.safe_load(EMBODIMENT.read_text())
    data["action"]["step_period_s"] = 0.1
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(data))
    child = spawn(
        NODE, {"embodiment_file": str(changed), "checkpoint": str(checkpoint), "device": "cpu"}
    )
    assert child.wait(START_S) == 1
    assert "step_period_s" in child.output
