"""Bags on disk: what goes in comes out, torn files are repaired, definitions and labels hold."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import (
    CompressionFormat,
    CompressionMode,
    Reader,
    StoragePlugin,
    Writer,
)
from rosbags.typesys import Stores, get_typestore

from nora_bringup.bag_commands import Check, Repair, check_bags, repair_bags
from nora_core.bags.audit import Expectation
from nora_core.bags.check import check
from nora_core.bags.definitions import Definitions, header_stamp_ns, message_folders
from nora_core.bags.label import Label, Provenance, episode_folder, next_episode
from nora_core.bags.provenance import provenance
from nora_core.bags.repair import damage_of, repair
from nora_core.bags.scan import ZSTD_MAGIC, McapScan
from nora_core.bags.writer import BagWriter, Topic
from nora_core.types import Outcome

SOURCE = Path(__file__).parents[2] / "src"
INFINITE = QosTime(9223372036, 854775807)
SENSOR = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.BEST_EFFORT,
    QosDurability.VOLATILE,
    INFINITE,
    INFINITE,
    QosLiveliness.AUTOMATIC,
    INFINITE,
    False,
)
TOPICS = (
    Topic("/nora/camera/image_raw", "sensor_msgs/msg/Image", (SENSOR,)),
    Topic("/nora/policy/action_chunk", "nora_msgs/msg/ActionChunk"),
    Topic("/nora/instruction", "std_msgs/msg/String"),
)
Written = list[tuple[str, int, bytes]]
FEW = settings(max_examples=25, deadline=None)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name, "episode_000007")


def read(path: Path) -> Written:
    with Reader(path) as reader:
        return [(c.topic, stamp_ns, bytes(data)) for c, stamp_ns, data in reader.messages()]


@functools.cache
def definitions() -> Definitions:
    return Definitions((SOURCE,))


def end_of(message: tuple[str, int, bytes], whole: bytes) -> int:
    """Where the record of a message ends in an MCAP file (channels count from 1)."""
    _, stamp_ns, content = message
    size = (22 + len(content)).to_bytes(8, "little")
    rest = bytes(4) + stamp_ns.to_bytes(8, "little") * 2 + content
    records = (b"\x05" + size + key.to_bytes(2, "little") + rest for key in (1, 2, 3))
    return next(whole.find(r) + len(r) for r in records if r in whole)


def write(path: Path, messages: Written, flush_every: int = 5) -> None:
    writer = BagWriter(path, definitions())
    topics = {topic.name: topic for topic in TOPICS}
    for count, (name, stamp_ns, data) in enumerate(messages):
        writer.write(topics[name], stamp_ns, data)
        if count % flush_every == flush_every - 1:
            writer.flush()
    writer.close({"instruction": "put it there"})


@st.composite
def bags(draw: st.DrawFn) -> Written:
    """Messages in order of receipt; of their bytes, only whether they are packed matters."""
    size = draw(st.integers(1, 40))
    stamps_ns = sorted(draw(st.sets(st.integers(1, 2**62), min_size=size, max_size=size)))
    names = st.sampled_from([topic.name for topic in TOPICS])
    plain = st.binary(max_size=300).filter(lambda data: not data.startswith(ZSTD_MAGIC))
    return [(draw(names), stamp_ns, draw(plain)) for stamp_ns in stamps_ns]


@FEW
@given(messages=bags(), flush_every=st.integers(1, 50))
def test_a_bag_gives_back_what_was_written_and_describes_it(messages, flush_every):
    with folder() as path:
        write(path, messages, flush_every)
        assert read(path) == messages
        metadata = yaml.safe_load((path / "metadata.yaml").read_text())
        about = metadata["rosbag2_bagfile_information"]
    assert (about["version"], about["storage_identifier"]) == (9, "mcap")
    assert about["message_count"] == len(messages)
    assert about["custom_data"] == {"instruction": "put it there"}
    assert about["relative_file_paths"] == ["episode_000007.mcap"]
    topics = {t["topic_metadata"]["name"]: t for t in about["topics_with_message_count"]}
    for topic in TOPICS:
        count = sum(name == topic.name for name, _, _ in messages)
        if count:
            described = topics[topic.name]
            assert described["message_count"] == count
            assert described["topic_metadata"]["type"] == topic.type_name
            expected = definitions().type_hash(topic.type_name)
            assert described["topic_metadata"]["type_description_hash"] == expected


def test_qos_is_written_as_jazzy_reads_it(tmp_path):
    path = tmp_path / "bag"
    write(path, [(TOPICS[0].name, 5, b"x" * 20)])
    about = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    (topic,) = about["topics_with_message_count"]
    (qos,) = topic["topic_metadata"]["offered_qos_profiles"]
    assert qos["history"] == "keep_last"
    assert qos["reliability"] == "best_effort"
    assert qos["durability"] == "volatile"
    assert qos["deadline"] == {"sec": 9223372036, "nsec": 854775807}
    with Reader(path) as reader:
        (connection,) = reader.connections
        assert connection.ext.offered_qos_profiles == [SENSOR]


def test_metadata_are_what_rosbag2_of_jazzy_decodes(tmp_path):
    """Field by field as in `rosbag2_storage/yaml.hpp`, and QoS as lists, as Jazzy writes them."""
    write(tmp_path / "bag", [(topic.name, 5, b"x" * 20) for topic in TOPICS])
    about = yaml.safe_load((tmp_path / "bag/metadata.yaml").read_text())
    about = about["rosbag2_bagfile_information"]
    types = {"version": int, "storage_identifier": str, "message_count": int, "files": list}
    types |= {"duration": dict, "starting_time": dict, "topics_with_message_count": list}
    types |= {"compression_format": str, "compression_mode": str, "relative_file_paths": list}
    types |= {"custom_data": dict, "ros_distro": str}
    assert {name: type(value) for name, value in about.items()} == types
    assert all(type(text) is str for pair in about["custom_data"].items() for text in pair)
    (file,) = about["files"]
    assert [file["path"]] == about["relative_file_paths"]
    for times in (about, file):
        assert set(times["starting_time"]) == {"nanoseconds_since_epoch"}
        assert times["starting_time"]["nanoseconds_since_epoch"] == 5
        assert times["duration"]["nanoseconds"] >= 0
    for information in about["topics_with_message_count"]:
        assert set(information) == {"topic_metadata", "message_count"}
        topic = information["topic_metadata"]
        assert topic["serialization_format"] == "cdr"
        assert re.fullmatch(r"RIHS01_[0-9a-f]{64}", topic["type_description_hash"])
        assert isinstance(topic["offered_qos_profiles"], list)  # text before version 9
        for qos in topic["offered_qos_profiles"]:
            names = {"history", "depth", "reliability", "durability", "liveliness"}
            times = {"deadline", "lifespan", "liveliness_lease_duration"}
            assert set(qos) == {*names, *times, "avoid_ros_namespace_conventions"}
            assert all(set(qos[name]) == {"sec", "nsec"} for name in times)
            assert all(isinstance(qos[name], str) for name in names - {"depth"})


def test_a_topic_keeps_its_type_and_a_folder_its_bag(tmp_path):
    writer = BagWriter(tmp_path / "bag", definitions())
    writer.write(Topic("/a", "std_msgs/msg/String"), 1, b"")
    with pytest.raises(ValueError, match="/a: expected type std_msgs/msg/String, got std_msgs"):
        writer.write(Topic("/a", "std_msgs/msg/Bool"), 2, b"")
    with pytest.raises(ValueError, match=r"type nobody/msg/Knows: expected its \.msg file"):
        writer.write(Topic("/b", "nobody/msg/Knows"), 2, b"")
    writer.close({})
    assert read(tmp_path / "bag") == [("/a", 1, b"")]
    with pytest.raises(FileExistsError, match="expected a new folder"):
        BagWriter(tmp_path / "bag", definitions())


def test_an_empty_bag_is_a_bag(tmp_path):
    writer = BagWriter(tmp_path / "bag", definitions())
    writer.add(TOPICS[0])
    writer.close({})
    assert read(tmp_path / "bag") == []
    assert damage_of(tmp_path / "bag") == ""


# torn files


@FEW
@given(messages=bags(), flush_every=st.integers(1, 9), data=st.data())
def test_of_a_bag_cut_anywhere_the_whole_messages_are_kept(messages, flush_every, data):
    with folder() as path:
        write(path, messages, flush_every)
        mcap = path / "episode_000007.mcap"
        whole = mcap.read_bytes()
        end = data.draw(st.integers(0, len(whole) - 1), label="cut at")
        torn = whole[:end]
        mcap.write_bytes(torn)
        (path / "metadata.yaml").unlink()
        reachable = [message for message in messages if end_of(message, whole) <= end]
        if not reachable:
            with pytest.raises(ValueError, match="not one message is readable"):
                repair(path)
            assert mcap.read_bytes() == torn
            assert sorted(p.name for p in path.iterdir()) == [mcap.name]
            return
        report = repair(path)
        assert report is not None
        assert read(path) == reachable
        assert sum(report.counts.values()) == len(reachable)
        assert end_of(reachable[-1], whole) <= report.good_bytes <= report.total_bytes == end
        assert (path / "episode_000007.mcap.damaged").read_bytes() == torn
        assert repair(path) is None


@FEW
@given(messages=bags(), data=st.data())
def test_nonsense_in_a_file_ends_the_scan_and_raises_nothing(messages, data):
    with folder() as path:
        write(path, messages)
        mcap = path / "episode_000007.mcap"
        whole = mcap.read_bytes()
        content = bytearray(whole)
        start = data.draw(st.integers(0, len(content) - 1))
        noise = data.draw(st.binary(min_size=1, max_size=64))
        content[start : start + len(noise)] = noise
        mcap.write_bytes(content)
        scan = McapScan(mcap, Definitions.of_bag())
        found = [(m.topic.name, m.stamp_ns, m.data) for m in scan.messages()]
        before = [message for message in messages if end_of(message, whole) <= start]
        assert found[: len(before)] == before
        assert scan.good_bytes <= len(content)


def test_a_repair_that_was_cut_off_is_done_again(tmp_path):
    path = tmp_path / "bag"
    messages = [(TOPICS[2].name, stamp_ns, b"x" * 50) for stamp_ns in range(1, 31)]
    write(path, messages)
    mcap = path / "bag.mcap"
    mcap.write_bytes(mcap.read_bytes()[:-400])
    mcap.rename(path / "bag.mcap.damaged")
    (path / ".repair").mkdir()
    report = repair(path)
    assert report is not None
    assert read(path) == messages
    assert "bag.mcap.damaged" in (path / "repair.md").read_text()


def test_a_bag_in_parts_keeps_its_custom_data_and_its_metadata(tmp_path):
    path = tmp_path / "bag"
    messages = [(TOPICS[2].name, stamp_ns, b"x" * 50) for stamp_ns in range(1, 31)]
    write(path, messages[:10])
    write(tmp_path / "second", messages[10:])
    (path / "bag.mcap").rename(path / "bag_0.mcap.damaged")  # half of a repair
    (tmp_path / "second/second.mcap").rename(path / "bag_1.mcap")
    assert repair(path) is not None
    assert read(path) == messages
    about = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert about["custom_data"] == {"instruction": "put it there"}
    assert about["message_count"] == 30
    names = {p.name for p in path.iterdir()}
    expected = {"bag_0.mcap", "bag_1.mcap", "metadata.yaml"}
    assert names == {"bag.mcap", "metadata.yaml", "repair.md"} | {f"{n}.damaged" for n in expected}


def test_compressed_chunks_of_a_plain_bag_are_rescued_whole_or_not_at_all(tmp_path):
    path = tmp_path / "bag"
    store = get_typestore(Stores.ROS2_JAZZY)
    bag = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
    bag.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with bag:
        connection = bag.add_connection("/a", "std_msgs/msg/String", typestore=store)
        for stamp_ns in range(1, 41):
            bag.write(connection, stamp_ns, os.urandom(100_000))
    mcap = path / "bag.mcap"
    content = mcap.read_bytes()
    mcap.write_bytes(content[: len(content) // 2])
    report = repair(path)
    assert report is not None
    assert "a compressed chunk is cut off" in report.damages[0]
    assert [stamp_ns for _, stamp_ns, _ in read(path)] == list(range(1, report.counts["/a"] + 1))
    assert report.counts["/a"] == 11  # one chunk of 1 MiB


def test_a_bag_that_is_being_written_is_left_alone(tmp_path):
    path = tmp_path / "bag"
    writer = BagWriter(path, definitions())
    writer.write(TOPICS[2], 9, b"message")
    writer.flush()
    with pytest.raises(ValueError, match=r"bag.mcap: expected a closed file, it is being written"):
        repair(path)
    writer.close({})
    assert repair(path) is None


def test_repair_keeps_the_label_and_closes_it(tmp_path):
    path = tmp_path / "episode_000000"
    writer = BagWriter(path, definitions())
    label = Label(
        episode=0,
        instruction="put it",
        outcome="unknown",
        distractor_grasps=0,
        notes="",
        start_ns=1,
        end_ns=0,
        ended="",
        is_green=None,
        provenance=Provenance(
            embodiment="sim", embodiment_sha256="a", checkpoint="b", git_revision="c"
        ),
    )
    label.save(path)
    writer.write(TOPICS[2], 9, b"message")
    writer.flush()
    (path / "copy").write_bytes((path / "episode_000000.mcap").read_bytes())
    writer.close({})
    (path / "copy").replace(path / "episode_000000.mcap")
    (path / "metadata.yaml").unlink()
    repair(path)
    about = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert about["custom_data"]["instruction"] == "put it"
    assert about["custom_data"]["ended"] == "cut off, repaired"
    assert Label.load(path).end_ns == 9


def test_a_bag_of_another_storage_or_none_is_not_touched(tmp_path):
    path = tmp_path / "bag"
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=8, storage_plugin=StoragePlugin.SQLITE3) as writer:
        writer.add_connection("/a", "std_msgs/msg/String", typestore=store)
    assert repair(path) is None
    assert damage_of(path) == ""
    (path / "bag.db3").unlink()
    with pytest.raises(ValueError, match=r"expected a folder with a file of .*, found none"):
        repair(path)


def sqlite_bag(path: Path, version: int = 9, num: int = 200, size: int = 3000) -> Written:
    """Messages of two topics, large enough for pages of their own."""
    messages = [
        (f"/{'ab'[i % 2]}", i + 1, i.to_bytes(4, "little") + b"x" * size) for i in range(num)
    ]
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=version, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connections = {
            name: writer.add_connection(
                name, "std_msgs/msg/String", typestore=store, offered_qos_profiles=[SENSOR]
            )
            for name in ("/a", "/b")
        }
        for name, stamp_ns, data in messages:
            writer.write(connections[name], stamp_ns, data)
    return messages


@pytest.mark.parametrize("version", [8, 9])
@pytest.mark.parametrize("share", [1.0, 0.7, 0.3])
def test_a_sqlite_bag_without_its_end_keeps_what_is_before_it(tmp_path, version, share):
    path = tmp_path / "bag"
    messages = sqlite_bag(path, version)
    (path / "metadata.yaml").unlink()
    file = path / "bag.db3"
    os.truncate(file, int(share * file.stat().st_size))
    torn = file.read_bytes()
    report = repair(path)
    kept = read(path)
    assert kept == messages[: len(kept)]
    assert len(kept) >= 0.8 * share * len(messages)
    assert (len(kept) == len(messages)) == (share == 1.0) == (not report.damages)
    assert (path / "bag.db3.damaged").read_bytes() == torn
    assert check(path, {"/a": Expectation()}).is_green
    with Reader(path) as reader:
        assert all(c.ext.offered_qos_profiles == [SENSOR] for c in reader.connections)
    assert repair(path) is None


OPEN_TRANSACTION = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute(f"PRAGMA journal_mode={sys.argv[2]}")
database.execute("PRAGMA cache_size=1")  # pages leave for the file before the end
add = "INSERT INTO messages(topic_id, timestamp, data) VALUES (1, ?, ?)"
database.execute(add, (1000, bytes(3000)))
database.execute("BEGIN")
for stamp_ns in range(2000, 2050):
    database.execute(add, (stamp_ns, bytes(3000)))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("mode", "left"), [("DELETE", "-journal"), ("WAL", "-wal")])
def test_of_a_killed_sqlite_writer_the_open_transaction_is_rolled_back(tmp_path, mode, left):
    path = tmp_path / "bag"
    messages = sqlite_bag(path, num=20)
    before = damage_of(path)
    killed = [sys.executable, "-c", OPEN_TRANSACTION, str(path / "bag.db3"), mode]
    subprocess.run(killed, check=False)
    assert (path / f"bag.db3{left}").stat().st_size
    assert before == ""
    assert "a transaction was cut off" in damage_of(path)
    with pytest.raises(ValueError, match="Try `nora bags repair`"):
        check(path, {})
    repair(path)
    assert read(path) == [*messages, ("/a", 1000, bytes(3000))]
    names = {p.name for p in path.iterdir()}
    assert {"bag.mcap", "bag.db3.damaged", f"bag.db3{left}.damaged", "repair.md"} <= names
    assert not any(name.startswith(".repair") for name in names)


def test_a_sqlite_bag_that_is_being_written_is_left_alone(tmp_path):
    path = tmp_path / "bag"
    sqlite_bag(path, num=5)
    (path / "metadata.yaml").unlink()
    script = (
        "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('BEGIN EXCLUSIVE');"
        "print('ready', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(path / "bag.db3")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as writer:
        writer.stdout.readline()
        with pytest.raises(ValueError, match="expected a closed file, it is being written"):
            repair(path)
        writer.stdin.close()
    assert repair(path) is not None


def test_a_folder_of_bags_stands_for_all_of_them(tmp_path, capsys):
    for name in ("a/episode_0", "b/episode_1"):
        (tmp_path / name).parent.mkdir()
        write(tmp_path / name, [(TOPICS[2].name, 5, b"....")])
    assert check_bags(Check((tmp_path,))) == 0
    assert capsys.readouterr().out.count(": green") == 2
    os.truncate(tmp_path / "b/episode_1/episode_1.mcap", 400)
    assert check_bags(Check((tmp_path,))) == 1
    (tmp_path / "empty").mkdir()
    assert repair_bags(Repair((tmp_path / "a", tmp_path / "empty"))) == 1
    said = capsys.readouterr()
    assert "episode_0: nothing to repair" in said.out
    assert "expected a folder with a file of" in said.err


KILLED = """
import os, signal, sys
from pathlib import Path
from nora_core.bags.definitions import Definitions
from nora_core.bags.writer import BagWriter, Topic
writer = BagWriter(Path(sys.argv[1]), Definitions(()))
for stamp_ns in range(1, 101):
    writer.write(Topic("/a", "std_msgs/msg/String"), stamp_ns, bytes(10_000))
    if stamp_ns == 60:
        writer.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_all_that_it_flushed(tmp_path):
    path = tmp_path / "bag"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert damage_of(path)
    report = repair(path)
    assert report is not None
    assert report.counts["/a"] >= 60
    assert [stamp_ns for _, stamp_ns, _ in read(path)] == list(range(1, report.counts["/a"] + 1))


