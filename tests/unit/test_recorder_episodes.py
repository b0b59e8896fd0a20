"""Episodes: numbers, labels, discards, and every way in which one ends by itself."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader

from nora_core.bags.audit import Expectation
from nora_core.bags.definitions import Definitions
from nora_core.bags.label import Label, Provenance
from nora_core.bags.recorder import EndError, Recorder, StartError
from nora_core.bags.recording import Item
from nora_core.bags.repair import damage_of, repair
from nora_core.bags.writer import Topic
from nora_core.types import Rejection

S = 10**9
ZERO = QosTime(0, 0)
LATCHED = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    ZERO,
    ZERO,
    QosLiveliness.AUTOMATIC,
    ZERO,
    False,
)
STATES = Topic("/nora/joint_states", "sensor_msgs/msg/JointState")
INSTRUCTION = Topic("/nora/instruction", "std_msgs/msg/String", (LATCHED,))
EXPECTED = {STATES.name: Expectation(S, S), INSTRUCTION.name: Expectation()}
SOURCE = Provenance(
    embodiment="sim_widowx",
    embodiment_sha256="ab" * 32,
    checkpoint="tiny@0123",
    git_revision="cafe",
)


def make(directory: Path, min_free_bytes: int = 0) -> Recorder:
    return Recorder(
        directory=directory,
        provenance=SOURCE,
        definitions=Definitions(()),
        expected=EXPECTED,
        min_free_bytes=min_free_bytes,
    )


def reason(rejection: Rejection | None) -> StartError | EndError:
    assert rejection is not None
    return rejection.reason


def state(at_ns: int, size: int = 100) -> Item:
    sec, nanosec = divmod(at_ns, S)
    data = b"\0\1\0\0" + sec.to_bytes(4, "little") + nanosec.to_bytes(4, "little")
    return Item(STATES, at_ns, data + bytes(size))


def put_seconds(recorder: Recorder, start_ns: int, seconds: float = 1.0, size: int = 100) -> int:
    """States at 10 Hz and, before them, an instruction; the time of the last."""
    recorder.put(Item(INSTRUCTION, start_ns, b"\0\1\0\0\3\0\0\0it\0"))
    times_ns = [start_ns + i * S // 10 for i in range(int(seconds * 10) + 1)]
    for at_ns in times_ns:
        recorder.put(state(at_ns, size))
    return times_ns[-1]


def messages(folder: Path) -> list[tuple[str, int]]:
    with Reader(folder) as reader:
        return [(c.topic, stamp_ns) for c, stamp_ns, _ in reader.messages()]


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Every write beyond `size` bytes of a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_an_episode_is_a_bag_a_label_and_an_audit(tmp_path):
    recorder = make(tmp_path / "sim_widowx")
    assert recorder.start("put it there", "morning", S) is None
    end_ns = put_seconds(recorder, S)
    ended = recorder.end(
        outcome=1, distractor_grasps=2, notes="noon", now_ns=end_ns, unpublished=()
    )
    assert ended.rejection is None
    assert ended.report is not None
    assert ended.report.reasons == ()
    folder = tmp_path / "sim_widowx" / "episode_000000"
    label = Label.load(folder)
    assert label == Label(
        episode=0,
        instruction="put it there",
        outcome="success",
        distractor_grasps=2,
        notes="morning\nnoon",
        start_ns=S,
        end_ns=2 * S,
        ended="operator",
        is_green=True,
        provenance=SOURCE,
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "audit.md",
        "episode_000000.mcap",
        "label.yaml",
        "metadata.yaml",
    ]
    with Reader(folder) as reader:
        assert reader.message_count == 12
    text = (folder / "metadata.yaml").read_text()
    for value in ("put it there", "success", "ab" * 32, "tiny@0123", "cafe"):
        assert value in text


def test_numbers_go_on_after_a_restart_and_over_gaps(tmp_path):
    (tmp_path / "episode_000041").mkdir()
    recorder = make(tmp_path)
    for number in (42, 43):
        assert recorder.start("go", "", S) is None
        assert recorder.label is not None
        assert recorder.label.episode == number
        recorder.end(outcome=3, distractor_grasps=0, notes="", now_ns=S, unpublished=())
    recorder = make(tmp_path)
    recorder.start("go", "", S)
    assert recorder.folder == tmp_path / "episode_000044"
    assert recorder.discard().rejection is None
    assert not (tmp_path / "episode_000044").exists()
    assert reason(recorder.discard().rejection) is EndError.NO_EPISODE


def test_wrong_requests_have_their_codes(tmp_path):
    recorder = make(tmp_path)
    assert (
        reason(
            recorder.end(
                outcome=1, distractor_grasps=0, notes="", now_ns=S, unpublished=()
            ).rejection
        )
        is EndError.NO_EPISODE
    )
    assert reason(recorder.start("  ", "", S)) is StartError.INVALID_REQUEST
    assert recorder.start("go", "", S) is None
    assert reason(recorder.start("go", "", S)) is StartError.EPISODE_OPEN
    wrong = recorder.end(outcome=9, distractor_grasps=0, notes="", now_ns=S, unpublished=())
    text = "outcome: expected one of [0, 1, 2, 3], got 9"
    assert wrong.rejection == Rejection(EndError.INVALID_OUTCOME, text)
    assert recorder.is_recording
    assert (
        recorder.end(outcome=0, distractor_grasps=0, notes="", now_ns=S, unpublished=()).rejection
        is None
    )


def test_a_latched_message_opens_every_episode(tmp_path):
    recorder = make(tmp_path)
    recorder.put(Item(INSTRUCTION, 1, b"\0\1\0\0\3\0\0\0it\0"))
    recorder.put(state(2))
    for start_ns in (S, 5 * S):
        recorder.start("go", "", start_ns)
        recorder.put(state(start_ns + 1))
        recorder.end(outcome=1, distractor_grasps=0, notes="", now_ns=start_ns + 1, unpublished=())
        assert recorder.folder is not None
        expected = [(INSTRUCTION.name, start_ns), (STATES.name, start_ns + 1)]
        assert messages(recorder.folder) == expected


def test_a_topic_that_nobody_publishes_is_red_and_named(tmp_path):
    recorder = make(tmp_path)
    recorder.start("go", "", S)
    ended = recorder.end(
        outcome=1, distractor_grasps=0, notes="", now_ns=S, unpublished=[STATES.name]
    )
    assert ended.report is not None
    assert ended.report.reasons == (
        "/nora/joint_states: no message (nobody publishes it)",
        "/nora/instruction: no message",
    )
    assert recorder.folder is not None
    assert not Label.load(recorder.folder).is_green
    assert "RED" in (recorder.folder / "audit.md").read_text()


def test_an_open_episode_is_closed_as_unknown_and_says_so(tmp_path):
    recorder = make(tmp_path)
    recorder.start("go", "", S)
    end_ns = put_seconds(recorder, S)
    told = recorder.close("the recorder node ended", end_ns, ())
    assert "outcome unknown: the recorder node ended" in told
    assert recorder.folder is not None
    label = Label.load(recorder.folder)
    assert (label.outcome, label.ended) == ("unknown", "the recorder node ended")
    assert label.is_green is False
    assert len(messages(recorder.folder)) == 12
    assert recorder.close("again", end_ns, ()) is None
    assert recorder.end(
        outcome=1, distractor_grasps=0, notes="", now_ns=end_ns, unpublished=()
    ).rejection == Rejection(EndError.NO_EPISODE, told)


def test_a_full_disk_refuses_an_episode_and_ends_one(tmp_path):
    full = make(tmp_path, min_free_bytes=2**62)
    rejection = full.start("go", "", S)
    assert reason(rejection) is StartError.DISK_FULL
    assert "expected at least 4611686018.427 GB of free space, got" in rejection.detail
    assert list(tmp_path.iterdir()) == []

    recorder = make(tmp_path)
    recorder.start("go", "", S)
    end_ns = put_seconds(recorder, S)
    assert recorder.watch(end_ns, ()) is None
    recorder._min_free_bytes = 2**62  # the disk fills up
    told = recorder.watch(end_ns, ())
    assert "outcome unknown" in told
    assert "of free space" in told
    assert not recorder.is_recording
    assert recorder.folder is not None
    assert damage_of(recorder.folder) == ""
    assert "of free space" in (recorder.folder / "audit.md").read_text()


def test_a_write_error_ends_the_episode_and_repair_rescues_the_rest(tmp_path):
    recorder = make(tmp_path)
    recorder.start("go", "", S)
    with files_end_at(2_500_000):
        end_ns = put_seconds(recorder, S, seconds=5.0, size=100_000)
        deadline = time.monotonic() + 10
        while not (told := recorder.watch(end_ns, ())):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "File too large" in told
    folder = recorder.folder
    assert folder is not None
    label = Label.load(folder)
    assert (label.outcome, label.is_green) == ("unknown", False)
    assert "run `nora bags repair`" in (folder / "audit.md").read_text()
    assert damage_of(folder)
    report = repair(folder)
    assert report is not None
    assert 15 <= report.counts[STATES.name] < 51
    assert damage_of(folder) == ""
    assert [t for t, _ in messages(folder)].count(STATES.name) == report.counts[STATES.name]
    assert recorder.start("go", "", end_ns) is None
    recorder.discard()


def test_a_folder_that_cannot_be_written_is_a_code_not_a_crash(tmp_path):
    (tmp_path / "file").write_text("")
    rejection = make(tmp_path / "file").start("go", "", S)
    assert reason(rejection) is StartError.WRITE_FAILED
    assert "file" in rejection.detail


def test_what_waits_for_a_slow_disk_is_bounded_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("nora_core.bags.recording.MAX_WAITING_BYTES", 1000)
    recorder = make(tmp_path)
    recorder.start("go", "", S)
    recorder.put(replace(state(S), data=bytes(5000)))
    assert recorder.num_dropped == 1
    put_seconds(recorder, S, 0.0)
    ended = recorder.end(outcome=1, distractor_grasps=0, notes="", now_ns=S, unpublished=())
    assert ended.report is not None
    assert ended.report.reasons == ("1 messages dropped: the disk is too slow",)


@pytest.mark.parametrize("times", [3])
def test_flushes_happen_while_messages_come_and_while_none_do(tmp_path, times):
    recorder = make(tmp_path)
    recorder.start("go", "", S)
    assert recorder.folder is not None
    bag = next(recorder.folder.glob("*.mcap"))
    for number in range(times):
        size = bag.stat().st_size
        recorder.put(state(S + number))
        deadline = time.monotonic() + 5
        while bag.stat().st_size < size + 100:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    recorder.discard()
