"""The bridge as a real process: what stops the arm, what is refused, how it starts and ends."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from nora_msgs.msg import ActionChunk, CommandStatus, EndEffectorDelta
from nora_msgs.srv import SetMode
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from nora_core.control.status import Mode, ModeError
from nora_core.ros import convert
from nora_core.types import Reason

CONFIG = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments"
SOURCE = str(Path(__file__).parent / "chunk_source.py")
BRIDGE = "nora_bringup.nodes.bridge"
NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
PERIOD_S = 0.02
N_STEP = {"execution": "n_step", "execute_steps": 50}


@pytest.fixture
def embodiment_file(tmp_path):
    """`embodiment_file(section={key: value})`: sim_widowx.yaml with changes, None deletes."""

    def write(base="sim_widowx", **sections):
        data = yaml.safe_load((CONFIG / f"{base}.yaml").read_text())
        for section, changes in sections.items():
            data[section] = {**data[section], **changes} if changes else None
        file = tmp_path / "robot.yaml"
        file.write_text(yaml.safe_dump(data))
        return str(file)

    return write


class Rig:
    """A running bridge, everything it says, and an arm that is where it is told to be."""

    def __init__(self, ros, spawn, file, has_arm=True, **parameters):
        self.ros = ros
        self.embodiment = yaml.safe_load(Path(file).read_text())
        self.statuses = ros.collect("bridge/status", CommandStatus)
        self.targets = ros.collect("bridge/target_pose", PoseStamped)
        self.commands = ros.collect("bridge/command", EndEffectorDelta)
        if has_arm:
            self.start_arm()
        self.process = spawn(BRIDGE, {"embodiment_file": file, **parameters})
        self.chunks = ros.publisher("policy/action_chunk", ActionChunk, 1)

    def start_arm(self):
        arm = self.embodiment["arm"]
        joints = JointState(name=[*arm["joint_names"], "left_finger"])
        joints.position = array("d", [*arm["home_rad"], 0.03])
        publisher = self.ros.node.create_publisher(JointState, "joint_states", 10)

        def obey(msg):
            joints.position = msg.position

        def report():
            joints.header.stamp = self.ros.node.get_clock().now().to_msg()
            publisher.publish(joints)

        self.ros.node.create_subscription(JointState, "sim/joint_targets", obey, 1)
        self.arm = self.ros.node.create_timer(PERIOD_S, report)

    @property
    def status(self):
        return self.statuses[-1] if self.statuses else CommandStatus()

    @property
    def positions(self):
        return np.array([_position(msg) for msg in self.targets])

    @property
    def stamps_s(self):
        return np.array([convert.to_ns(msg.header.stamp) for msg in self.targets]) * 1e-9

    def policy(self):
        self.ros.wait_for(lambda: self.targets, what="the bridge to command")
        request = SetMode.Request(mode=1)
        self.ros.wait_for(
            lambda: self.ros.call("bridge/set_mode", SetMode, request).error_code == 0,
            what="mode POLICY, which needs some joint states first",
        )

    def publish(self, *actions, **fields):
        msg = ActionChunk(
            header=convert.header(self.ros.now_ns(), "base_link"),
            action_names=NAMES,
            step_period=0.2,
            num_steps=len(actions),
            actions=array("d", [value for action in actions for value in action]),
        )
        for name, value in fields.items():
            setattr(msg, name, value)
        self.chunks.publish(msg)

    def wait_for_status(self, **expected):
        self.ros.wait_for(
            lambda: all(getattr(self.status, k) == v for k, v in expected.items()),
            what=f"status {expected}, last {self.status}",
        )

    def wait_until_still(self, num=25):
        """Until the target has not changed for `num` periods; when it last did, s."""
        self.ros.wait_for(
            lambda: len(self.targets) > num and not np.diff(self.positions[-num:], axis=0).any(),
            what="the target to stand still",
        )
        moved = np.nonzero(np.diff(self.positions, axis=0).any(axis=1))[0]
        return self.stamps_s[moved[-1] + 1 if moved.size else 0]

    def wait_until_moving(self):
        start = len(self.targets)
        self.ros.wait_for(
            lambda: (
                len(self.targets) > start + 5
                and np.diff(self.positions[start:], axis=0).any(axis=1)[-3:].all()
            ),
            what=f"the target to move, last {self.status}",
        )


def _position(msg):
    return msg.pose.position.x, msg.pose.position.y, msg.pose.position.z


def step(**axes):
    return [axes.get(name, float(name == "gripper")) for name in NAMES]


# what stops the arm


def test_kill_9_of_the_policy_in_mid_motion_holds_the_arm_within_the_age_of_its_chunk(
    ros, spawn, embodiment_file
):
    """With the real simulator, and a policy that comes back."""
    file = embodiment_file(action={**N_STEP, "max_chunk_age_s": 0.6})
    spawn("nora_bringup.nodes.sim", {"embodiment_file": file, "camera_rate_hz": 1})
    rig = Rig(ros, spawn, file, has_arm=False)
    measured = ros.collect("bridge/ee_pose", PoseStamped)
    rig.policy()
    parameters = {"y": 0.02, "num_steps": 50}
    source = spawn(SOURCE, parameters)
    rig.wait_until_moving()
    source.signal(signal.SIGKILL)
    killed_s = time.time()
    still_s = rig.wait_until_still()
    assert 0.0 < still_s - killed_s <= 0.6
    assert rig.status.hold_reason == CommandStatus.REASON_CHUNK_STALE
    assert re.fullmatch(r"no new chunk for [0-9.]+ s", rig.status.hold_detail)
    assert _position(measured[-1]) == pytest.approx(rig.positions[-1], abs=0.01)

    spawn(SOURCE, {**parameters, "y": -0.02})
    rig.wait_until_moving()
    assert rig.status.is_moving


def _shared_memory(pid: int) -> set[str]:
    """Files of shared memory that a process uses, but for the ports, which processes share."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in re.findall(r"/dev/shm/(fastrtps_\S+)", maps) if "port" not in name}


