"""Trials through ROS: they agree with those in process, are recorded, and can be judged."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import PoseArray, PoseStamped
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from nora_msgs.action import ExecuteInstruction
from nora_msgs.msg import ActionChunk as ActionChunkMsg
from nora_msgs.msg import CommandStatus, EndEffectorDelta, TaskOutcome
from nora_msgs.srv import ResetSimulation, SetMode
from rcl_interfaces.srv import GetParameters
from rclpy.action import ActionServer
from std_srvs.srv import Trigger

from nora_bringup.trials.client import TrialClient
from nora_core.control.controller import CONTROL_PERIOD_S
from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file
from nora_core.ros import convert
from nora_core.sim.cell import Cell
from nora_core.sim.expert import Expert, Scene
from nora_core.sim.task import parse
from nora_core.trials.record import Job, Record, Setup, record_of
from nora_core.types import ActionChunk, Float64, Observation, Outcome
from nora_policy.checkpoints import untrained
from nora_training.evaluation.rollout import roll_out

FILE = embodiment_file("sim_widowx")
SEED, CUBE = 7, "put the red cube on the plate"
PERIOD_S = 0.2
PROTOCOL = """
embodiment: sim_widowx
checkpoints: [{name: secret, folder: tiny, head: flow}]
tasks: [put the red cube on the plate]
seeds: {start: 100000, count: 1}
seconds: 2.0
real_time_factor: 0.5
video: all
"""


def chunk(action_A: Float64, stamp_ns: int) -> ActionChunk:
    action = Embodiment.load(FILE).action
    return ActionChunk(
        actions_TA=action_A[None],
        step_period_s=PERIOD_S,
        stamp_ns=stamp_ns,
        instruction=CUBE,
        action_names=action.names,
        frame=action.frame,
    )


class RecordingCell(Cell):
    """Remembers every commanded position of the tool."""

    def __init__(self) -> None:
        super().__init__(Embodiment.load(FILE), (16, 16))
        self.path: list[Float64] = []

    def advance(self, duration_s: float, on_tick: Any = None) -> None:
        def on_each(now_ns: int, target: Any) -> None:
            self.path.append(target.pose.position_m)
            on_tick(now_ns, target)

        super().advance(duration_s, on_each)


class ScriptedExpert:
    """Looks at the truth instead of the images; remembers what it did."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.actions: list[Float64] = []

    def reseed(self, seed: int) -> None:
        pass

    def infer(self, observation: Observation) -> ActionChunk:
        cell, simulator = self.cell, self.cell.simulator
        assert cell.embodiment.workspace is not None
        task = parse(observation.instruction, simulator.objects, simulator.receptacles)
        action_A = Expert(task, cell.embodiment.workspace).step(Scene.of(cell))
        self.actions.append(action_A)
        return chunk(action_A, observation.stamp_ns)


class Graph:
    """Simulator and bridge as real processes; plays actions as a policy node would."""

    def __init__(self, ros: Any, spawn: Any) -> None:
        self.ros = ros
        spawn("nora_bringup.nodes.sim", {"embodiment_file": str(FILE), "image_height": 16})
        spawn("nora_bringup.nodes.bridge", {"embodiment_file": str(FILE)})
        self.chunks = ros.node.create_publisher(ActionChunkMsg, "policy/action_chunk", 1)
        ros.wait_for(self.chunks.get_subscription_count, 60.0, "the bridge to start")
        self.commands = ros.collect("bridge/command", EndEffectorDelta)
        self.statuses = ros.collect("bridge/status", CommandStatus)
        self.targets = ros.collect("bridge/target_pose", PoseStamped)
        self.outcomes = ros.collect("task_outcome", TaskOutcome)
        self.poses = ros.collect("sim/object_poses", PoseArray)

    def reset(self) -> None:
        home = lambda: self.ros.call("bridge/home", Trigger).success  # noqa: E731
        self.ros.wait_for(home, 60.0, "the simulator, and the bridge to accept bridge/home")
        self.ros.wait_for(lambda: self.statuses and self.statuses[-1].mode == 0, what="home")
        request = ResetSimulation.Request(seed=SEED, instruction=CUBE)
        assert self.ros.call("sim/reset", ResetSimulation, request).error_code == 0
        for collected in (self.commands, self.targets, self.outcomes, self.poses):
            collected.clear()
        self.ros.wait_for(lambda: self.poses, what="object poses")

    def play(self, actions: list[Float64]) -> bool:
        """The next step is there as soon as one begins; false when one did not."""
        assert not self.ros.call("bridge/set_mode", SetMode, SetMode.Request(mode=1)).error_code
        for number, action_A in enumerate(actions):
            msg = convert.chunk_to_msg(chunk(action_A, self.ros.now_ns()), 0.0)
            self.chunks.publish(msg)
            deadline = time.monotonic() + 10 * PERIOD_S
            while len(self.commands) <= number:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.005)
        time.sleep(PERIOD_S)
        return True

    def try_again_until_done(self, actions: list[Float64]) -> None:
        """A busy machine drops simulated time or holds the arm, and the cube is lost."""
        for _ in range(4):
            self.reset()
            is_done = self.play(actions)
            if is_done and TaskOutcome.SUCCESS in [msg.outcome for msg in self.outcomes]:
                return
        pytest.fail("no success in four attempts")


