"""Bags in, episodes out; bad bags refused whole, with one line."""

import copy
import dataclasses
import shutil
import zlib

import cv2
import demo_bags
import numpy as np
import pytest
from demo_bags import EMBODIMENT, INSTRUCTION, START_NS, STEP_NS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nora_core.bags.folders import find_bags
from nora_core.types import Observation, Outcome, Rejection
from nora_training.data.bag_reader import Bag, bag_sha256
from nora_training.data.episodes import observations, read_episode

NUM_STEPS = 16
ACTIONS = demo_bags.script(NUM_STEPS)
MOVING = np.delete(np.arange(NUM_STEPS), demo_bags.PAUSES)
STAMPS = START_NS + STEP_NS * MOVING


def episode_of(folder, source="auto"):
    with Bag.open(folder) as bag:
        return read_episode(bag, EMBODIMENT, source)


def use(folder):
    """All that a conversion reads."""
    with Bag.open(folder) as bag:
        episode = read_episode(bag, EMBODIMENT)
        return episode, list(observations(bag, episode, EMBODIMENT))


def without(records, *topics):
    return [record for record in records if not record.topic.endswith(topics)]


def changed(records, topic, index, **fields):
    """With other `fields` in the message of that place among those of `topic`."""
    records = list(records)
    places = [i for i, record in enumerate(records) if record.topic.endswith(topic)]
    item = copy.deepcopy(records[places[index]])
    for name, value in fields.items():
        setattr(item.msg, name, value)
    records[places[index]] = item
    return records


@pytest.fixture(scope="module")
def records():
    return demo_bags.record(NUM_STEPS)


@pytest.fixture(scope="module")
def good_bag(records, tmp_path_factory):
    return demo_bags.write(tmp_path_factory.mktemp("good") / "bag", records)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_an_episode_is_what_was_commanded_and_seen(tmp_path, records, storage, compress):
    bag = demo_bags.write(tmp_path / "bag", records, storage, compress=compress)
    episode, seen = use(bag)
    assert (episode.instruction, episode.outcome) == (INSTRUCTION, Outcome.SUCCESS)
    assert (episode.source, episode.num_periods) == ("command", NUM_STEPS)
    np.testing.assert_array_equal(episode.stamps_N, STAMPS)
    np.testing.assert_allclose(episode.actions_NA, ACTIONS[MOVING], atol=1e-12)
    images = {r.log_ns: r.msg.data for r in records if r.topic.endswith("image_raw")}
    for observation, stamp_ns in zip(seen, STAMPS.tolist(), strict=True):
        assert isinstance(observation, Observation)
        assert (observation.stamp_ns, observation.instruction) == (stamp_ns, INSTRUCTION)
        np.testing.assert_array_equal(observation.images[0].ravel(), images[stamp_ns])


def compressed(records, change=lambda data: data):
    """With PNGs in place of raw images."""

    def replace(record):
        if not record.topic.endswith("image_raw"):
            return record
        rgb = record.msg.data.reshape(record.msg.height, record.msg.width, 3)
        data = change(cv2.imencode(".png", rgb[..., ::-1])[1])
        fields = {"header": record.msg.header, "format": "rgb8; png compressed bgr8", "data": data}
        type_name = "sensor_msgs/msg/CompressedImage"
        msg = demo_bags.message(type_name, **fields)
        topic = f"{record.topic}/compressed"
        return demo_bags.Record(topic, type_name, record.log_ns, msg)

    return [replace(record) for record in records]


def test_compressed_images_are_decoded(tmp_path, records, good_bag):
    episode, seen = use(demo_bags.write(tmp_path / "bag", compressed(records)))
    same, expected = use(good_bag)
    np.testing.assert_array_equal(episode.actions_NA, same.actions_NA)
    for one, other in zip(seen, expected, strict=True):
        assert one.stamp_ns == other.stamp_ns
        np.testing.assert_array_equal(one.images, other.images)
    # With both in the bag the raw ones are used.
    spoiled = [r for r in compressed(records, lambda data: data[:20]) if "image" in r.topic]
    _, seen = use(demo_bags.write(tmp_path / "both", [*records, *spoiled]))
    np.testing.assert_array_equal(seen[3].images, expected[3].images)


