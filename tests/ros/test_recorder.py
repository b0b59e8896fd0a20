"""The recorder as a real process: real publishers, real bags, real signals, a really full file."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import pytest
import yaml
from nora_msgs.msg import ActionChunk, CommandStatus, RecorderStatus, TaskOutcome
from nora_msgs.srv import EndEpisode, StartEpisode
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from nora_bringup.graph import Options, node_specs
from nora_bringup.standalone import start_graph
from nora_core.bags.definitions import Definitions, message_folders
from nora_core.bags.label import Label
from nora_core.bags.recorder import EndError, StartError
from nora_core.bags.repair import damage_of
from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file
from nora_core.ros.qos import LATCHED, NEWEST
from nora_core.types import Outcome

NODE = "nora_bringup.nodes.recorder"
HEARING = {
    Image: QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT),
    CompressedImage: QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT),
    String: LATCHED,
}
TOPICS = {
    "/nora/camera/image_raw": Image,
    "/nora/camera/compressed": CompressedImage,
    "/nora/joint_states": JointState,
    "/nora/policy/action_chunk": ActionChunk,
    "/nora/bridge/status": CommandStatus,
    "/nora/instruction": String,
}
RECORD = [name.removeprefix("/nora/") for name in TOPICS]


@pytest.fixture
def robot(tmp_path: Path) -> Path:
    """An embodiment whose record list is `TOPICS`."""
    data = yaml.safe_load(embodiment_file("sim_widowx").read_text())
    file = tmp_path / "robot.yaml"
    file.write_text(yaml.safe_dump({**data, "record": RECORD, "record_optional": []}))
    return file


class Robot:
    """Publishes all topics of the record list at 20 Hz, and hears the bytes that were sent."""

    def __init__(self, node: Node, without: str = "", height: int = 48) -> None:
        self.sent: dict[str, list[bytes]] = {name: [] for name in TOPICS}
        self._node, self._height = node, height
        for name, kind in TOPICS.items():
            hear = self.sent[name].append
            node.create_subscription(kind, name, hear, HEARING.get(kind, 100), raw=True)
        qos = {Image: NEWEST, CompressedImage: NEWEST, String: LATCHED}
        self._publishers = {
            name: node.create_publisher(kind, name, qos.get(kind, 10))
            for name, kind in TOPICS.items()
            if name != without
        }
        self.number = 0
        self._publish("/nora/instruction", String(data="put it there"))
        self._timer = node.create_timer(0.05, self._tick)

    def stop(self) -> None:
        self._node.destroy_timer(self._timer)

    def _tick(self) -> None:
        self.number += 1
        pixels = bytes([self.number % 256]) * (self._height * 64 * 3)
        image = Image(height=self._height, width=64, step=192, encoding="rgb8")
        image.data = array("B", pixels)
        jpeg = CompressedImage(format="jpeg", data=array("B", pixels[:100]))
        states = JointState(name=["waist"], position=[self.number * 0.1])
        chunk = ActionChunk(instruction="put it there", step_period=0.2)
        messages = (image, jpeg, states, chunk, CommandStatus())
        for name, msg in zip(TOPICS, messages, strict=False):
            msg.header.stamp = self._node.get_clock().now().to_msg()
            self._publish(name, msg)

    def _publish(self, name: str, msg: Any) -> None:
        if name in self._publishers:
            self._publishers[name].publish(msg)


def start(ros: Any, instruction: str = "put it there") -> Any:
    request = StartEpisode.Request(instruction=instruction, notes="first light")
    return ros.call("recorder/start_episode", StartEpisode, request)


def end(ros: Any, **values: Any) -> Any:
    request = EndEpisode.Request(**{"outcome": TaskOutcome.SUCCESS, **values})
    return ros.call("recorder/end_episode", EndEpisode, request)


def ready(ros: Any, missing: tuple[str, ...] = ()) -> list[RecorderStatus]:
    """Statuses, once the recorder has found all publishers but `missing`."""
    statuses = ros.collect("recorder/status", RecorderStatus)
    ros.wait_for(
        lambda: statuses and tuple(statuses[-1].unpublished) == missing, what="all publishers"
    )
    return statuses


def read(folder: Path) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {name: [] for name in TOPICS}
    with Reader(folder) as reader:
        for connection, _, data in reader.messages():
            found[connection.topic].append(bytes(data))
    return found


def padded(contents: list[bytes]) -> list[bytes]:
    """DDS fills up what it sends a second time, as a latched message, to four bytes."""
    return [data + bytes(-len(data) % 4) for data in contents]


def test_constants_are_those_of_the_interfaces() -> None:
    for codes, interface in (
        (StartError, StartEpisode.Response),
        (EndError, EndEpisode.Response),
        (Outcome, TaskOutcome),
    ):
        assert {c.name: c.value for c in codes} == {
            c.name: getattr(interface, c.name) for c in codes
        }


def test_type_hashes_are_those_of_ros() -> None:
    definitions = Definitions(message_folders())
    for kind in {*TOPICS.values(), RecorderStatus, TaskOutcome}:
        package, _, name = kind.__module__.partition(".")
        name = f"{package}/msg/{kind.__name__}"
        share = next(p for p in message_folders() if (p / package / "msg").is_dir())
        generated = json.loads((share / package / "msg" / f"{kind.__name__}.json").read_text())
        (expected,) = (
            t["hash_string"] for t in generated["type_hashes"] if t["type_name"] == name
        )
        assert definitions.type_hash(name) == expected


def test_an_episode_holds_every_byte_that_was_published(
    ros: Any, spawn: Any, robot: Path, tmp_path: Path
) -> None:
    spawn(NODE, {"embodiment_file": str(robot), "record_dir": str(tmp_path / "bags")})
    arm = Robot(ros.node)
    statuses = ready(ros)
    started = start(ros)
    assert (started.error_code, started.error_msg, started.episode) == (0, "", 0)
    first = arm.number
    ros.wait_for(lambda: arm.number > first + 40, what="two seconds of messages")
    arm.stop()
    ros.wait_for(
        lambda: statuses[-1].counts[2] >= arm.number - first, what="the last messages in the bag"
    )
    assert statuses[-1].is_recording
    assert statuses[-1].instruction == "put it there"
    assert (statuses[-1].problem, statuses[-1].dropped) == ("", 0)
    assert statuses[-1].topics == list(TOPICS)
    ended = end(ros, distractor_grasps=1, notes="well done")
    assert (ended.error_code, ended.error_msg) == (0, "")

    folder = Path(ended.path)
    assert folder == tmp_path / "bags/sim_widowx/episode_000000"
    for name, contents in read(folder).items():
        sent = arm.sent[name]
        if TOPICS[name] in (Image, CompressedImage):  # best effort: DDS may lose some
            assert len(contents) > 20, name
            contents = [data for data in contents if data in sent]
            sent = [data for data in sent if data in contents]
        assert contents, name
        assert padded(contents) == padded(sent[-len(contents) :]), name
    label = Label.load(folder)
    assert (label.outcome, label.distractor_grasps) == ("success", 1)
    assert label.notes == "first light\nwell done"
    about = yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert about["custom_data"]["instruction"] == "put it there"
    assert len(about["custom_data"]["embodiment_sha256"]) == 64
    qos = {
        t["topic_metadata"]["name"]: t["topic_metadata"]["offered_qos_profiles"]
        for t in about["topics_with_message_count"]
    }
    assert qos["/nora/camera/image_raw"][0]["reliability"] == "best_effort"
    assert qos["/nora/instruction"][0]["durability"] == "transient_local"


def test_a_bag_reads_as_messages_by_its_own_definitions(
    ros: Any, spawn: Any, robot: Path, tmp_path: Path
) -> None:
    spawn(NODE, {"embodiment_file": str(robot), "record_dir": str(tmp_path / "bags")})
    arm = Robot(ros.node)
    ready(ros)
    start(ros)
    first = arm.number
    ros.wait_for(lambda: arm.number > first + 10, what="messages")
    folder = Path(end(ros).path)
    arm.stop()
    store = get_typestore(Stores.EMPTY)
    with Reader(folder) as reader:
        for connection in reader.connections:
            types = get_types_from_msg(connection.msgdef.data, connection.msgtype)
            store.register({name: t for name, t in types.items() if name not in store.fielddefs})
        for connection, _, data in reader.messages():
            ours = store.deserialize_cdr(data, connection.msgtype)
            theirs = deserialize_message(bytes(data), TOPICS[connection.topic])
            if connection.topic.endswith("joint_states"):
                assert ours.position.tolist() == list(theirs.position)
            if connection.topic.endswith("action_chunk"):
                assert ours.instruction == theirs.instruction == "put it there"


def test_a_topic_that_nobody_publishes_is_in_status_and_audit(
    ros: Any, spawn: Any, robot: Path, tmp_path: Path
) -> None:
    spawn(NODE, {"embodiment_file": str(robot), "record_dir": str(tmp_path / "bags")})
    arm = Robot(ros.node, without="/nora/joint_states")
    ready(ros, missing=("/nora/joint_states",))
    start(ros)
    first = arm.number
    ros.wait_for(lambda: arm.number > first + 10, what="messages")
    ended = end(ros)
    arm.stop()
    assert not ended.is_green
    assert "/nora/joint_states: no message (nobody publishes it)" in ended.audit
    assert "RED" in (Path(ended.path) / "audit.md").read_text()


def test_codes_discards_and_numbers(ros: Any, spawn: Any, robot: Path, tmp_path: Path) -> None:
    parameters = {"embodiment_file": str(robot), "record_dir": str(tmp_path / "bags")}
    child = spawn(NODE, parameters)
    assert end(ros).error_code == EndEpisode.Response.NO_EPISODE
    assert start(ros, "").error_code == StartEpisode.Response.INVALID_REQUEST
    assert start(ros).error_code == StartEpisode.Response.NONE
    assert start(ros).error_code == StartEpisode.Response.EPISODE_OPEN
    assert end(ros, outcome=7).error_code == EndEpisode.Response.INVALID_OUTCOME
    discarded = end(ros, discard=True)
    assert (discarded.error_code, discarded.audit) == (0, "")
    assert not Path(discarded.path).exists()
    start(ros)
    kept = end(ros, outcome=TaskOutcome.FAILURE)
    child.signal(signal.SIGINT)
    assert child.wait() == 0
    spawn(NODE, parameters)
    again = start(ros)
    assert again.episode == kept.episode + 1


def test_an_open_episode_is_closed_as_unknown_when_the_node_ends(
    ros: Any, spawn: Any, robot: Path, tmp_path: Path
) -> None:
    child = spawn(NODE, {"embodiment_file": str(robot), "record_dir": str(tmp_path / "bags")})
    arm = Robot(ros.node)
    ready(ros)
    folder = Path(start(ros).path)
    first = arm.number
    ros.wait_for(lambda: arm.number > first + 10, what="messages")
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
    arm.stop()
    assert "outcome unknown: the recorder node ended" in child.output
    label = Label.load(folder)
    assert (label.outcome, label.ended) == ("unknown", "the recorder node ended")
    assert damage_of(folder) == ""
    assert "ended without an operator" in (folder / "audit.md").read_text()


def nora(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nora_bringup.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_after_kill_9_the_command_rescues_all_but_the_last_second(
    ros: Any, spawn: Any, robot: Path, tmp_path: Path
) -> None:
    child = spawn(NODE, {"embodiment_file": str(robot), "record_dir": str(tmp_path / "bags")})
    arm = Robot(ros.node)
    ready(ros)
    folder = Path(start(ros).path)
    first = arm.number
    ros.wait_for(lambda: arm.number > first + 60, what="three seconds of messages")
    killed_at = len(arm.sent["/nora/joint_states"])
    child.signal(signal.SIGKILL)
    child.wait()
    arm.stop()
    assert nora("bags", "check", folder).returncode == 1
    done = nora("bags", "repair", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "# episode_000000: repaired" in done.stdout
    assert (folder / "episode_000000.mcap.damaged").is_file()
    assert damage_of(folder) == ""
    states = read(folder)["/nora/joint_states"]
    sent = arm.sent["/nora/joint_states"]
    begin = sent.index(states[0])
    assert states == sent[begin : begin + len(states)]
    assert begin + len(states) >= killed_at - 20
    label = Label.load(folder)
    assert (label.outcome, label.ended) == ("unknown", "cut off, repaired")
    checked = nora("bags", "check", folder, "--embodiment", robot)
    assert checked.returncode == 1  # nobody has labelled it
    assert "ended without an operator: cut off, repaired" in checked.stdout
    assert nora("bags", "repair", folder).stdout.strip() == f"{folder}: nothing to repair"


def test_a_write_error_ends_the_episode_and_leaves_a_bag_to_repair(
    ros: Any, spawn: Any, robot: Path, tmp_path: Path
) -> None:
    child = spawn(NODE, {"embodiment_file": str(robot), "record_dir": str(tmp_path / "bags")})
    arm = Robot(ros.node, height=480)
    statuses = ready(ros)
    resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (3_000_000, -1))
    folder = Path(start(ros).path)
    ros.wait_for(
        lambda: "File too large" in statuses[-1].problem and not statuses[-1].is_recording,
        what="a status that says so",
    )
    arm.stop()
    ended = end(ros)
    assert ended.error_code == EndEpisode.Response.NO_EPISODE
    assert "File too large" in ended.error_msg
    assert Label.load(folder).is_green is False
    done = nora("bags", "repair", folder)
    assert done.returncode == 0
    assert 10 <= len(read(folder)["/nora/camera/image_raw"]) <= 40
    resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (-1, -1))
    assert start(ros).error_code == 0
    assert end(ros, discard=True).error_code == 0


def test_a_filling_disk_ends_the_episode_cleanly(
    ros: Any, spawn: Any, robot: Path, tmp_path: Path
) -> None:
    free = shutil.disk_usage(tmp_path).free
    parameters = {"embodiment_file": str(robot), "record_dir": str(tmp_path / "bags")}
    spawn(NODE, {**parameters, "min_free_gb": (free - 1_000_000_000) / 1e9})
    arm = Robot(ros.node)
    statuses = ready(ros)
    folder = Path(start(ros).path)
    ros.wait_for(lambda: statuses[-1].is_recording and statuses[-1].counts[2] > 5, what="states")
    ballast = tmp_path / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 2_000_000_000)
    try:
        ros.wait_for(lambda: not statuses[-1].is_recording, what="the end of the episode")
        assert "of free space" in statuses[-1].problem
        refused = start(ros)
        assert refused.error_code == StartEpisode.Response.DISK_FULL
        assert "of free space" in refused.error_msg
    finally:
        ballast.unlink()
    arm.stop()
    assert damage_of(folder) == ""
    assert "of free space" in Label.load(folder).ended


def test_publishers_that_come_late_or_change_are_followed(
    ros: Any, spawn: Any, robot: Path, tmp_path: Path
) -> None:
    spawn(NODE, {"embodiment_file": str(robot), "record_dir": str(tmp_path / "bags")})
    statuses = ready(ros, missing=tuple(TOPICS))
    folder = Path(start(ros).path)
    reliable = ros.publisher("joint_states", JointState)
    ros.wait_for(lambda: "/nora/joint_states" not in statuses[-1].unpublished, what="the first")
    reliable.publish(JointState(name=["a"]))
    ros.wait_for(lambda: statuses[-1].counts[2] == 1, what="the first message")
    ros.node.destroy_publisher(reliable)
    best_effort = ros.node.create_publisher(JointState, "joint_states", NEWEST)

    def is_received() -> bool:
        best_effort.publish(JointState(name=["b"]))
        time.sleep(0.02)
        return bool(statuses[-1].counts[2] > 1)

    ros.wait_for(is_received, what="a best-effort message")
    end(ros)
    contents = read(folder)["/nora/joint_states"]
    names = [deserialize_message(data, JointState).name[0] for data in contents]
    assert (names[0], names[-1]) == ("a", "b")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"record_dir": ""}, "parameter record_dir: the folder for the bags is missing"),
        ({"embodiment_file": ""}, "parameter embodiment_file: the path"),
        ({"checkpoint": "/nowhere"}, "/nowhere: expected one of ('card.json', 'config.json')"),
        ({"record_dir": "/proc/bags"}, "/proc/bags"),
    ],
)
def test_bad_parameter_is_one_line_and_a_non_zero_exit(
    spawn: Any, robot: Path, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    parameters = {"embodiment_file": str(robot), "record_dir": str(tmp_path / "bags")}
    child = spawn(NODE, {**parameters, **change})
    assert child.wait() == 1
    assert text in child.output
    assert len(child.output.strip().splitlines()) == 1


def test_the_graph_has_a_recorder_when_there_is_a_folder(tmp_path: Path) -> None:
    options = Options(checkpoint="weights", record_dir="bags")
    specs = {spec.executable: spec.parameters for spec in node_specs(options)}
    assert list(specs) == ["sim", "bridge", "recorder", "policy"]
    assert specs["recorder"]["record_dir"] == str(Path("bags").resolve())
    assert specs["recorder"]["checkpoint"] == specs["policy"]["checkpoint"]
    alone = node_specs(Options(record_dir="bags"))[-1]
    assert "checkpoint" not in alone.parameters  # ROS does not parse `checkpoint:=`
    without = Options(checkpoint="weights")
    assert "recorder" not in [spec.executable for spec in node_specs(without)]


def test_the_installed_recorder_starts_with_the_parameters_of_the_graph(
    ros: Any, tmp_path: Path
) -> None:
    options = Options(record_dir=str(tmp_path / "bags"))
    specs = tuple(spec for spec in node_specs(options) if spec.executable == "recorder")
    with start_graph(specs, tmp_path):
        started = start(ros)
        assert (started.error_code, started.error_msg) == (0, "")
        ended = end(ros)
    names = Embodiment.load(embodiment_file("sim_widowx")).record
    expected = [f"/nora/{name}: no message (nobody publishes it)" for name in names]
    assert ended.audit.splitlines() == expected
    log = (tmp_path / "recorder.log").read_text()
    assert "RED" in log
    assert "Traceback" not in log