def test_an_ended_bridge_leaves_nothing_in_shared_memory(ros, spawn, embodiment_file):
    rig = Rig(ros, spawn, embodiment_file())
    ros.wait_for(lambda: rig.statuses, what="a status")
    own = _shared_memory(rig.process.process.pid) - _shared_memory(os.getpid())
    assert own
    rig.process.signal(signal.SIGTERM)
    assert rig.process.wait() == 0
    assert not {name for name in own if Path("/dev/shm", name).exists()}


def test_a_frozen_camera_holds_the_arm_and_says_so(ros, spawn, embodiment_file):
    rig = Rig(ros, spawn, embodiment_file())
    rig.policy()
    spawn(SOURCE, {"y": 0.02, "is_frozen": True})
    rig.wait_until_moving()
    rig.wait_for_status(hold_reason=CommandStatus.REASON_CHUNK_STALE)
    rig.wait_until_still()
    assert rig.status.last_refusal == CommandStatus.REASON_OUT_OF_ORDER
    assert rig.status.chunks_accepted == 1
    assert rig.status.chunks_refused >= 2
    assert len(rig.commands) == rig.embodiment["action"]["execute_steps"]


def test_joint_states_that_stop_hold_the_arm(ros, spawn, embodiment_file):
    rig = Rig(ros, spawn, embodiment_file(action=N_STEP))
    rig.policy()
    spawn(SOURCE, {"y": 0.01})
    rig.wait_until_moving()
    rig.arm.cancel()
    rig.wait_for_status(hold_reason=CommandStatus.REASON_STATE_STALE)
    rig.wait_until_still()
    answer = ros.call("bridge/set_mode", SetMode, SetMode.Request(mode=1))
    assert answer.error_code == SetMode.Response.NO_STATE
    rig.arm.reset()
    rig.wait_until_moving()


