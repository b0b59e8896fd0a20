"""To LeRobot and back: actions and stamps to the bit, images as well as the codec can."""

import dataclasses
import hashlib
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nora_core.embodiment import Embodiment
from nora_training import dataset_command as cli
from nora_training.data.dataset import (
    EPISODES,
    NO_IMAGE,
    Dataset,
    Entry,
    Settings,
    Steps,
    create_images,
    save_episode,
    write_index,
)
from nora_training.lerobot import exporting
from nora_training.lerobot.video import VideoReader, VideoWriter

CONFIG = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
SIZE = 32
CAMERAS = [camera.name for camera in Embodiment.load(CONFIG).cameras]
NAMES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
INT64 = st.integers(-(2**63), 2**63 - 1)


def nora_dataset(*arguments) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nora-dataset", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    return end.value.code


def import_lerobot(folder, out, *arguments) -> int:
    given = ("--embodiment", CONFIG, "--out", out, "--image-size", SIZE, *arguments)
    return nora_dataset("import-lerobot", folder, *given)


def pictures(num: int, seed: int) -> np.ndarray:
    """A soft pattern that moves, as a camera's: noise is no measure for a codec."""
    at = np.arange(SIZE) / SIZE
    wave = np.sin(
        2 * np.pi * (at[:, None] + at[None, :]) + seed + 0.3 * np.arange(num)[:, None, None]
    )
    return np.stack([127 + 100 * wave, 120 + 80 * wave, 60 + 50 * wave], axis=-1).astype(np.uint8)


def make(root: Path, episodes: list[Steps], instructions: list[str]) -> Dataset:
    entries = []
    for i, (steps, instruction) in enumerate(zip(episodes, instructions, strict=True)):
        num = len(steps.stamps_N)
        entry = Entry(
            sha256=hashlib.sha256(str(i).encode()).hexdigest(),
            bag=f"bags/{i}",
            instruction=instruction,
            outcome="SUCCESS" if i else "FAILURE",
            source="command",
            num_periods=num + 3,
            num_steps=num,
            num_observed=int(steps.is_observed_N.sum()),
        )
        folder = root / EPISODES / entry.folder
        folder.mkdir(parents=True)
        save_episode(folder, entry, steps)
        for k, camera in enumerate(CAMERAS):
            create_images(folder, camera, num, SIZE)[:] = pictures(num, 10 * i + k)
        entries.append(entry)
    shutil.copyfile(CONFIG, root / "embodiment.yaml")
    digest = hashlib.sha256(CONFIG.read_bytes()).hexdigest()
    write_index(root, Settings(SIZE, "auto", digest), entries, 0.1)
    return Dataset.load(root)


def walk(num: int, seed: int = 0) -> Steps:
    rng = np.random.default_rng(seed)
    actions = rng.normal(0.0, 0.01, (num, 7))
    actions[:, 6] = rng.uniform(size=num) > 0.5
    stamps = 1_700_000_000_123_456_789 + np.cumsum(rng.integers(2, 5, num)) * 200_000_000
    return Steps(
        stamps, stamps - 7_654_321, actions, actions[:, :6] * 0.9, rng.normal(size=(num, 3))
    )


@st.composite
def episodes(draw: st.DrawFn) -> Steps:
    num = draw(st.integers(1, 4))
    stamps = arrays.arrays(np.int64, num, elements=INT64)
    floats = st.floats(-1e3, 1e3)
    return Steps(
        draw(stamps),
        draw(stamps),
        draw(arrays.arrays(np.float64, (num, 7), elements=floats)),
        draw(arrays.arrays(np.float64, (num, 6), elements=floats | st.just(np.nan))),
        draw(arrays.arrays(np.float64, (num, 3), elements=floats | st.just(np.nan))),
    )


@settings(max_examples=12, deadline=None)
@given(many=st.lists(episodes(), min_size=1, max_size=4), file_frames=st.integers(1, 5))
def test_there_and_back_every_number_is_the_same(many, file_frames):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "FILE_FRAMES", file_frames)  # one file, several, one each
        root = Path(name)
        ours = make(root / "ours", many, [f"task {i % 2}" for i in range(len(many))])
        list(exporting.Export(root / "ours", root / "theirs", crf=0).run(ours))
        assert import_lerobot(root / "theirs", root / "back") == 0
        back = Dataset.load(root / "back")
        assert back.entries == ours.entries
        for entry in ours.entries:
            for field in dataclasses.fields(Steps):
                one, other = (getattr(d.steps(entry), field.name) for d in (ours, back))
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
            for camera in CAMERAS:
                np.testing.assert_array_equal(
                    ours.images(entry, camera), back.images(entry, camera)
                )
            assert back.split(entry) == ours.split(entry)