# definitions, labels, checks


def test_definitions_come_from_the_source_tree_and_from_bags():
    known = definitions()
    assert known.has_header("sensor_msgs/msg/Image")
    assert known.has_header("nora_msgs/msg/ActionChunk")
    assert not known.has_header("std_msgs/msg/String")
    assert SOURCE in message_folders()
    text = known.store("nora_msgs/msg/ActionChunk").generate_msgdef("nora_msgs/msg/ActionChunk")
    learned = Definitions.of_bag()
    learned.learn("nora_msgs/msg/ActionChunk", text[0], "ros2msg")
    expected = known.type_hash("nora_msgs/msg/ActionChunk")
    assert learned.type_hash("nora_msgs/msg/ActionChunk") == expected
    with pytest.raises(ValueError, match="type a/msg/B: "):
        learned.learn("a/msg/B", "int32 ! nonsense", "ros2msg")
    with pytest.raises(ValueError, match="expected PACKAGE/msg/NAME, got 'Image'"):
        known.type_hash("Image")


@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 10**9 - 1), st.booleans())
def test_a_stamp_is_read_from_the_bytes_of_either_byte_order(sec, nanosec, is_little):
    order = "little" if is_little else "big"
    data = bytes([0, int(is_little), 0, 0])
    data += sec.to_bytes(4, order, signed=True) + nanosec.to_bytes(4, order)
    assert header_stamp_ns(data + b"rest") == sec * 10**9 + nanosec
    with pytest.raises(ValueError, match="at least 12 bytes, got 11"):
        header_stamp_ns(data[:11])