def test_a_joint_state_that_is_no_number_is_refused_and_ends_nothing(ros, spawn, embodiment_file):
    rig = Rig(ros, spawn, embodiment_file(), has_arm=False)
    joints = JointState(name=[*rig.embodiment["arm"]["joint_names"], "left_finger"])
    joints.position = array("d", [float("nan")] * 7)
    states = ros.publisher("joint_states", JointState)

    def refused():
        joints.header.stamp = ros.node.get_clock().now().to_msg()
        states.publish(joints)
        return rig.status.last_refusal == Reason.NON_FINITE

    ros.wait_for(refused)
    rig.wait_for_status(hold_reason=int(Reason.STATE_MISSING))
    assert rig.process.process.poll() is None


def test_estop_stops_within_one_period_and_survives_until_reset(ros, spawn, embodiment_file):
    rig = Rig(ros, spawn, embodiment_file(safety={"first_motion_steps": 0}))
    rig.policy()
    spawn(SOURCE, {"y": 0.045})
    rig.wait_until_moving()
    assert ros.call("bridge/estop", Trigger).success
    answered_s = time.time()
    assert rig.wait_until_still() <= answered_s + PERIOD_S
    speeds = np.linalg.norm(np.diff(rig.positions, axis=0), axis=1) / PERIOD_S
    last_speed = speeds[np.nonzero(speeds)[0][-1]]
    braking = rig.embodiment["limits"]["acceleration_m_s2"] * PERIOD_S
    assert last_speed > braking  # so much in one period is no braking
    assert rig.status.estopped
    assert rig.status.hold_reason == CommandStatus.REASON_ESTOP

    answer = ros.call("bridge/set_mode", SetMode, SetMode.Request(mode=1))
    assert answer.error_code == SetMode.Response.ESTOPPED
    assert not ros.call("bridge/home", Trigger).success
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
        change(ros, transition)
    rig.statuses.clear()
    rig.wait_for_status(estopped=True)
    assert ros.call("bridge/reset_estop", Trigger).success
    rig.wait_for_status(estopped=False, mode=CommandStatus.MODE_HOLD)
    rig.wait_until_still()
    rig.policy()
    rig.wait_until_moving()


# what is refused


BAD_CHUNKS = {
    "not a number": ({"actions": array("d", step(x=np.nan))}, Reason.NON_FINITE),
    "infinite": ({"actions": array("d", step(yaw=np.inf))}, Reason.NON_FINITE),
    "too few values": ({"actions": array("d", [0.0] * 6)}, Reason.WRONG_SHAPE),
    "no steps": ({"actions": array("d"), "num_steps": 0}, Reason.WRONG_SHAPE),
    "six names": (
        {"action_names": NAMES[:6], "actions": array("d", [0.0] * 6)},
        Reason.MISMATCH,
    ),
    "other period": ({"step_period": 0.5}, Reason.MISMATCH),
    "other frame": (
        {"header": convert.header(1_000_000_000, "camera")},
        Reason.MISMATCH,
    ),
    "old image": ({"header": convert.header(1_000_000_000, "base_link")}, Reason.OUT_OF_ORDER),
    "image to come": (
        {"header": convert.header(2_100_000_000_000_000_000, "base_link")},
        Reason.OUT_OF_ORDER,
    ),
}


def test_bad_chunks_are_refused_with_the_reason(ros, spawn, embodiment_file):
    diagnostics = ros.collect("/diagnostics", DiagnosticArray)
    rig = Rig(ros, spawn, embodiment_file())
    rig.policy()
    rig.publish(step())
    rig.wait_for_status(chunks_accepted=1)
    for number, (case, (fields, reason)) in enumerate(BAD_CHUNKS.items(), 1):
        rig.publish(step(x=0.01), **fields)
        rig.wait_for_status(chunks_refused=number)
        assert rig.status.last_refusal == reason, case
        assert rig.status.last_refusal_detail, case
    rig.wait_until_still()
    assert rig.status.chunks_accepted == 1

    def reported():
        return {v.key: v.value for v in diagnostics[-1].status[0].values} if diagnostics else {}

    ros.wait_for(lambda: reported().get("refused OUT_OF_ORDER", "").startswith("2, last: image"))
    assert reported()["refused NON_FINITE"] == "2, last: step 0: yaw is inf"
    assert {"mode", "worst jitter (ms)", "overruns", "observation age (s)"} <= set(reported())