def test_images_that_cannot_be_decoded_are_refused(tmp_path, records):
    for number, size in enumerate((0, 20)):
        spoiled = compressed(records, lambda data, size=size: data[:size])
        with pytest.raises(ValueError, match=rf"expected an image, got {size} bytes, 'rgb8; png"):
            use(demo_bags.write(tmp_path / str(number), spoiled))


def test_an_image_with_a_size_that_none_has_is_refused(tmp_path, records):
    def change(data):
        spoiled = bytearray(data)
        spoiled[16:24] = (65535).to_bytes(4, "big") * 2
        spoiled[29:33] = zlib.crc32(spoiled[12:29]).to_bytes(4, "big")
        return np.frombuffer(spoiled, np.uint8)

    with pytest.raises(ValueError, match="that cannot be decoded"):
        use(demo_bags.write(tmp_path / "bag", compressed(records, change)))


@pytest.mark.parametrize("storage", ["mcap", "mcap_zstd", "sqlite3"])
def test_a_clock_that_is_set_back_is_noticed(tmp_path, records, storage):
    middle_ns, back_ns = START_NS + 8 * STEP_NS, 5 * STEP_NS + STEP_NS // 2
    storage, _, zstd = storage.partition("_")
    later = [copy.deepcopy(record) for record in records if record.log_ns > middle_ns]
    for record in later:
        record.log_ns -= back_ns
        frame = record.msg.header.frame_id
        record.msg.header = demo_bags.header(record.log_ns, frame)
    earlier = [record for record in records if record.log_ns <= middle_ns]
    bag = demo_bags.write(tmp_path / "bag", [*earlier, *later], storage, compress=bool(zstd))
    with pytest.raises(ValueError, match=r"recorder's clock that goes on, .* goes back by 1\.\d"):
        use(bag)


def test_numbers_in_the_custom_data_are_text(tmp_path, records):
    bag = demo_bags.write(tmp_path / "bag", records)
    path = bag / "metadata.yaml"
    path.write_text(path.read_text().replace("outcome: success", "outcome: 1"))
    with pytest.raises(ValueError, match=r"outcome: expected one of .* '1'"):
        use(bag)


