"""Bags to a data set on disk, its samples, its report: through the command, as a user would."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import cv2
import demo_bags
import numpy as np
import pytest
from demo_bags import CONFIG, EMBODIMENT, INSTRUCTION, START_NS, STEP_NS

from nora_core.images import orient, resize
from nora_core.normalization import Statistics, normalize
from nora_core.types import Float64, Outcome
from nora_training import dataset_command as cli
from nora_training.data.build import Build
from nora_training.data.dataset import Dataset, Entry, Settings, Steps, create_images
from nora_training.data.quality import agreement, assess, assess_episode, clipped_share, jerk
from nora_training.data.samples import Samples

SHIPPED = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
NUM_STEPS, NUM_BAGS, SIZE = 16, 5, 28
MOVING = np.delete(np.arange(NUM_STEPS), demo_bags.PAUSES)
ALL = tuple(Outcome)


def nora_dataset(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["nora-dataset", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def build(monkeypatch, bags, out, *arguments) -> int:
    arguments = ("--image-size", SIZE, "--workers", 1, *arguments)
    given = (bags, "--out", out, "--embodiment", CONFIG)
    return nora_dataset(monkeypatch, "build", *given, *arguments)


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    """Five bags of different lengths; number 4 failed at its task."""
    folder = tmp_path_factory.mktemp("bags")
    records = demo_bags.record(NUM_STEPS)
    for i in range(NUM_BAGS):
        end_ns = START_NS + (NUM_STEPS - i) * STEP_NS
        part = [record for record in records if record.log_ns < end_ns]
        labels = {**demo_bags.LABELS, "outcome": "failure" if i == 4 else "success"}
        demo_bags.write(folder / f"bag{i}", part, labels=labels)
    return folder


@pytest.fixture(scope="module")
def dataset(bags, tmp_path_factory) -> Dataset:
    out = tmp_path_factory.mktemp("dataset")
    with pytest.MonkeyPatch.context() as patch:
        assert build(patch, bags, out, "--val-fraction", 0.5) == 0
    return Dataset.load(out)


def test_every_bag_is_in_it_once_with_its_label(dataset, bags):
    assert len(dataset.entries) == NUM_BAGS
    by_bag = {entry.bag: entry for entry in dataset.entries}
    for i in range(NUM_BAGS):
        entry = by_bag[str(bags / f"bag{i}")]
        assert entry.instruction == INSTRUCTION
        assert entry.outcome == ("FAILURE" if i == 4 else "SUCCESS")
        assert entry.num_periods == NUM_STEPS - i
        assert entry.num_steps == entry.num_observed == len(MOVING) - i


def test_images_are_those_of_the_bag_resized_as_for_the_policy(dataset):
    images = {
        record.log_ns: record.msg.data.reshape(48, 64, 3)
        for record in demo_bags.record(NUM_STEPS)
        if record.topic.endswith("image_raw")
    }
    for entry in dataset.entries:
        steps = dataset.steps(entry)
        stored = dataset.images(entry, "primary")
        assert stored.shape == (entry.num_steps, SIZE, SIZE, 3)
        assert isinstance(stored, np.memmap)
        for stamp_ns, rgb in zip(steps.stamps_N.tolist(), stored, strict=True):
            expected = resize(orient(images[stamp_ns], EMBODIMENT.cameras[0]), SIZE, SIZE)
            np.testing.assert_array_equal(rgb, expected)


def test_what_is_there_is_not_converted_again(dataset, bags, monkeypatch, capsys):
    files = sorted((dataset.root / "episodes").rglob("*.npy"))
    before = [path.stat().st_mtime_ns for path in files]
    assert build(monkeypatch, bags, dataset.root, "--val-fraction", 0.5) == 0
    assert f"0 new, {NUM_BAGS} there already" in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in files] == before
    assert Dataset.load(dataset.root).entries == dataset.entries


def test_processes_give_the_same_data_set(dataset, bags, tmp_path, monkeypatch):
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((1500, 1500, 3), np.uint8), (9, 9), 0)  # starts its threads
    arguments = ("--val-fraction", 0.5, "--workers", 2)
    assert build(monkeypatch, bags, tmp_path, *arguments) == 0
    other = Dataset.load(tmp_path)
    assert other.entries == dataset.entries
    for entry in dataset.entries:
        np.testing.assert_array_equal(
            other.images(entry, "primary"), dataset.images(entry, "primary")
        )


def test_a_build_imports_no_more_than_it_needs():
    code = "import sys, nora_training.dataset_command; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    roots = {name.split(".")[0] for name in result.stdout.split()}
    assert "rosbags" in roots
    assert not roots & {"torch", "transformers", "mujoco", "mink", "pyarrow", "av", "matplotlib"}


def test_a_build_killed_anywhere_goes_on(dataset, bags, tmp_path, monkeypatch):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "nora_training.dataset_command",
        "build",
        bags,
        "--out",
        out,
    ]
    command += ["--embodiment", CONFIG, "--image-size", SIZE, "--workers", 1]
    process = subprocess.Popen([*map(str, command), "--val-fraction", "0.5"])
    while not list(out.glob("episodes/*/episode.json")) and process.poll() is None:
        pass
    process.kill()
    process.wait()
    (out / "episodes/.half").mkdir()
    assert build(monkeypatch, bags, out, "--val-fraction", 0.5) == 0
    assert Dataset.load(out).entries == dataset.entries
    assert sorted(p.name for p in (out / "episodes").iterdir()) == sorted(
        entry.folder for entry in dataset.entries
    )


def test_other_settings_are_refused(dataset, bags, monkeypatch, capsys):
    assert build(monkeypatch, bags, dataset.root, "--source", "ee_pose") == 2
    assert "expected Settings(" in capsys.readouterr().err


def test_bad_bags_are_skipped_named_and_counted(bags, tmp_path, monkeypatch, capsys):
    many = tmp_path / "bags"
    shutil.copytree(bags / "bag0", many / "good")
    shutil.copytree(bags / "bag1", many / "cut_off")
    storage = many / "cut_off/bag1.mcap"
    storage.write_bytes(storage.read_bytes()[:-1000])
    records = demo_bags.record(NUM_STEPS)
    demo_bags.write(many / "blind", [r for r in records if not r.topic.endswith("image_raw")])
    # Bad only in the image of the last step: nothing of it may stay.
    last_ns = demo_bags.START_NS + demo_bags.STEP_NS * (NUM_STEPS - 1)
    images = [i for i, r in enumerate(records) if r.topic.endswith("image_raw")]
    late = [i for i in images if records[i].log_ns <= last_ns][-1]
    broken = dataclasses.replace(records[late].msg, encoding="mono8")
    records[late] = dataclasses.replace(records[late], msg=broken)
    demo_bags.write(many / "late", records)
    assert build(monkeypatch, many, tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "1 new, 0 there already, 3 bad bags skipped" in said.out
    lines = [line for line in said.err.splitlines() if line.startswith("skipped ")]
    assert sorted(line.split(": ")[0] for line in lines) == [
        f"skipped {many / name}" for name in ("blind", "cut_off", "late")
    ]
    assert [e.bag for e in Dataset.load(tmp_path / "out").entries] == [str(many / "good")]
    assert len(list((tmp_path / "out/episodes").iterdir())) == 1


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_with_a_lost_page_never_ends_the_build(tmp_path, monkeypatch, capsys, storage):
    good = demo_bags.write(tmp_path / "bags/good", demo_bags.record(4, (8, 8)), storage)
    (source,) = (path for path in good.iterdir() if path.suffix in (".mcap", ".db3"))
    for start in range(0, source.stat().st_size, 4096):
        bag = good.with_name(f"without_{start}")
        shutil.copytree(good, bag)
        with (bag / source.name).open("r+b") as file:
            file.seek(start)
            file.write(bytes(4096))
    build(monkeypatch, good.parent, tmp_path / "out")
    assert "Traceback" not in capsys.readouterr().err
    assert str(good) in [entry.bag for entry in Dataset.load(tmp_path / "out").entries]


def test_what_a_new_index_leaves_out_is_said(bags, tmp_path, monkeypatch, capsys):
    for name in ("bag0", "bag1"):
        assert build(monkeypatch, bags / name, tmp_path) == 0
    assert (
        f"left out 1 episode that the data set held before, such as {bags}/bag0: "
        in capsys.readouterr().err
    )
    assert build(monkeypatch, bags, tmp_path) == 0
    assert "left out" not in capsys.readouterr().err


def test_room_for_the_images_is_taken_at_once(tmp_path):
    images = create_images(tmp_path, "primary", 20, 224)
    assert 512 * (tmp_path / "primary.npy").stat().st_blocks >= images.nbytes


def test_a_copy_of_a_bag_counts_once(bags, tmp_path, monkeypatch):
    for name in ("a", "b"):
        shutil.copytree(bags / "bag0", tmp_path / "bags" / name)
    assert build(monkeypatch, tmp_path / "bags", tmp_path / "out") == 0
    assert len(Dataset.load(tmp_path / "out").entries) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("val_fraction", 1.0), ("image_size", 0), ("workers", 0)]
)
def test_build_refuses_nonsense(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')}: expected"):
        Build(bags=(tmp_path,), out=tmp_path, embodiment=str(CONFIG), **{field: value})


# split, statistics, samples


def entry(sha256: str) -> Entry:
    return Entry(sha256, "", INSTRUCTION, "SUCCESS", "command", 1, 1, 1)


def test_the_split_is_by_episode_and_stable():
    rng = np.random.default_rng(0)
    entries = tuple(entry(rng.bytes(32).hex()) for _ in range(2000))
    settings = Settings(SIZE, "auto", "")
    whole = Dataset(CONFIG, EMBODIMENT, settings, entries, 0.2)
    part = dataclasses.replace(whole, entries=entries[::2])
    train, val = (set(whole.select(side, ALL)) for side in ("train", "val"))
    assert train | val == set(entries)
    assert not train & val
    assert 0.17 < len(val) / len(entries) < 0.23
    assert set(part.select("val", ALL)) <= val
    assert not dataclasses.replace(whole, val_fraction=0.0).select("val", ALL)


def test_statistics_are_quantiles_of_what_is_selected(dataset, monkeypatch, capsys):
    entries = dataset.select("train", (Outcome.SUCCESS,))
    assert entries
    assert all(e.outcome == "SUCCESS" for e in entries)
    assert nora_dataset(monkeypatch, "stats", dataset.root) == 0
    found = Statistics.load(dataset.root / "norm_stats.json", "sim_widowx")
    assert json.loads(capsys.readouterr().out)["sim_widowx"]["action"] == found.to_json()
    actions = np.concatenate([dataset.steps(e).actions_NA for e in entries])
    np.testing.assert_array_equal(found.q01_A, np.quantile(actions, 0.01, axis=0))
    np.testing.assert_array_equal(found.q99_A, np.quantile(actions, 0.99, axis=0))
    assert found.mask_A.tolist() == [True] * 6 + [False]


def test_rounding_noise_is_not_scaled_up(dataset, tmp_path):
    root = shutil.copytree(dataset.root, tmp_path / "noisy")
    noisy = dataclasses.replace(dataset, root=root)
    for e in noisy.entries:
        steps = noisy.steps(e)
        steps.actions_NA[:, 3] = np.random.default_rng(0).normal(size=e.num_steps) * 1e-9
        arrays = {name: getattr(steps, name) for name in Steps.__slots__}
        np.savez(root / "episodes" / e.folder / "steps.npz", **arrays)
    statistics = noisy.statistics(noisy.entries)
    for sample in Samples(noisy, noisy.entries, statistics, 3):
        assert (sample.actions_TA[:, 3] == 0).all()


@pytest.mark.parametrize("only_complete", [False, True])
def test_samples_are_every_step_and_what_followed(dataset, only_complete):
    entries, horizon = dataset.entries, 5
    statistics = dataset.statistics(entries)
    samples = Samples(dataset, entries, statistics, horizon, only_complete=only_complete)
    last = horizon - 1 if only_complete else 0
    expected = [(e, i) for e in entries for i in range(e.num_steps - last)]
    assert len(samples) == len(expected)
    for (e, i), sample in zip(expected, samples, strict=True):
        steps = dataset.steps(e)
        image = dataset.images(e, "primary")[i]
        np.testing.assert_array_equal(sample.observation.images[0], image)
        assert sample.observation.instruction == e.instruction
        assert sample.observation.stamp_ns == steps.image_stamps_N[i]
        real = normalize(steps.actions_NA[i : i + horizon], statistics)
        np.testing.assert_array_equal(sample.actions_TA[sample.is_real_T], real)
        assert sample.is_real_T.all() or not only_complete
    np.testing.assert_array_equal(samples[-1].actions_TA, samples[len(samples) - 1].actions_TA)
    with pytest.raises(IndexError, match="expected an index below"):
        samples[len(samples)]


def test_cameras_of_a_data_set_are_not_oriented_twice(dataset):
    turned = dataclasses.replace(EMBODIMENT.cameras[0], rotation_deg=90, crop=(0, 0, 8, 8))
    embodiment = dataclasses.replace(EMBODIMENT, cameras=(turned,))
    (camera,) = dataclasses.replace(dataset, embodiment=embodiment).cameras
    assert (camera.rotation_deg, camera.crop) == (0, None)
    rgb = dataset.images(dataset.entries[0], "primary")[0]
    np.testing.assert_array_equal(resize(orient(rgb, camera), SIZE, SIZE), rgb)


# report and video


@pytest.mark.parametrize("name", ["steps.npz", "primary.npy"])
@pytest.mark.parametrize("text", [b"", b"not numpy"])
def test_a_damaged_file_is_one_line(dataset, tmp_path, monkeypatch, capsys, name, text):
    root = tmp_path / "damaged"
    shutil.copytree(dataset.root, root)
    path = root / "episodes" / dataset.entries[0].folder / name
    path.write_bytes(text)
    assert nora_dataset(monkeypatch, "check", root) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"error: {re.escape(str(path))}: damaged .*\n", said)


def test_an_index_that_is_no_json_is_named(dataset, tmp_path):
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(ValueError, match=r"index.json: Expecting property name"):
        Dataset.load(tmp_path)


def test_check_writes_a_report_with_plots(dataset, monkeypatch, capsys):
    code = nora_dataset(monkeypatch, "check", dataset.root)
    text = (dataset.root / "report/report.md").read_text()
    for word in (INSTRUCTION, "| 4 | SUCCESS |", "| 1 | FAILURE |", "q01", "jerk"):
        assert word in text
    assert {p.name for p in (dataset.root / "report").glob("*.png")} == {
        "actions.png",
        "episodes.png",
    }
    # The script never rolls or pitches: a policy could not learn to, but it is no fault.
    assert code == 0
    said = capsys.readouterr().out
    assert "(no fault) action pitch is the same in every step" in said
    assert "action x and the measured" not in said


def test_view_writes_a_video_of_every_step(dataset, monkeypatch, tmp_path):
    path = tmp_path / "episode.mp4"
    assert nora_dataset(monkeypatch, "view", dataset.root, 1, "--out", path) == 0
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 5
    assert len(frames) == dataset.entries[1].num_steps
    assert all(frame[:448].std() > 10 and frame[448:].std() > 10 for frame in frames)
    assert nora_dataset(monkeypatch, "view", dataset.root, NUM_BAGS) == 2


def steps_of(actions: Float64, measured: Float64) -> Steps:
    stamps = START_NS + STEP_NS * np.arange(len(actions))
    positions = actions[:, :3].cumsum(axis=0) - actions[:, :3]
    return Steps(stamps, stamps - 30_000_000, actions, measured, positions)


def test_quality_of_a_known_episode():
    actions = demo_bags.script(40)
    statistics = Statistics(np.full(7, -0.01), np.full(7, 0.01), np.arange(7) < 6)
    late = np.vstack([np.zeros((1, 6)), actions[:-1, :6]])
    good = assess_episode(
        dataclasses.replace(entry("0"), num_periods=80, num_steps=40, num_observed=30),
        steps_of(actions, late),
        statistics,
        0.2,
    )
    assert (good.still, good.unseen) == (0.5, 0.25)
    assert good.duration_s == pytest.approx(8.0)
    assert good.oldest_image_s == pytest.approx(0.03)
    assert good.clipped == (np.abs(actions[:, :6]) > 0.01).mean()
    assert (good.agreement_6[[0, 1, 2, 5]] > 0.9).all()
    assert np.isnan(good.agreement_6[[3, 4]]).all()
    assert (agreement(actions[:, :6], -actions[:, :6])[[0, 1, 2, 5]] < 0.5).all()


def test_jerk_is_the_third_derivative_of_the_path():
    period_s = 0.2
    times_s = period_s * np.arange(30)
    path_N3 = np.stack([4.0 * times_s**3, 0 * times_s, 7.0 * times_s**2], axis=1)
    assert jerk(np.diff(path_N3, axis=0), period_s) == pytest.approx(24.0)
    assert jerk(np.zeros((2, 3)), period_s) == 0.0


def test_an_action_too_rare_to_have_quantiles_is_a_problem(dataset):
    statistics = dataset.statistics(dataset.entries)
    q99_A = np.where(np.arange(7) == 1, statistics.q01_A, statistics.q99_A)
    narrow = dataclasses.replace(statistics, q99_A=q99_A)
    (problem,) = set(assess(dataset, narrow).problems) - set(assess(dataset, statistics).problems)
    assert problem.startswith(f"action {EMBODIMENT.action.names[1]} moves in too few steps")


def test_the_clipped_share_counts_scaled_dimensions_only():
    statistics = Statistics(np.zeros(7), np.ones(7), np.arange(7) < 6)
    actions = np.full((10, 7), 0.5)
    actions[:, 6] = 5.0
    assert clipped_share(actions, statistics) == 0.0
    actions[:3, 0] = 2.0
    assert clipped_share(actions, statistics) == pytest.approx(3 / 60)


def test_a_red_episode_is_named_each_time_and_converted(bags, tmp_path, monkeypatch, capsys):
    bag = shutil.copytree(bags / "bag0", tmp_path / "bags/red")
    (bag / "label.yaml").write_text("is_green: false\n")
    for _ in range(2):
        assert build(monkeypatch, bag.parent, tmp_path / "out") == 0
        said = capsys.readouterr()
        assert f"RED {bag}: converted, but see its audit.md" in said.err
        assert "1 RED" in said.out
    assert len(Dataset.load(tmp_path / "out").entries) == 1


def test_a_split_that_is_not_what_was_asked_for_is_explained(bags, tmp_path, monkeypatch, capsys):
    assert build(monkeypatch, bags, tmp_path, "--val-fraction", 0.0) == 0
    said = capsys.readouterr().err
    assert "0 of 5 episodes are for validation, --val-fraction is 0: training runs without" in said
    entries = tuple(entry(f"{i:08x}" + "0" * 56) for i in range(10))  # all drawn near 0
    few = Dataset(CONFIG, EMBODIMENT, Settings(SIZE, "auto", ""), entries, 0.2)
    assert "10 of 10 episodes are for validation" in few.split_warning()
    assert "nothing to train on" in few.split_warning()
    spread = tuple(entry(f"{i * 2**32 // 10:08x}" + "0" * 56) for i in range(10))
    assert dataclasses.replace(few, entries=spread).split_warning() is None
    assert "chance" in dataclasses.replace(few, entries=entries[:6] + spread[-4:]).split_warning()


@pytest.mark.parametrize("command", ["build", "stats", "check", "view", "fast"])
def test_help_shows_the_command_line_and_nothing_of_its_making(monkeypatch, capsys, command):
    assert nora_dataset(monkeypatch, command, "--help") == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: nora-dataset {command} [-h]")
    for word in ("{None}", "options options", "selection", "build options"):
        assert word not in said
    assert ("BAGS..." if command == "build" else "DATA_SET") in said


def test_build_takes_an_embodiment_by_name(bags, tmp_path, monkeypatch):
    given = (bags / "bag0", "--out", tmp_path, "--embodiment", "sim_widowx")
    nora_dataset(monkeypatch, "build", *given, "--image-size", SIZE)
    assert (tmp_path / "embodiment.yaml").read_bytes() == SHIPPED.read_bytes()