@pytest.mark.parametrize("on_violation", ["clamp", "refuse"])
def test_a_target_outside_the_workspace(ros, spawn, embodiment_file, on_violation):
    file = embodiment_file(
        workspace={"on_violation": on_violation, "max_m": [0.45, 0.01, 0.30]},
        safety={"first_motion_steps": 0},
    )
    rig = Rig(ros, spawn, file)
    rig.policy()
    rig.publish(step(y=0.03, x=0.01))
    counter = {"clamp": "steps_clamped", "refuse": "steps_refused"}[on_violation]
    rig.wait_for_status(**{counter: 1})
    assert rig.status.last_refusal == CommandStatus.REASON_WORKSPACE
    assert "0.030" in rig.status.last_refusal_detail
    assert "0.010" in rig.status.last_refusal_detail
    rig.wait_until_still()
    start, end = rig.positions[0], rig.positions[-1]
    assert end[1] <= 0.01
    if on_violation == "clamp":
        assert end - start == pytest.approx([0.01, 0.01, 0.0], abs=1e-6)
        translation = rig.commands[0].translation
        assert (translation.x, translation.y) == pytest.approx((0.01, 0.01), abs=1e-6)
    else:
        assert end == pytest.approx(start, abs=0)
        assert not rig.commands


# home, and time


def test_home_brings_the_arm_back(ros, spawn, embodiment_file):
    rig = Rig(ros, spawn, embodiment_file(action=N_STEP))
    rig.policy()
    home = rig.positions[0]
    rig.publish(step(x=0.03, yaw=0.2), step(y=0.03))
    rig.wait_for_status(steps_executed=2)
    assert ros.call("bridge/home", Trigger).success
    rig.wait_for_status(mode=CommandStatus.MODE_HOMING, is_moving=True)
    rig.wait_for_status(mode=CommandStatus.MODE_HOLD, is_moving=False)
    assert rig.positions[-1] == pytest.approx(home, abs=1e-5)


def test_runs_on_simulated_time(ros, spawn, embodiment_file):
    file = embodiment_file()
    parameters = {"publish_clock": True, "camera_rate_hz": 1}
    spawn("nora_bringup.nodes.sim", {"embodiment_file": file, **parameters})
    rig = Rig(ros, spawn, file, has_arm=False, use_sim_time=True)
    rig.policy()
    rig.publish(step(z=0.02), header=rig.targets[-1].header)
    rig.wait_for_status(steps_executed=1)
    assert 0.0 < rig.stamps_s[-1] < 1000.0
    assert np.diff(rig.stamps_s).min() >= 0.0
    started = rig.commands[0].header.stamp
    assert 0.0 < convert.to_ns(started) * 1e-9 <= rig.stamps_s[-1]


def test_answers_nobody_before_the_clock_runs(ros, spawn, embodiment_file):
    bridge = spawn(BRIDGE, {"embodiment_file": embodiment_file(), "use_sim_time": True})
    statuses = ros.collect("bridge/status", CommandStatus)
    clock = ros.publisher("/clock", Clock)
    bridge.wait_for_output("no /clock yet")
    assert not statuses
    seconds = itertools.count(5)

    def tick():
        clock.publish(Clock(clock=Time(sec=next(seconds))))
        return statuses

    ros.wait_for(tick, what="a status")
    assert statuses[0].header.stamp.sec >= 5


# how it starts and ends


def change(ros, transition):
    request = ChangeState.Request(transition=Transition(id=transition))
    answer = ros.call("bridge/change_state", ChangeState, request)
    assert answer.success, f"transition {transition}"


