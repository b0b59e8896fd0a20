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
from nora_training.evaluation.compare import cli as command
from nora_training.evaluation.compare.cli import Compare, draw, run
from nora_training.evaluation.compare.comparison import Answers, Comparison, distance

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
    with pytest.raises(ValueError, match="equal shapes"):
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
    def drawn(samples, seed=0):
        dataset = command.Dataset.load(study / "data")
        options = Compare(study / "data", (study / "one",), samples=samples, seed=seed)
        return draw(dataset, options)

    first, again, other = drawn(4), drawn(4), drawn(4, seed=1)
    stamps = [[o.stamp_ns for o in d.observations] for d in (first, again, other)]
    assert len(stamps[0]) == 4
    assert stamps[0] == stamps[1] != stamps[2]
    everything = drawn(10_000)
    assert len(everything.observations) < 100
    assert min(len(future) for future in everything.futures) == 1


def test_the_command_compares_heads_and_checkpoints(study, tmp_path, monkeypatch, capsys):
    arguments = ["nora-compare", str(study / "data"), "--checkpoint", str(study / "one")]
    arguments += ["--checkpoint", str(study / "two"), "--heads", "flow", "fast"]
    arguments += ["--samples", "2", "--out", str(tmp_path), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    command.main()
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
        ({"samples": 0}, "samples: expected at least 1"),
        ({"checkpoint": ()}, "checkpoint: expected distinct ones"),
        ({"heads": ("flow", "flow")}, "heads: expected distinct ones"),
        ({"outcomes": ()}, "split: expected images in val episodes"),
    ],
)
def test_bad_input_is_named(study, tmp_path, change, message):
    options = {"dataset": study / "data", "checkpoint": (study / "one",), "out": tmp_path}
    with pytest.raises(ValueError, match=message):
        run(Compare(**{**options, **change}))