@FEW
@given(numbers=st.sets(st.integers(0, 10**7)), others=st.sets(st.sampled_from(["a", "episodes"])))
def test_the_next_episode_is_one_more_than_the_highest(numbers, others):
    with folder() as path:
        assert next_episode(path) == 0
        path.mkdir()
        for number in numbers:
            episode_folder(path, number).mkdir()
        for other in others:
            (path / other).mkdir()
        assert next_episode(path) == max(numbers, default=-1) + 1


TEXTS = st.text(st.characters(exclude_categories=["C"]), max_size=40)


@FEW
@given(
    words=st.tuples(TEXTS, TEXTS, TEXTS),
    outcome=st.sampled_from(Outcome),
    number=st.integers(0, 10**6),
    is_green=st.sampled_from([None, True, False]),
)
def test_a_label_survives_its_file(words, outcome, number, is_green):
    source = Provenance(
        embodiment="sim", embodiment_sha256="0" * 64, checkpoint=words[2], git_revision="unknown"
    )
    label = Label(
        episode=number,
        instruction=words[0],
        outcome=outcome.name.lower(),
        distractor_grasps=number,
        notes=words[1],
        start_ns=1,
        end_ns=2,
        ended="x",
        is_green=is_green,
        provenance=source,
    )
    with folder() as path:
        path.mkdir()
        label.save(path)
        assert Label.load(path) == label
        assert [p.name for p in path.iterdir()] == ["label.yaml"]
    assert label.custom_data()["outcome"] == outcome.name.lower()
    assert all(isinstance(value, str) for value in label.custom_data().values())


