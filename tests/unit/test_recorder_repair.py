"""Bags of others, and damaged ones: each is checked and repaired, or refused in words, alone."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import rosbags.rosbag2.storage_mcap as storage
import yaml
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from nora_bringup.bag_commands import Check, Repair, check_bags, repair_bags
from nora_core.bags.audit import Audit, Expectation, expectations
from nora_core.bags.check import check
from nora_core.bags.definitions import Definitions, message_folders
from nora_core.bags.folders import find_bags
from nora_core.bags.label import Label, Provenance
from nora_core.bags.repair import damage_of, repair
from nora_core.bags.scan import McapScan
from nora_core.bags.sqlite_scan import SqliteScan
from nora_core.bags.writer import BagWriter, Topic
from nora_core.embodiment import Embodiment

S = 10**9
PAGE = 4096
SIM = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
MCAP, SQLITE3 = StoragePlugin.MCAP, StoragePlugin.SQLITE3
MESSAGE, FILE = CompressionMode.MESSAGE, CompressionMode.FILE
ODD = "foo_msgs/msg/Odd"
TYPES = {"/a": "std_msgs/msg/String", "/states": "sensor_msgs/msg/JointState", "/odd": ODD}
Read = list[tuple[str, int, bytes]]


def bag(
    path: Path,
    plugin: StoragePlugin,
    topics: tuple[str, ...] = ("/a",),
    num: int = 60,
    size: int = 1000,
    compression: CompressionMode = CompressionMode.NONE,
) -> Read:
    """One message a tenth of a second and topic, as somebody else would have recorded them."""
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg("std_msgs/Header header\nint32 x", ODD))
    writer = Writer(path, version=9, storage_plugin=plugin)
    writer.set_compression(compression, CompressionFormat.ZSTD)
    messages = []
    with writer:
        for topic in topics:
            connection = writer.add_connection(topic, TYPES[topic], typestore=store)
            for i in range(1, num + 1):
                messages.append((topic, i * S // 10, b"\0\1\0\0" + bytes(size)))
                writer.write(connection, *messages[-1][1:])
    return sorted(messages, key=lambda message: message[1])


def read(path: Path) -> Read:
    with Reader(path) as reader:
        found = [(c.topic, stamp_ns, bytes(data)) for c, stamp_ns, data in reader.messages()]
    return sorted(found, key=lambda message: message[1])


def file_of(path: Path) -> Path:
    return next(file for file in path.iterdir() if file.suffix in (".mcap", ".db3"))


@contextmanager
def information(path: Path) -> Iterator[dict[str, object]]:
    """The metadata, to be changed."""
    data = yaml.safe_load((path / "metadata.yaml").read_text())
    yield data["rosbag2_bagfile_information"]
    (path / "metadata.yaml").write_text(yaml.safe_dump(data))


def custom_data(path: Path) -> object:
    with information(path) as about:
        return about["custom_data"]


# damage


@pytest.mark.parametrize("kind", ["zeroed page", "noise"])
@pytest.mark.parametrize(
    ("plugin", "compression"),
    [
        (MCAP, CompressionMode.NONE),
        (MCAP, CompressionMode.STORAGE),
        (SQLITE3, CompressionMode.NONE),
        (SQLITE3, MESSAGE),
    ],
)
def test_damage_anywhere_is_told_or_repaired(tmp_path, plugin, compression, kind):
    path = tmp_path / "bag"
    messages = bag(path, plugin, num=30, size=9000, compression=compression)
    file, metadata = file_of(path), (path / "metadata.yaml").read_text()
    whole, rng = file.read_bytes(), random.Random(1)
    for k in range(25):
        content = bytearray(whole)
        start = rng.randrange(len(whole))
        if kind == "zeroed page":
            start = start // PAGE * PAGE
            content[start : start + PAGE] = bytes(len(content[start : start + PAGE]))
        else:
            content[start : start + 40] = rng.randbytes(len(content[start : start + 40]))
        for left in path.iterdir():
            left.unlink()
        (path / "metadata.yaml").write_text(metadata)
        file.write_bytes(content)
        damage = damage_of(path)
        try:
            report = repair(path)
        except ValueError:
            assert damage
            with pytest.raises(ValueError, match="Try `nora bags repair`"):
                check(path, {})
            continue
        assert (report is None) == (damage == ""), k
        assert damage_of(path) == ""
        assert len(read(path)) <= len(messages)
        assert check(path, {}).topics[0].count == len(read(path))


def test_a_size_beyond_all_memory_is_damage_though_its_error_has_no_words(tmp_path):
    path = tmp_path / "bag"
    messages = bag(path, MCAP)
    file = file_of(path)
    content = bytearray(file.read_bytes())
    summary = int.from_bytes(content[-28:-20], "little")
    content[summary + 1 : summary + 9] = (2**62).to_bytes(8, "little")
    file.write_bytes(content)
    assert damage_of(path) == "MemoryError"
    with pytest.raises(ValueError, match=r"bag: MemoryError\. Try `nora bags repair`"):
        check(path, {})
    assert repair(path) is not None
    assert read(path) == messages


def test_a_size_beyond_all_memory_ends_a_scan(tmp_path):
    messages = bag(tmp_path / "bag", MCAP, num=2000)
    file = file_of(tmp_path / "bag")
    content = bytearray(file.read_bytes())
    header = 17 + int.from_bytes(content[9:17], "little")
    second = header + 9 + int.from_bytes(content[header + 1 : header + 9], "little")
    content[second + 1 : second + 9] = (2**62).to_bytes(8, "little")
    file.write_bytes(content)
    scan = McapScan(file, Definitions.of_bag())
    found = [(m.topic.name, m.stamp_ns, m.data) for m in scan.messages()]
    assert 0 < len(found) < len(messages)
    assert found == messages[: len(found)]
    assert f"got opcode 7 and size {2**62}" in scan.damage


@pytest.mark.parametrize("change", ["data = 1e12", "data = 'text'", "timestamp = -1"])
def test_a_row_that_is_no_message_ends_a_scan(tmp_path, change):
    messages = bag(tmp_path / "bag", SQLITE3)
    file = file_of(tmp_path / "bag")
    with closing(sqlite3.connect(file)) as database:
        database.execute(f"UPDATE messages SET {change} WHERE id = 21")
        database.commit()
    scan = SqliteScan(file, Definitions.of_bag())
    assert [(m.topic.name, m.stamp_ns, m.data) for m in scan.messages()] == messages[:20]
    assert "expected" in scan.damage


def test_one_bad_bag_does_not_keep_the_others_from_being_checked(tmp_path, capsys):
    bag(tmp_path / "b_good", MCAP)
    bag(tmp_path / "a_torn", SQLITE3, size=5000)
    file = file_of(tmp_path / "a_torn")
    content = bytearray(file.read_bytes())
    content[30 * PAGE : 34 * PAGE] = bytes(4 * PAGE)
    file.write_bytes(content)
    bag(tmp_path / "a_unreadable", MCAP)
    (tmp_path / "a_unreadable/label.yaml").symlink_to("/proc/self/mem")  # an OSError, for root too
    assert check_bags(Check((tmp_path,))) == 1
    said = capsys.readouterr()
    assert "# b_good: green" in said.out
    assert said.err.count("error: ") == 2
    (tmp_path / "a_unreadable/metadata.yaml").unlink()
    assert repair_bags(Repair((tmp_path,))) == 1
    said = capsys.readouterr()
    assert "# a_torn: repaired" in said.out
    assert "b_good: nothing to repair" in said.out


# metadata and labels


@pytest.mark.parametrize("text", ["", "- a", "rosbag2_bagfile_information: {version: 9", None])
def test_torn_metadata_lose_the_custom_data_and_the_report_says_so(tmp_path, text):
    path = tmp_path / "bag"
    messages = bag(path, MCAP)
    whole = (path / "metadata.yaml").read_text()
    (path / "metadata.yaml").write_text(whole[: len(whole) // 2] if text is None else text)
    report = repair(path)
    assert read(path) == messages
    assert "- metadata.yaml: custom data are lost: " in report.markdown()


def test_custom_data_survive_as_text(tmp_path):
    path = tmp_path / "bag"
    bag(path, MCAP)
    with information(path) as about:
        about["custom_data"] = {"outcome": 1, "operator": None}
        about["message_count"] = 61
    assert repair(path).damages == ()
    assert custom_data(path) == {"outcome": "1"}


def test_metadata_from_before_custom_data_lose_none(tmp_path):
    path = tmp_path / "bag"
    bag(path, SQLITE3)
    with information(path) as about:
        del about["custom_data"]
        about |= {"version": 5, "message_count": 61}
    assert repair(path).damages == ()


def test_a_label_written_by_hand_gives_no_times_and_becomes_custom_data(tmp_path):
    path = tmp_path / "bag"
    bag(path, MCAP)
    text = "instruction: put it there\noutcome: success\ngrasps: 2\nnotes:\n"
    (path / "label.yaml").write_text(text)
    report = check(path, {})
    assert report.is_green
    assert report.duration_s == pytest.approx(5.9)
    with information(path) as about:
        about["custom_data"] = {"outcome": "unknown", "site": "lab"}
        about["message_count"] = 61
    assert repair(path).damages == ()
    expected = {"instruction": "put it there", "outcome": "success", "grasps": "2", "site": "lab"}
    assert custom_data(path) == expected
    assert (path / "label.yaml").read_text() == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("episode: 3\noutcome: success", "instruction: missing key"),
        ("start_ns: 3\noutcome: success", "episode: missing key"),
        ("- a", "expected a mapping, got list"),
        ("", "expected a mapping, got NoneType"),
    ],
)
def test_a_broken_label_is_an_error(tmp_path, text, reason):
    path = tmp_path / "bag"
    bag(path, MCAP)
    (path / "label.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"label.yaml: {reason}"):
        check(path, {})
    (path / "metadata.yaml").unlink()
    with pytest.raises(ValueError, match=f"label.yaml: {reason}"):
        repair(path)
    assert sorted(file.name for file in path.iterdir()) == ["bag.mcap", "label.yaml"]


def test_killed_before_its_label_was_closed_an_episode_ends_with_its_last_message(tmp_path):
    path = tmp_path / "episode_000000"
    bag(path, MCAP)
    source = Provenance(embodiment="sim", embodiment_sha256="a", checkpoint="b", git_revision="c")
    Label(
        episode=0,
        instruction="put it",
        outcome="unknown",
        distractor_grasps=0,
        notes="",
        start_ns=S // 10,
        end_ns=0,
        ended="",
        is_green=None,
        provenance=source,
    ).save(path)
    report = check(path, {"/a": Expectation(max_gap_ns=S // 5)})
    assert report.duration_s == pytest.approx(5.9)
    assert report.reasons == ("ended without an operator: cut off",)


@pytest.mark.parametrize("plugin", [MCAP, SQLITE3])
@pytest.mark.parametrize(("back_ns", "is_red"), [(S // 20, False), (S, True)])
def test_a_clock_that_was_set_back_is_red(tmp_path, plugin, back_ns, is_red):
    writer = Writer(tmp_path / "bag", version=9, storage_plugin=plugin)
    with writer:
        store = get_typestore(Stores.ROS2_JAZZY)
        connection = writer.add_connection("/a", TYPES["/a"], typestore=store)
        for stamp_ns in (5 * S, 6 * S, 6 * S - back_ns, 7 * S):
            writer.write(connection, stamp_ns, b"\0\1\0\0" + bytes(5))
    reasons = ("the clock of the recorder goes back by 1.000 s",) if is_red else ()
    assert check(tmp_path / "bag", {}).reasons == reasons


def test_a_bag_without_messages_lasts_no_time(tmp_path):
    bag(tmp_path / "bag", MCAP, num=0)
    assert check(tmp_path / "bag", {}).duration_s == 0


# compression


@pytest.mark.parametrize("plugin", [MCAP, SQLITE3])
@pytest.mark.parametrize("is_lost", [True, False])
def test_messages_that_were_packed_are_unpacked(tmp_path, plugin, is_lost):
    path = tmp_path / "bag"
    messages = bag(path, plugin, compression=MESSAGE)
    assert read(path) == messages
    if is_lost:
        (path / "metadata.yaml").unlink()
    else:
        with information(path) as about:
            about["message_count"] = 61
    assert repair(path).damages == ()
    assert read(path) == messages
    assert check(path, {"/a": Expectation()}).is_green


@pytest.mark.parametrize("plugin", [MCAP, SQLITE3])
def test_packed_files_are_found_and_checked_and_repair_says_how_to_unpack_them(
    tmp_path, plugin, capsys
):
    path = tmp_path / "days/bag"
    path.parent.mkdir()
    messages = bag(path, plugin, compression=FILE)
    (file,) = path.glob("*.zstd")
    assert find_bags([tmp_path]) == [path]
    assert check_bags(Check((tmp_path,))) == 0
    assert "# bag: green" in capsys.readouterr().out
    assert repair(path) is None
    (path / "metadata.yaml").unlink()
    assert check_bags(Check((tmp_path,))) == 1
    with pytest.raises(ValueError, match=rf"run `zstd -dc {file} > {file.with_suffix('')}`"):
        repair(path)
    with storage.zstd.open(file) as packed:
        (path / file.stem).write_bytes(packed.read())
    assert repair(path) is not None
    assert read(path) == messages
    assert repair(path) is None


# types


def without_definition(path: Path, plugin: StoragePlugin, monkeypatch: pytest.MonkeyPatch) -> Read:
    """As `ros2 bag record` writes a topic whose definition it does not find."""
    if plugin is MCAP:
        write_schema = storage.write_schema
        with monkeypatch.context() as patch:
            patch.setattr(
                storage,
                "write_schema",
                lambda bio, schema: write_schema(
                    bio, schema._replace(encoding="", data="") if schema.name == ODD else schema
                ),
            )
            return bag(path, plugin, tuple(TYPES))
    messages = bag(path, plugin, tuple(TYPES))
    with closing(sqlite3.connect(file_of(path))) as database:
        database.execute(
            "UPDATE message_definitions SET encoding = 'unknown', encoded_message_definition = ''"
            f" WHERE topic_type = '{ODD}'"
        )
        database.commit()
    return messages


def test_a_type_that_nobody_knows_is_named_and_its_stamps_are_not_checked(tmp_path, monkeypatch):
    path = tmp_path / "bag"
    without_definition(path, MCAP, monkeypatch)
    report = check(path, {"/odd": Expectation(max_gap_ns=S, max_age_ns=S)})
    assert report.is_green
    assert {topic.name: topic.count for topic in report.topics} == dict.fromkeys(TYPES, 60)
    assert "- type foo_msgs/msg/Odd unknown: stamps not checked\n" in report.markdown("bag")


@pytest.mark.parametrize("plugin", [MCAP, SQLITE3])
def test_a_topic_of_a_type_that_nobody_knows_is_repaired_with_the_others(
    tmp_path, plugin, monkeypatch
):
    path = tmp_path / "bag"
    messages = without_definition(path, plugin, monkeypatch)
    (path / "metadata.yaml").unlink()
    report = repair(path)
    assert report.damages == ("/odd: type foo_msgs/msg/Odd unknown, kept without definition",)
    assert read(path) == messages
    assert check(path, {}).remarks == ("type foo_msgs/msg/Odd unknown: stamps not checked",)
    with Reader(path) as reader:
        defined = {c.topic: bool(c.msgdef.data) for c in reader.connections}
        assert defined == {"/a": True, "/states": True, "/odd": False}
    assert repair(path) is None


def test_types_that_an_old_bag_does_not_define_are_those_installed_here(tmp_path):
    """sqlite3 bags of Humble and before; the stamps are decades old."""
    path = tmp_path / "bag"
    messages = bag(path, SQLITE3, ("/a", "/states"))
    with closing(sqlite3.connect(file_of(path))) as database:
        database.execute("DROP TABLE message_definitions")
        database.execute("UPDATE schema SET schema_version = 3")
        database.commit()
    report = check(path, {"/states": Expectation(max_age_ns=S)})
    assert report.remarks == ()
    assert [text[:16] for text in report.reasons] == ["/states: 50 of 6"]
    (path / "metadata.yaml").unlink()
    assert repair(path).damages == ()
    assert read(path) == messages
    with Reader(path) as reader:
        assert all(connection.msgdef.data for connection in reader.connections)


def test_a_definition_of_the_bag_is_stronger_than_that_of_the_installation():
    others = Definitions(message_folders())
    definitions = Definitions.of_bag(others)
    assert definitions.knows("std_msgs/msg/String")
    definitions.learn("std_msgs/msg/String", "int32 theirs", "ros2msg")
    definitions.learn_if_usable("std_msgs/msg/Bool", "", "unknown")
    hashes = [d.type_hash("std_msgs/msg/String") for d in (definitions, others)]
    assert hashes[0] != hashes[1]
    assert definitions.knows("std_msgs/msg/Bool")
    definitions.learn("foo/msg/Half", "foo/Missing x", "ros2msg")
    assert not definitions.knows("foo/msg/Half")
    assert not definitions.knows("foo/msg/Missing")


def test_a_new_bag_names_two_topics_of_one_undefined_type(tmp_path):
    path = tmp_path / "bag"
    writer = BagWriter(path, Definitions.of_bag())
    for stamp_ns, name in enumerate(("/x", "/y"), start=1):
        writer.add_undefined(Topic(name, ODD))
        writer.write(Topic(name, ODD), stamp_ns, b"....")
    writer.close({})
    assert read(path) == [("/x", 1, b"...."), ("/y", 2, b"....")]
    assert damage_of(path) == ""


# limits, publishers


def test_a_compressed_camera_keeps_to_the_limits_of_the_camera():
    embodiment = Embodiment.load(SIM)
    name = f"{embodiment.cameras[0].topic}/compressed"
    expected = expectations(replace(embodiment, record=(name,), record_optional=()), str)
    assert expected == {name: Expectation(400_000_000, 400_000_000)}
    audit = Audit(expected, 0)
    for received_ns in (S // 10, 10 * S):
        audit.add(name, received_ns, S // 10)
    assert len(audit.report(10 * S, {}, ()).reasons) == 2


def test_a_publisher_may_tell_no_type_hash_but_no_other_one():
    rclpy = pytest.importorskip("rclpy.type_hash")
    from rclpy.qos import QoSProfile

    from nora_bringup.nodes.raw_subscriptions import _topic

    name = "sensor_msgs/msg/JointState"
    definitions = Definitions(())
    ours = bytes.fromhex(definitions.type_hash(name).removeprefix("RIHS01_"))
    valid, other = rclpy.TypeHash(1, ours), rclpy.TypeHash(1, b"x" * 32)
    none = (rclpy.TypeHash(), rclpy.TypeHash(0), rclpy.TypeHash(1))

    def topic(*hashes: object) -> Topic:
        qos = QoSProfile(depth=1)
        publishers = [
            SimpleNamespace(topic_type=name, topic_type_hash=type_hash, qos_profile=qos)
            for type_hash in hashes
        ]
        return _topic("/joint_states", publishers, definitions)

    assert topic(valid) == topic(*none, valid) == topic(*none)
    with pytest.raises(ValueError, match=f"expected hash {valid}, the publisher has {other}"):
        topic(*none, other)
    with pytest.raises(ValueError, match="expected publishers of one type, got"):
        topic(valid, other)


def test_a_fault_of_our_own_code_is_no_damage(tmp_path, monkeypatch):
    bag(tmp_path / "bag", MCAP)

    def add(*arguments: object) -> None:
        raise TypeError("ours")

    monkeypatch.setattr(Audit, "add", add)
    with pytest.raises(TypeError, match="ours"):
        check(tmp_path / "bag", {})
    monkeypatch.setattr(McapScan, "_add_channel", add)
    with pytest.raises(TypeError, match="ours"):
        list(McapScan(file_of(tmp_path / "bag"), Definitions.of_bag()).messages())