def position(msg: PoseStamped) -> Float64:
    at = msg.pose.position
    return np.array([at.x, at.y, at.z])


def farthest(points_N3: Float64, path_M3: Float64) -> float:
    """Of the points, from the polyline, m."""
    a_M3, b_M3 = path_M3[:-1], path_M3[1:]
    along_M3 = b_M3 - a_M3
    length_M = np.maximum((along_M3**2).sum(axis=1), 1e-12)
    share_NM = ((points_N3[:, None] - a_M3) * along_M3).sum(axis=2) / length_M
    nearest_NM3 = a_M3 + share_NM.clip(0.0, 1.0)[..., None] * along_M3
    return float(np.linalg.norm(points_N3[:, None] - nearest_NM3, axis=2).min(axis=1).max())


@pytest.mark.timeout(240)
def test_ros_and_in_process_runs_of_the_same_seed_agree(ros: Any, spawn: Any) -> None:
    cell = RecordingCell()
    expert = ScriptedExpert(cell)
    job = Job(
        checkpoint="expert",
        folder="",
        head="flow",
        condition="normal",
        seed=SEED,
        instruction=CUBE,
        policy_instruction=CUBE,
    )
    setup = Setup(
        embodiment=str(FILE), image_size=16, delay_s=0.0, seconds=20.0, video="none", video_dir=""
    )
    cell.reset(SEED, CUBE)
    placed = cell.simulator.object_positions
    found = roll_out(cell, expert, job, setup)
    assert found.outcome is Outcome.SUCCESS
    at_end = cell.simulator.object_positions["red cube"]
    cell.close()

    graph = Graph(ros, spawn)
    graph.try_again_until_done(expert.actions)
    seen = [[p.position.x, p.position.y, p.position.z] for p in graph.poses[0].poses]
    np.testing.assert_allclose(seen, list(placed.values()), atol=2e-3)  # they settle
    assert len(graph.commands) == found.chunks
    executed = np.array(
        [[c.translation.x, c.translation.y, c.translation.z] for c in graph.commands]
    )
    wanted = np.array(expert.actions)[:, :3]
    np.testing.assert_allclose(executed[2:], wanted[2:], atol=1e-6)  # two careful ones before
    path = np.array([position(msg) for msg in graph.targets])
    in_process = np.array(cell.path)
    # How corners are cut depends on when, within a control period, a step begins; a busy machine
    # makes the periods longer.
    stamps_s = np.array([convert.to_ns(msg.header.stamp) for msg in graph.targets]) * 1e-9
    longest_s = max(CONTROL_PERIOD_S, np.diff(stamps_s).max())
    tolerance_m = np.sqrt(3.0) * cell.embodiment.limits.velocity_m_s * longest_s
    assert farthest(in_process, path) < tolerance_m
    assert farthest(path, in_process) < tolerance_m
    np.testing.assert_allclose(path[-1], in_process[-1], atol=1e-3)
    ros.wait_for(
        lambda: graph.outcomes[-1].outcome == TaskOutcome.SUCCESS, what="the same outcome"
    )
    last = graph.poses[-1].poses[0].position
    assert np.linalg.norm(np.array([last.x, last.y, last.z]) - at_end) < 0.02


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    untrained.write_tiny(folder / "tiny", FILE)
    (folder / "plain.yaml").write_text(PROTOCOL)
    (folder / "judged.yaml").write_text(PROTOCOL + "judge: operator\nbags: true\n")
    return folder