def test_a_wrong_label_is_named(tmp_path):
    label = Label(
        episode=0,
        instruction="",
        outcome="success",
        distractor_grasps=0,
        notes="",
        start_ns=1,
        end_ns=2,
        ended="",
        is_green=True,
        provenance=Provenance(embodiment="", embodiment_sha256="", checkpoint="", git_revision=""),
    )
    label.save(tmp_path)
    text = (tmp_path / "label.yaml").read_text()
    (tmp_path / "label.yaml").write_text(text.replace("success", "great"))
    with pytest.raises(ValueError, match=r"label.yaml: outcome: expected one of .*got 'great'"):
        Label.load(tmp_path)


def test_provenance_names_robot_file_checkpoint_and_code(tmp_path):
    robot = tmp_path / "robot.yaml"
    robot.write_text("name: robot")
    checkpoint = tmp_path / "weights"
    checkpoint.mkdir()
    with pytest.raises(FileNotFoundError, match=r"weights: expected one of .*card.json"):
        provenance(robot, "robot", str(checkpoint))
    (checkpoint / "card.json").write_text("{}")
    found = provenance(robot, "robot", str(checkpoint))
    assert found.embodiment_sha256 == hashlib.sha256(b"name: robot").hexdigest()
    assert found.checkpoint == "weights@44136fa355b3"
    assert provenance(robot, "robot", "").checkpoint == ""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=SOURCE, capture_output=True, text=True, check=False
    )
    if git.returncode == 0:
        assert found.git_revision.removesuffix("-dirty") == git.stdout.strip()