@pytest.fixture
def ours(tmp_path) -> Dataset:
    return make(tmp_path / "ours", [walk(9), walk(5, 1)], ["push it", "lift it"])


def test_images_come_back_within_the_error_of_the_codec(ours, tmp_path):
    assert nora_dataset("export-lerobot", ours.root, "--out", tmp_path / "theirs") == 0
    assert import_lerobot(tmp_path / "theirs", tmp_path / "back") == 0
    back = Dataset.load(tmp_path / "back")
    for entry in ours.entries:
        before = ours.images(entry, CAMERAS[0]).astype(float)
        error = np.abs(before - back.images(entry, CAMERAS[0]))
        assert 0.0 < error.mean() < 4.0
        wrong = np.abs(before - np.roll(back.images(entry, CAMERAS[0]), 1, axis=0))
        assert error.mean() < wrong.mean() / 2  # no frame off by one


def test_the_layout_is_that_of_lerobot(ours, tmp_path):
    """As `LeRobotDataset` finds its way: info, episodes, tasks by pandas index, video times."""
    root = tmp_path / "theirs"
    assert nora_dataset("export-lerobot", ours.root, "--out", root) == 0
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 5, 14)
    first, second = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert (first["dataset_from_index"], first["dataset_to_index"]) == (0, 9)
    assert (second["dataset_from_index"], second["tasks"]) == (9, ["lift it"])
    key = f"observation.images.{CAMERAS[0]}"
    assert second[f"videos/{key}/from_timestamp"] == pytest.approx(9 / 5)
    path = info["data_path"].format(chunk_index=0, file_index=0)
    table = pq.read_table(root / path)
    assert set(info["features"]) == {
        *table.column_names,
        *(f"observation.images.{c}" for c in CAMERAS),
    }
    assert table["action"].type == pa.list_(pa.float64(), 7)
    assert table["index"].to_pylist() == list(range(14))
    assert table["frame_index"].to_pylist() == [*range(9), *range(5)]
    tasks = pq.read_table(root / "meta/tasks.parquet")
    about = json.loads(tasks.schema.metadata[b"pandas"])
    assert about["index_columns"] == ["task"]
    assert [column["field_name"] for column in about["columns"]] == ["task_index", "task"]
    assert tasks.to_pylist()[1] == {"task_index": 1, "task": "lift it"}
    with av.open(
        str(root / info["video_path"].format(video_key=key, chunk_index=0, file_index=0))
    ) as v:
        assert [round(5 * frame.time) for frame in v.decode(video=0)] == list(range(14))
    stats = json.loads((root / "meta/stats.json").read_text())
    actions = np.concatenate([ours.steps(entry).actions_NA for entry in ours.entries])
    for name in ("min", "max", "mean", "std"):
        np.testing.assert_allclose(stats["action"][name], getattr(np, name)(actions, axis=0))
    assert np.shape(stats[key]["mean"]) == (3, 1, 1)
    for name, share in {"q01": 0.01, "q50": 0.5, "q99": 0.99}.items():
        np.testing.assert_allclose(stats["action"][name], np.quantile(actions, share, axis=0))
    pixels = np.concatenate([ours.images(e, CAMERAS[0])[::10] for e in ours.entries]) / 255.0
    for name in ("min", "max", "mean", "std"):
        expected = getattr(np, name)(pixels, axis=(0, 1, 2))
        np.testing.assert_allclose(np.ravel(stats[key][name]), expected, atol=1e-12)
    median = np.quantile(pixels, 0.5, axis=(0, 1, 2), method="inverted_cdf")
    np.testing.assert_allclose(np.ravel(stats[key]["q50"]), median)
    of_last = ours.steps(ours.entries[1]).actions_NA
    np.testing.assert_allclose(second["stats/action/max"], of_last.max(axis=0))