OVER_ROS = ("nora_bringup.cli", "trials")
IN_PROCESS = ("nora_training.evaluation.command", "--workers", "1")


def command(study: Path, protocol: str, out: Path, way: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", *way, str(study / f"{protocol}.yaml"), "--out", str(out)]


def records(out: Path) -> list[Record]:
    return [record_of(line) for line in (out / "trials.jsonl").read_text().splitlines()]


@pytest.mark.timeout(240)
def test_a_protocol_gives_the_same_sheet_both_ways(study: Path, tmp_path: Path) -> None:
    found = []
    for way in (OVER_ROS, IN_PROCESS):
        out = tmp_path / way[0]
        done = subprocess.run(
            command(study, "plain", out, way), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (record,) = records(out)
        found.append(record)
        assert (out / "videos" / f"{record.job.key}.mp4").stat().st_size > 1000
        assert (out / "trials.md").is_file()
    with_ros, without = found
    assert with_ros.job == without.job
    for name in ("outcome", "reached", "distractor_grasps", "grasp_s", "error"):
        assert getattr(with_ros.result, name) == getattr(without.result, name), name
    assert with_ros.result.object_m == pytest.approx(without.result.object_m, abs=2e-3)
    assert with_ros.result.chunks >= 3
    refused = subprocess.run(
        command(study, "plain", tmp_path / OVER_ROS[0], IN_PROCESS),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "its trials were run with another run" in refused.stderr


def test_a_node_that_cannot_answer_yet_is_asked_again(ros: Any, monkeypatch: Any) -> None:
    """Its participant may not have heard of the client's when the request comes."""

    def answer(_: Any, response: Any) -> Any:
        if isinstance(response, GetState.Response):
            response.current_state.id = State.PRIMARY_STATE_ACTIVE
        return response

    services = {"bridge/get_state": GetState, "policy/get_state": GetState}
    services["sim/get_parameters"] = GetParameters
    services |= {"bridge/set_mode": SetMode, "bridge/home": Trigger, "sim/reset": ResetSimulation}
    for name, kind in services.items():
        service = ros.node.create_service(kind, name, answer)
        lost: list[Any] = []

        def send(*answered: Any, send: Any = service.send_response, lost: Any = lost) -> None:
            if lost:
                send(*answered)
            lost.append(answered)

        monkeypatch.setattr(service, "send_response", send)
    server = ActionServer(ros.node, ExecuteInstruction, "execute_instruction", lambda _: None)
    TrialClient(ros.node, Embodiment.load(FILE), lambda: None).wait_until_ready()
    server.destroy()


@pytest.mark.timeout(240)
def test_an_operator_judges_blindly_at_a_terminal(study: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(study, "judged", tmp_path, OVER_ROS), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = io.StringIO()

    def read_until(text: str) -> None:
        while text not in said.getvalue():
            said.write(os.read(ours, 4096).decode(errors="replace"))

    try:
        read_until("Enter starts it")
        os.write(ours, b"\n")
        read_until("how did it go?")
        os.write(ours, b"d")
        assert "policy A" in said.getvalue()
        assert "secret" not in said.getvalue()
        os.write(ours, b"s")
        with contextlib.suppress(OSError):  # the terminal closes with the last process
            read_until("nothing that is ever said")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "secret was policy A" in said.getvalue()
    (record,) = records(tmp_path)
    assert (record.result.outcome, record.result.distractor_grasps) == (Outcome.SUCCESS, 1)
    (label,) = tmp_path.glob("bags/*/*/label.yaml")
    facts = yaml.safe_load(label.read_text())
    assert facts["outcome"] == "success"
    assert facts["distractor_grasps"] == 1
    assert record.job.key in json.dumps(facts)