def test_lifecycle_by_hand_twice(ros, spawn, embodiment_file):
    process = spawn(BRIDGE, {"embodiment_file": embodiment_file(), "autostart": False})
    statuses = ros.collect("bridge/status", CommandStatus)
    for _ in range(2):
        change(ros, Transition.TRANSITION_CONFIGURE)
        answer = ros.call("bridge/set_mode", SetMode, SetMode.Request(mode=1))
        assert answer.error_code == SetMode.Response.NOT_ACTIVE
        change(ros, Transition.TRANSITION_ACTIVATE)
        statuses.clear()
        ros.wait_for(lambda: statuses)
        assert statuses[-1].hold_reason == CommandStatus.REASON_STATE_MISSING
        change(ros, Transition.TRANSITION_DEACTIVATE)
        ros.wait_for(lambda: statuses[-1].hold_detail == "the bridge is not active")
        assert statuses[-1].mode == CommandStatus.MODE_HOLD
        change(ros, Transition.TRANSITION_CLEANUP)
    assert process.process.poll() is None


@pytest.mark.parametrize(
    ("base", "sections", "message"),
    [
        ("sim_widowx", {"workspace": None}, "workspace: the box is missing"),
        ("sim_widowx", {"driver": None}, "driver: kind and topics are missing"),
        ("widowx", {}, "arm: the kinematic model is missing"),
        ("sim_widowx", {"limits": {"speed": 1.0}}, "limits.speed: unknown key"),
    ],
)
def test_no_activation_without_everything_that_makes_it_safe(
    spawn, embodiment_file, base, sections, message
):
    bridge = spawn(BRIDGE, {"embodiment_file": embodiment_file(base, **sections)})
    assert bridge.wait() == 1
    (line,) = [line for line in bridge.output.splitlines() if "ERROR" in line]
    assert "robot.yaml: " + message in line


def test_no_activation_without_a_file(spawn):
    bridge = spawn(BRIDGE)
    assert bridge.wait() == 1
    assert "parameter embodiment_file: the path of a YAML file is missing" in bridge.output


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_starts_fast_and_ends_clean(spawn, embodiment_file, stop):
    begin = time.monotonic()
    bridge = spawn(BRIDGE, {"embodiment_file": embodiment_file()})
    bridge.wait_for_output("ready: sim_widowx")
    ready_s = time.monotonic() - begin
    print(f"start to ready: {ready_s:.2f} s")
    assert ready_s < 5.0  # about one on an idle machine
    begin = time.monotonic()
    bridge.signal(stop)
    assert bridge.wait() == 0
    assert time.monotonic() - begin < 2.0
    assert "WARN" not in bridge.output  # the driver may still be starting
    assert bridge.output.count("\n") <= 2, bridge.output


def test_a_driver_that_never_reports_is_a_warning(spawn, embodiment_file):
    bridge = spawn(BRIDGE, {"embodiment_file": embodiment_file()})
    bridge.wait_for_output("holding: no joint state yet")
    assert "WARN" in bridge.output


def test_a_joint_state_of_another_robot_is_refused_with_its_names(ros, spawn, embodiment_file):
    bridge = spawn(BRIDGE, {"embodiment_file": embodiment_file()})
    states = ros.publisher("joint_states", JointState)
    other = JointState(name=["joint_1", "left_finger"], position=[0.0, 0.0])

    def refused():
        states.publish(other)
        return "are missing, received ['joint_1', 'left_finger']" in bridge.output

    ros.wait_for(refused)


def test_the_process_has_no_torch_and_no_training():
    code = "import sys, nora_bringup.nodes.bridge; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    roots = {name.split(".")[0] for name in result.stdout.split()}
    assert "mujoco" in roots
    assert not roots & {"torch", "transformers", "tokenizers", "nora_training"}


def test_enumerations_equal_the_constants_of_the_interfaces():
    def constants(interface, prefix=""):
        names = [name for name in dir(type(interface)) if name.startswith(prefix)]
        values = {n.removeprefix(prefix): getattr(interface, n) for n in names if n.isupper()}
        return {name: value for name, value in values.items() if isinstance(value, int)}

    def members(enumeration):
        return {member.name: member.value for member in enumeration}

    assert members(Reason) == constants(CommandStatus, "REASON_")
    assert members(Mode) == constants(CommandStatus, "MODE_")
    assert members(ModeError) == constants(SetMode.Response)
    assert constants(SetMode.Request) == {"HOLD": Mode.HOLD, "POLICY": Mode.POLICY}