def test_a_plain_bag_is_checked_against_the_record_list(tmp_path):
    path = tmp_path / "bag"
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/a", "std_msgs/msg/String", typestore=store)
        for number in range(11):
            writer.write(connection, number * 10**8 + 1, b"....")
    assert check(path, {"/a": Expectation(max_gap_ns=2 * 10**8)}).is_green
    report = check(path, {"/a": Expectation(max_gap_ns=5 * 10**7), "/b": Expectation()})
    assert report.reasons == ("/a: silent for 0.10 s, limit 0.05 s", "/b: no message")
    os.truncate(next(path.glob("*.db3")), 100)
    with pytest.raises(ValueError, match="Try `nora bags repair`"):
        check(path, {})


def test_bags_need_no_ros():
    """As the simulator and the trainer use them: in a process where no ROS can be imported."""
    program = """
import importlib, pkgutil, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rclpy", "nora_msgs", "ament_index_python", "torch"):
            raise ImportError(name)
sys.meta_path.insert(0, Wall())
import nora_core.bags as bags
names = [m.name for m in pkgutil.iter_modules(bags.__path__)]
for name in names:
    importlib.import_module(f"nora_core.bags.{name}")
print(*names)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert {"writer", "repair", "audit", "check"} <= set(done.stdout.split())