def test_lerobot_itself_reads_an_export(ours, tmp_path):
    found = pytest.importorskip("lerobot.datasets.lerobot_dataset", exc_type=ImportError)
    root = tmp_path / "theirs"
    assert nora_dataset("export-lerobot", ours.root, "--out", root) == 0
    theirs = found.LeRobotDataset("nora/export", root=root, video_backend="pyav")
    assert (theirs.num_episodes, theirs.num_frames, theirs.fps) == (2, 14, 5)
    actions = np.concatenate([ours.steps(entry).actions_NA for entry in ours.entries])
    for i in (0, 8, 9, 13):
        item = theirs.hf_dataset[i]
        np.testing.assert_allclose(item["action"], actions[i], rtol=1e-6)
        assert int(item["frame_index"]) == i % 9
        task = theirs.meta.tasks.iloc[int(item["task_index"])].name
        assert task == ours.entries[i // 9].instruction


def foreign(root: Path, actions: list[np.ndarray], names: object, dtype: str = "video") -> Path:
    """As other programs write it: float32, no stamps, larger images, a task per episode."""
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    key = "observation.images.front"
    video_path = root / f"videos/{key}/chunk-000/file-000.mp4"
    video_path.parent.mkdir(parents=True)
    video = VideoWriter(video_path, 2 * SIZE, 5, 0)
    rows, tables, first = [], [], 0
    for i, action in enumerate(actions):
        num = len(action)
        for frame in range(num):
            video.write(np.full((2 * SIZE, 2 * SIZE, 3), 40 * i + 3 * frame, np.uint8))
        columns = {
            "action": [row.astype(np.float32).tolist() for row in action],
            "frame_index": np.arange(num),
            "episode_index": np.full(num, i),
        }
        tables.append(pa.table(columns))
        rows.append(
            {
                "episode_index": i,
                "tasks": [f"task {i}"],
                "length": num,
                "data/chunk_index": 0,
                "data/file_index": 0,
                f"videos/{key}/chunk_index": 0,
                f"videos/{key}/file_index": 0,
                f"videos/{key}/from_timestamp": first / 5,
                "stats/action/min": [0.0],
            }
        )
        first += num
    video.close()
    pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.concat_tables(tables), root / "data/chunk-000/file-000.parquet")
    info = {
        "codebase_version": "v3.0",
        "fps": 5,
        "total_episodes": len(rows),
        "total_frames": first,
        "data_path": exporting.DATA,
        "video_path": exporting.VIDEO,
        "features": {
            "action": {"dtype": "float32", "shape": [actions[0].shape[1]], "names": names},
            key: {"dtype": dtype, "shape": [2 * SIZE, 2 * SIZE, 3]},
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


FRONT = ("--images", *["observation.images.front"] * len(CAMERAS))


BY_INDEX = {"gripper": 0} | {name: i for i, name in enumerate(NAMES[:6], 1)}


def test_names_may_have_their_index(tmp_path):
    theirs = foreign(tmp_path / "theirs", [np.roll(walk(6).actions_NA, 1, axis=1)], BY_INDEX)
    assert import_lerobot(theirs, tmp_path / "out", *FRONT) == 0
    dataset = Dataset.load(tmp_path / "out")
    found = dataset.steps(dataset.entries[0]).actions_NA
    np.testing.assert_allclose(found, walk(6).actions_NA, rtol=1e-6)


def test_episodes_keep_their_side_when_others_come(tmp_path):
    hashes = []
    for num in (2, 3):
        theirs = foreign(
            tmp_path / f"theirs{num}", [walk(5, i).actions_NA for i in range(num)], None
        )
        named = ("--action-names", *map(str, range(7)))
        assert import_lerobot(theirs, tmp_path / str(num), *FRONT, *named) == 0
        hashes.append({entry.sha256 for entry in Dataset.load(tmp_path / str(num)).entries})
    assert hashes[0] < hashes[1]


@pytest.mark.parametrize("names", [["g", *NAMES[:6]], {"motors": ["g", *NAMES[:6]]}, None])
def test_a_community_data_set_is_mapped_by_name_and_loses_its_no_ops(tmp_path, names):
    actions = [walk(6).actions_NA, walk(4, 1).actions_NA]
    actions[1][2, :6], actions[1][2, 6] = 0.0, actions[1][1, 6]
    theirs = [np.roll(action, 1, axis=1) for action in actions]
    root = foreign(tmp_path / "theirs", theirs, names)
    asked = [*NAMES[:6], "g"] if names else [*map(str, range(1, 7)), "0"]
    out = tmp_path / "out"
    assert import_lerobot(root, out, *FRONT, "--action-names", *asked) == 0
    dataset = Dataset.load(out)
    assert [e.instruction for e in dataset.entries] == ["task 0", "task 1"]
    assert [(e.num_periods, e.num_steps) for e in dataset.entries] == [(6, 6), (4, 3)]
    steps = dataset.steps(dataset.entries[1])
    np.testing.assert_allclose(steps.actions_NA, actions[1][[0, 1, 3]], rtol=1e-6)
    assert steps.stamps_N.tolist() == [0, 200_000_000, 600_000_000]
    assert np.isnan(steps.measured_N6).all()
    assert NO_IMAGE not in steps.image_stamps_N
    images = dataset.images(dataset.entries[1], CAMERAS[0])
    assert images[:, 5, 5, 0].tolist() == [40, 43, 49]


def test_what_cannot_be_used_is_skipped_and_named(tmp_path, capsys):
    still, wild, good = np.zeros((3, 7)), walk(3).actions_NA, walk(3, 1).actions_NA
    wild[:, 6] = -1.0
    lame = walk(3, 2).actions_NA
    lame[1, 1] = np.nan
    root = foreign(tmp_path / "theirs", [still, wild, lame, good], NAMES)
    assert import_lerobot(root, tmp_path / "out", *FRONT) == 1
    said = capsys.readouterr()
    assert "1 episode, 3 steps; 3 skipped" in said.out
    reasons = ("motion is missing", "gripper: expected 0 ... 1, got -1", "expected finite actions")
    for number, reason in enumerate(reasons):
        assert f"skipped episode {number}: {reason}" in said.err
    assert [e.instruction for e in Dataset.load(tmp_path / "out").entries] == ["task 3"]


def test_names_rates_and_features_that_do_not_match_are_named(tmp_path, capsys):
    root = foreign(
        tmp_path / "theirs", [walk(3).actions_NA], ["j0", "j1", "j2", "j3", "j4", "j5", "g"]
    )
    out = tmp_path / "out"
    for arguments, text in (
        (FRONT, "action_names: expected ['x', 'y', 'z', 'roll', 'pitch', 'yaw', 'gripper'] among"),
        ((), "features: expected observation.images."),
        ((*FRONT, "--action-names", "j0", "g"), "action_names: expected one for each of"),
    ):
        assert import_lerobot(root, out, *arguments) == 2
        assert text in capsys.readouterr().err
    info = json.loads((root / "meta/info.json").read_text())
    for change, text in (
        ({"fps": 30}, "fps: expected 5, got 30"),
        ({"codebase_version": "v2.1"}, "v3"),
    ):
        (root / "meta/info.json").write_text(json.dumps(info | change))
        assert import_lerobot(root, out, *FRONT) == 2
        assert text in capsys.readouterr().err
    assert not out.exists()


def test_half_an_export_is_no_data_set(ours, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    export = exporting.Export(ours.root, theirs, crf=18).run(ours)
    next(export)
    (half,) = tmp_path.glob(".theirs.*")  # what a kill would leave
    assert not theirs.exists()
    assert import_lerobot(half, tmp_path / "back") == 2
    assert "no LeRobot data set, or an incomplete one" in capsys.readouterr().err
    export.close()
    assert not half.exists()
    assert nora_dataset("export-lerobot", ours.root, "--out", theirs) == 0
    assert nora_dataset("export-lerobot", ours.root, "--out", theirs) == 2
    assert "expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["data", "videos", "rows", "frames", "meta/episodes"])
def test_a_data_set_with_a_part_lost_is_refused_and_leaves_nothing(ours, tmp_path, capsys, lost):
    theirs = tmp_path / "theirs"
    assert nora_dataset("export-lerobot", ours.root, "--out", theirs) == 0
    data = theirs / "data/chunk-000/file-000.parquet"
    match lost:
        case "rows":
            pq.write_table(pq.read_table(data).slice(0, 12), data)
        case "frames":
            for video in theirs.rglob("*.mp4"):
                video.write_bytes(video.read_bytes()[:500])
        case _:
            shutil.rmtree(theirs / lost)
    assert import_lerobot(theirs, tmp_path / "back") == 2
    assert re.search(r"^error: .*(expected|missing)", capsys.readouterr().err, re.M)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


def test_a_video_can_be_read_from_anywhere(tmp_path):
    path = tmp_path / "video.mp4"
    writer = VideoWriter(path, SIZE, 5, 0)
    images = pictures(10, 0)
    for image in images:
        writer.write(image)
    writer.close()
    reader = VideoReader(path, 5)
    for first, num in ((0, 2), (5, 5), (3, 4), (0, 10)):
        np.testing.assert_array_equal(list(reader.read(first, num)), images[first : first + num])
    with pytest.raises(ValueError, match="frame number 10 is missing"):
        list(reader.read(8, 3))
