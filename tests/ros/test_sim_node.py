"""The sim node as a real process: rates, stamps, commands, resets, its own clock, bad input."""

from __future__ import annotations

import math
import signal
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import PoseArray
from nora_msgs.msg import TaskOutcome
from nora_msgs.srv import ResetSimulation
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState

from nora_core.embodiment import Embodiment
from nora_core.ros import convert
from nora_core.ros.qos import NEWEST

CONFIG = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
NODE = "nora_bringup.nodes.sim"
PARAMETERS = {"embodiment_file": str(CONFIG), "image_height": 96, "image_width": 128}


def joints_of(msg: JointState) -> dict[str, float]:
    return dict(zip(msg.name, msg.position, strict=True))


def home() -> dict[str, float]:
    arm = Embodiment.load(CONFIG).arm
    assert arm is not None
    return dict(zip((*arm.joint_names, "left_finger"), (*arm.home_rad, 0.037), strict=True))


def command(values: dict[str, float]) -> JointState:
    return JointState(name=list(values), position=list(values.values()))


def test_publishes_what_a_robot_and_its_camera_publish(ros: Any, spawn: Any) -> None:
    spawn(NODE, PARAMETERS)
    images = ros.collect("camera/image_raw", Image, NEWEST)
    wrist = ros.collect("wrist/image_raw", Image, NEWEST)
    states = ros.collect("joint_states", JointState)
    outcomes = ros.collect("task_outcome", TaskOutcome)
    poses = ros.collect("sim/object_poses", PoseArray)
    ros.wait_for(lambda: len(images) > 12 and len(outcomes) > 5, what="images and outcomes")

    frame = convert.frame_from_msg(images[-1], "rgb8")
    assert frame.rgb_HW3.shape == (96, 128, 3)
    assert frame.rgb_HW3.std() > 10
    assert abs(ros.now_ns() - frame.stamp_ns) < 1e9
    both = {convert.to_ns(m.header.stamp) for m in images} & {
        convert.to_ns(m.header.stamp) for m in wrist
    }
    assert len(both) > 8  # of one instant
    stamps_s = np.array([convert.to_ns(msg.header.stamp) for msg in images[2:]]) * 1e-9
    assert np.median(np.diff(stamps_s)) == pytest.approx(0.1, abs=0.03)
    stamps_s = np.array([convert.to_ns(msg.header.stamp) for msg in states[5:]]) * 1e-9
    assert np.mean(np.diff(stamps_s)) == pytest.approx(0.02, abs=0.005)
    assert joints_of(states[-1]) == pytest.approx(home(), abs=1e-3)
    assert outcomes[-1].outcome == TaskOutcome.FAILURE
    assert outcomes[-1].instruction == "put the red cube on the plate"
    assert len(poses[-1].poses) == 5


def test_obeys_commands_and_refuses_bad_ones(ros: Any, spawn: Any) -> None:
    child = spawn(NODE, PARAMETERS)
    states = ros.collect("joint_states", JointState)
    publisher = ros.publisher("sim/joint_targets", JointState)
    goal = {**home(), "waist": 0.4, "left_finger": 0.02}
    publisher.publish(command(goal))
    ros.wait_for(
        lambda: states and joints_of(states[-1]) == pytest.approx(goal, abs=2e-3),
        what="the arm at its target",
    )
    publisher.publish(command({**goal, "waist": math.nan}))
    child.wait_for_output("command: expected finite values")
    publisher.publish(command({**home(), "hip": 0.0}))
    count = len(states)
    ros.wait_for(lambda: len(states) > count + 25, what="half a second of states")
    assert joints_of(states[-1]) == pytest.approx(goal, abs=2e-3)


def test_a_pause_is_dropped_and_said_not_raced_through(ros: Any, spawn: Any) -> None:
    child = spawn(NODE, PARAMETERS)
    states = ros.collect("joint_states", JointState)
    ros.wait_for(lambda: len(states) > 10, what="states")
    child.signal(signal.SIGSTOP)
    time.sleep(1.5)
    before = len(states)
    child.signal(signal.SIGCONT)
    child.wait_for_output("slower than asked: dropped 1.")
    assert len(states) - before < 25  # 0.2 s of catching up at most, and what came since


def test_reset_is_repeatable_and_refuses_unknown_instructions(ros: Any, spawn: Any) -> None:
    spawn(NODE, {**PARAMETERS, "seed": 1})
    outcomes = ros.collect("task_outcome", TaskOutcome)
    poses = ros.collect("sim/object_poses", PoseArray)

    def reset(seed: int) -> list[tuple[float, float]]:
        request = ResetSimulation.Request(seed=seed, instruction="put the blue ball in the bowl")
        assert ros.call("sim/reset", ResetSimulation, request).error_code == 0
        count = len(poses)
        ros.wait_for(lambda: len(poses) > count + 1, what="poses after the reset")
        return [(p.position.x, p.position.y) for p in poses[-1].poses]

    first, other, again = reset(7), reset(8), reset(7)
    np.testing.assert_allclose(first, again, atol=1e-4)
    assert not np.allclose(first, other, atol=1e-2)
    assert outcomes[-1].instruction == "put the blue ball in the bowl"

    request = ResetSimulation.Request(seed=7, instruction="put the moon on the plate")
    response = ros.call("sim/reset", ResetSimulation, request)
    assert response.error_code == ResetSimulation.Response.UNKNOWN_INSTRUCTION
    assert "moon" in response.error_msg
    assert "blue ball" in response.error_msg


@pytest.mark.parametrize(("factor", "low", "high"), [(0.0, 1.1, 1000.0), (0.5, 0.35, 0.6)])
def test_publishes_its_own_clock(
    ros: Any, spawn: Any, factor: float, low: float, high: float
) -> None:
    spawn(NODE, {**PARAMETERS, "publish_clock": True, "real_time_factor": factor})
    clocks: list[tuple[int, int]] = []
    ros.node.create_subscription(
        Clock, "/clock", lambda msg: clocks.append((ros.now_ns(), convert.to_ns(msg.clock))), 100
    )
    images = ros.collect("camera/image_raw", Image, NEWEST)
    ros.wait_for(lambda: len(clocks) > 60 and len(images) > 5, what="simulated time")
    wall_ns, sim_ns = (b - a for a, b in zip(clocks[10], clocks[-1], strict=True))
    assert low < sim_ns / wall_ns < high
    assert all(b - a == 20_000_000 for (_, a), (_, b) in pairwise(clocks))
    assert all(convert.to_ns(msg.header.stamp) % 100_000_000 == 0 for msg in images)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"embodiment_file": ""}, "parameter embodiment_file: the path"),
        ({"instruction": "juggle"}, "instruction: expected"),
        ({"camera_rate_hz": 7}, "camera_rate_hz: expected a divisor of state_rate_hz (50), got 7"),
        ({"state_rate_hz": 0}, "state_rate_hz: expected a divisor of 100, got 0"),
        ({"real_time_factor": 2.0}, "real_time_factor: expected 1 in wall time"),
        ({"image_height": 100_000}, "image_hw: expected"),
    ],
)
def test_bad_parameter_is_one_line_and_a_non_zero_exit(
    spawn: Any, change: dict[str, Any], text: str
) -> None:
    child = spawn(NODE, {**PARAMETERS, **change})
    assert child.wait() == 1
    assert text in child.output
    assert len(child.output.strip().splitlines()) == 1