def test_of_a_gap_in_the_measured_poses_nothing_is_made_up(tmp_path, records):
    gap = range(START_NS + 4 * STEP_NS + 1, START_NS + 12 * STEP_NS)
    left = [
        record
        for record in records
        if not (record.topic.endswith(("ee_pose", "joint_states")) and record.log_ns in gap)
    ]
    episode = episode_of(demo_bags.write(tmp_path / "commanded", left))
    is_in_gap = (episode.stamps_N > gap.start - STEP_NS // 2) & (episode.stamps_N < gap.stop)
    for values in (episode.measured_N6, episode.positions_N3):
        np.testing.assert_array_equal(np.isnan(values).all(axis=1), is_in_gap)
    bag = demo_bags.write(tmp_path / "measured", without(left, "bridge/command"))
    with pytest.raises(ValueError, match=r"ee_pose: expected gaps up to 0.4 s, got 1\.6"):
        episode_of(bag)


@pytest.mark.parametrize("source", ["ee_pose", "joint_states"])
def test_without_commands_actions_are_measured(tmp_path, records, source):
    missing = ["bridge/command"] + ["bridge/ee_pose"] * (source == "joint_states")
    bag = demo_bags.write(tmp_path / "bag", without(records, *missing))
    episode = episode_of(bag)
    assert episode.source == source
    # The measured arm lags behind, but gets there.
    total = episode.actions_NA[:, :3].sum(axis=0)
    np.testing.assert_allclose(total, ACTIONS[:, :3].sum(axis=0), atol=5e-3)
    assert episode.actions_NA[0, 6] > 0.9
    assert episode.actions_NA[-1, 6] < 0.1


def test_the_source_can_be_chosen(good_bag):
    poses = episode_of(good_bag, "ee_pose")
    joints = episode_of(good_bag, "joint_states")
    assert (poses.source, joints.source) == ("ee_pose", "joint_states")
    np.testing.assert_allclose(poses.actions_NA, joints.actions_NA, atol=1e-6)
    np.testing.assert_allclose(poses.measured_N6, poses.actions_NA[:, :6], atol=1e-12)


def test_instruction_and_outcome_may_come_from_the_topics(tmp_path, records):
    begin, stop = int(STAMPS[2]), int(STAMPS[-3])
    said = [demo_bags.text(INSTRUCTION, begin), demo_bags.text("", stop)]
    told = [demo_bags.outcome(3, begin), demo_bags.outcome(2, stop)]
    bag = demo_bags.write(tmp_path / "bag", [*records, *said, *told], labels={})
    episode = episode_of(bag)
    assert (episode.instruction, episode.outcome) == (INSTRUCTION, Outcome.PARTIAL)
    np.testing.assert_array_equal(episode.stamps_N, STAMPS[2:-3])


def test_the_label_file_wins_and_changes_the_hash(tmp_path, good_bag):
    bag = shutil.copytree(good_bag, tmp_path / "bag")
    assert bag_sha256(bag) == bag_sha256(good_bag)
    (bag / "label.yaml").write_text(
        "outcome: failure\nnotes: null\nprovenance: {checkpoint: ''}\n"
    )
    episode = episode_of(bag)
    assert (episode.instruction, episode.outcome) == (INSTRUCTION, Outcome.FAILURE)
    assert bag_sha256(bag) != bag_sha256(good_bag)


def test_a_camera_that_pauses_leaves_steps_without_observation(tmp_path, records):
    first, last = START_NS + 4 * STEP_NS, START_NS + 9 * STEP_NS
    kept = [r for r in records if not (r.topic.endswith("image_raw") and first < r.log_ns < last)]
    _, seen = use(demo_bags.write(tmp_path / "bag", kept))
    problems = [s.detail for s in seen if isinstance(s, Rejection)]
    max_age_ns = EMBODIMENT.cameras[0].max_age_s * 1e9
    late = (first + max_age_ns < STAMPS) & (last > STAMPS)
    assert [isinstance(s, Rejection) for s in seen] == late.tolist()
    assert late.any()
    assert all("image is" in problem for problem in problems)


def test_bags_are_found_at_any_depth(tmp_path, good_bag):
    for name in ("a/b/c", "d"):
        shutil.copytree(good_bag, tmp_path / name)
    (tmp_path / "cut_off").mkdir()
    (tmp_path / "cut_off/x_0.mcap").write_bytes(b"")
    found = find_bags((tmp_path, tmp_path / "d"))
    assert found == [tmp_path / "a/b/c", tmp_path / "cut_off", tmp_path / "d"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_bags((tmp_path / "nowhere",))
    (tmp_path / "empty").mkdir()
    assert find_bags((tmp_path / "empty",)) == [tmp_path / "empty"]


# bad bags

FUTURE = demo_bags.header(START_NS + 10**12)
PAST = demo_bags.header(START_NS - 10**9)
BAD = {
    "image_raw: images are missing": lambda r: without(r, "image_raw"),
    r"image_raw: expected type sensor_msgs/msg/Image, got std_msgs/msg/String": lambda r: [
        *without(r, "image_raw"),
        *[
            dataclasses.replace(demo_bags.text("x", s.log_ns), topic=s.topic)
            for s in r
            if s.topic.endswith("image_raw")
        ],
    ],
    r"image encoding: expected rgb8, got 'mono8'": lambda r: changed(
        r, "image_raw", 0, encoding="mono8"
    ),
    r"image data: expected": lambda r: changed(r, "image_raw", 0, data=np.zeros(3, np.uint8)),
    r"image_raw: expected a clock that goes on, got one that goes back": lambda r: changed(
        r, "image_raw", 5, header=PAST
    ),
    r"bridge/command: expected a clock that goes on": lambda r: changed(
        r, "bridge/command", 5, header=PAST
    ),
    r"bridge/command: expected stamps of the recorder's clock": lambda r: changed(
        r, "bridge/command", -1, header=FUTURE
    ),
    r"bridge/command: expected frame base_link, got 'tool'": lambda r: changed(
        r, "bridge/command", 5, header=demo_bags.header(START_NS + 5 * STEP_NS, "tool")
    ),
    r"bridge/ee_pose: expected frame base_link, got 'camera'": lambda r: changed(
        r, "bridge/ee_pose", 5, header=demo_bags.header(START_NS + STEP_NS // 2, "camera")
    ),
    r"bridge/command: expected finite numbers": lambda r: changed(
        r, "bridge/command", 5, translation=demo_bags.vector([np.nan, 0, 0])
    ),
    r"commands: expected one at a time": lambda r: changed(
        r, "bridge/command", 5, header=demo_bags.header(START_NS + 4 * STEP_NS)
    ),
    r"joint_states: expected joints .* of which \['waist'": lambda r: changed(
        r, "joint_states", 5, name=[f"other{i}" for i in range(7)]
    ),
    r"joint_states: expected 7 positions, one per name, got 6": lambda r: changed(
        r, "joint_states", 5, position=np.zeros(6)
    ),
    r"expected actions from auto, available: none": lambda r: without(
        r, "bridge/command", "ee_pose", "joint_states"
    ),
    r"motion is missing in": lambda r: [
        demo_bags.command(np.array([0, 0, 0, 0, 0, 0, 1.0]), s.log_ns)
        if s.topic.endswith("command")
        else s
        for s in r
    ],
    r"camera/image_raw: expected one topic of that name": lambda r: [
        *r,
        dataclasses.replace(r[0], topic="/other/camera/image_raw"),
    ],
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_bags_are_refused_in_one_line(tmp_path, records, reason):
    bag = demo_bags.write(tmp_path / "bag", BAD[reason](records))
    with pytest.raises(ValueError, match=reason) as caught:
        use(bag)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (
            {**demo_bags.LABELS, "embodiment": "widowx"},
            "embodiment: expected sim_widowx, got widowx",
        ),
        ({**demo_bags.LABELS, "outcome": "splendid"}, "outcome: expected one of .* 'SPLENDID'"),
        ({}, r"instruction: expected one in the labels or the topic, got \[\]"),
    ],
)
def test_bad_labels_are_refused(tmp_path, records, labels, reason):
    with pytest.raises(ValueError, match=reason):
        use(demo_bags.write(tmp_path / "bag", records, labels=labels))


def test_two_instructions_are_not_one_episode(tmp_path, records):
    said = [demo_bags.text(word, START_NS) for word in ("put this there", "put that here")]
    with pytest.raises(ValueError, match=r"expected one .*'put that here', 'put this there'"):
        use(demo_bags.write(tmp_path / "bag", [*records, *said], labels={}))


def test_a_bag_without_metadata_names_the_repair(tmp_path, good_bag):
    bag = shutil.copytree(good_bag, tmp_path / "bag")
    (bag / "metadata.yaml").unlink()
    with pytest.raises(ValueError, match=r"metadata.yaml is missing; `nora bags repair`"):
        use(bag)


def test_lost_messages_are_noticed(tmp_path, good_bag):
    bag = shutil.copytree(good_bag, tmp_path / "bag")
    path = bag / "metadata.yaml"
    text = path.read_text()
    assert text.count(f"message_count: {NUM_STEPS}\n") == 1
    path.write_text(
        text.replace(f"message_count: {NUM_STEPS}\n", f"message_count: {NUM_STEPS + 1}\n")
    )
    with pytest.raises(ValueError, match=rf"expected {NUM_STEPS + 1} messages, got {NUM_STEPS}"):
        use(bag)


@pytest.mark.parametrize("kind", ["mcap", "mcap_zstd", "sqlite3", "sqlite3_zstd"])
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_a_damaged_bag_is_used_whole_or_refused(tmp_path_factory, kind, data):
    storage, _, zstd = kind.partition("_")
    whole = tmp_path_factory.getbasetemp() / f"whole_{kind}"
    if not whole.exists():
        demo_bags.write(whole, demo_bags.record(), storage, compress=bool(zstd))
    bag = whole.with_name(f"damaged_{kind}")
    shutil.rmtree(bag, ignore_errors=True)
    shutil.copytree(whole, bag)
    path = data.draw(st.sampled_from(sorted(bag.iterdir())))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut off"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if content and data.draw(st.booleans(), "zeroed"):  # a page that never reached the disk
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    path.write_bytes(content)
    try:
        episode, seen = use(bag)
    except ValueError as error:
        said = str(error)
    else:
        said = ""
        assert len(seen) == len(episode.stamps_N) == len(episode.actions_NA)
        assert np.isfinite(episode.actions_NA).all()
    assert "\n" not in said
