"""Policies side by side on recorded data: the numbers, and the command as a user runs it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_training import CONFIG, write_dataset

from nora_policy.checkpoints import untrained
from nora_training.data.dataset import Dataset
from nora_training.evaluation.compare import command
from nora_training.evaluation.compare.command import Compare, draw, read_samples, run
from nora_training.evaluation.compare.distances import Answers, Comparison, distance

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 4))
VALUES = st.floats(-1.0, 1.0)


@st.composite
def chunks(draw):
    n, t = draw(SHAPES)
    both = arrays.arrays(np.float64, (2, n, t, 7), elements=VALUES)
    a_NTA, b_NTA = draw(both)
    num_real_N = draw(st.lists(st.integers(1, t), min_size=n, max_size=n))
    return a_NTA, b_NTA, np.arange(t) < np.array(num_real_N)[:, None]


@given(chunks())
def test_a_distance_is_symmetric_and_blind_to_what_is_not_real(drawn):
    a_NTA, b_NTA, is_real_NT = drawn
    there, back = distance(a_NTA, b_NTA, is_real_NT), distance(b_NTA, a_NTA, is_real_NT)
    np.testing.assert_array_equal(there.chunk_A, back.chunk_A)
    np.testing.assert_array_equal(there.first_A, back.first_A)
    assert there.gripper == back.gripper
    same = distance(a_NTA, a_NTA, is_real_NT)
    assert not same.chunk_A.any()
    assert same.gripper == 1.0
    noise_NTA = np.where(is_real_NT[..., None], a_NTA, a_NTA + 100.0)
    np.testing.assert_array_equal(distance(noise_NTA, b_NTA, is_real_NT).chunk_A, there.chunk_A)


def test_distances_by_hand():
    done_NTA = np.zeros((2, 2, 7))
    done_NTA[..., -1] = [[1.0, 0.0], [1.0, 1.0]]
    answer_NTA = np.zeros((2, 3, 7))  # one step more than was done
    answer_NTA[:, 0, 0] = [0.02, -0.04]
    answer_NTA[0, 1, 0], answer_NTA[1, 1, 0] = 0.03, 9.9
    answer_NTA[..., -1] = 1.0
    is_real_NT = np.array([[True, True], [True, False]])
    found = Comparison.of([Answers("a", answer_NTA, np.ones(2))], done_NTA, is_real_NT)
    assert found.to_done["a"].first_A[0] == pytest.approx(0.03)
    assert found.to_done["a"].chunk_A[0] == pytest.approx(0.03)
    assert found.to_done["a"].gripper == pytest.approx(2 / 3)
    assert found.still.chunk_A[0] == 0.0
    assert found.still.gripper == pytest.approx(2 / 3)
    assert found.between == {}
    with pytest.raises(ValueError, match="shapes must be equal"):
        distance(answer_NTA, done_NTA, is_real_NT)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A data set and two checkpoints."""
    folder = tmp_path_factory.mktemp("compare")
    write_dataset(folder / "data", val_fraction=1.0)
    for seed, name in enumerate(("one", "two")):
        untrained.write_tiny(folder / name, CONFIG, seed)
    return folder


def test_samples_are_drawn_once_and_for_all(study):
    dataset = Dataset.load(study / "data")

    def drawn(num, seed=0):
        options = Compare(
            dataset=study / "data", checkpoint=(study / "one",), samples=num, seed=seed
        )
        samples = read_samples(dataset, options, horizon=5)
        indices = draw(samples, options)
        return [samples.observation(int(i)).stamp_ns for i in indices], samples, indices

    first, again, other = drawn(4)[0], drawn(4)[0], drawn(4, seed=1)[0]
    assert len(first) == 4
    assert first == again != other
    everything, samples, indices = drawn(10_000)
    assert len(everything) == len(samples) < 100
    assert min(samples.num_real(indices)) == 1


def test_the_command_compares_heads_and_checkpoints(study, tmp_path, monkeypatch, capsys):
    arguments = ["nora-compare", str(study / "data"), "--checkpoint", str(study / "one")]
    arguments += ["--checkpoint", str(study / "two"), "--heads", "flow", "fast"]
    arguments += ["--samples", "2", "--out", str(tmp_path), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 0
    text = (tmp_path / "compare.md").read_text()
    assert text.strip() in capsys.readouterr().out
    names = ["one, flow", "one, fast", "two, flow", "two, fast"]
    for title in ("first step", "whole chunk", "gripper", "inference"):
        table = text[text.index(f"| {title} ") :].split("\n\n")[0]
        assert [line.split(" | ")[0][2:] for line in table.splitlines()[2:6]] == names
    assert text.count("one, flow - two, fast") == 2
    assert (tmp_path / "compare.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples: must be at least 1"),
        ({"checkpoint": ()}, "checkpoint: at least one is needed"),
        ({"heads": ("flow", "flow")}, "heads: must be distinct"),
        ({"outcomes": ()}, "split: .* has no images in val episodes"),
    ],
)
def test_bad_input_is_named(study, tmp_path, change, message):
    options = {"dataset": study / "data", "checkpoint": (study / "one",), "out": tmp_path}
    with pytest.raises(ValueError, match=message):
        run(Compare(**{**options, **change}))


def test_all_checkpoints_are_checked_before_one_is_loaded(study, tmp_path, monkeypatch):
    def load(*arguments):
        raise AssertionError("too late")

    monkeypatch.setattr(command, "load", load)
    monkeypatch.setattr(Dataset, "steps", load)
    other = tmp_path / "other"
    robot = CONFIG.read_text().replace("step_period_s: 0.2", "step_period_s: 0.1")
    assert robot != CONFIG.read_text()
    (tmp_path / "other.yaml").write_text(robot)
    untrained.write_tiny(other, tmp_path / "other.yaml")
    for folder, message in (
        (other, f"{other} was trained for another robot .*step_period_s"),
        (tmp_path / "nowhere", "nowhere"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            run(Compare(dataset=study / "data", checkpoint=(study / "one", folder)))
