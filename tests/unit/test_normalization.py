"""Quantile normalisation: round trips, bounds, and errors of the statistics file."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nora_core.normalization import Statistics, denormalize, normalize

A = 7
finite = st.floats(-100, 100).map(lambda x: round(x, 6))
chunks = hnp.arrays(np.float64, (5, A), elements=finite)


@st.composite
def statistics(draw) -> Statistics:
    ends = draw(hnp.arrays(np.float64, (2, A), elements=finite))
    is_flat = draw(hnp.arrays(np.bool_, A))
    q01, q99 = ends.min(axis=0), np.where(is_flat, ends.min(axis=0), ends.max(axis=0))
    return Statistics(q01, q99, draw(hnp.arrays(np.bool_, A)))


@given(chunks, statistics())
def test_normalised_values_stay_within_one(actions, stats):
    x = normalize(actions, stats)
    assert (np.abs(x[:, stats.mask_A]) <= 1).all()


@given(chunks, statistics())
def test_physical_values_stay_within_the_quantiles(x, stats):
    actions = denormalize(x, stats)[:, stats.mask_A]
    assert (actions >= stats.q01_A[stats.mask_A]).all()
    assert (actions <= stats.q99_A[stats.mask_A]).all()


@given(chunks, statistics())
def test_there_and_back_is_clipping(actions, stats):
    expected = np.where(stats.mask_A, np.clip(actions, stats.q01_A, stats.q99_A), actions)
    back = denormalize(normalize(actions, stats), stats)
    np.testing.assert_allclose(back, expected, atol=1e-12, rtol=1e-12)


@given(chunks, statistics())
def test_unmasked_dimensions_are_kept(actions, stats):
    for function in (normalize, denormalize):
        kept = function(actions, stats)[:, ~stats.mask_A]
        np.testing.assert_array_equal(kept, actions[:, ~stats.mask_A])


def test_known_values():
    stats = Statistics(np.array([-0.02, 3.0, 0.0]), np.array([0.06, 3.0, 1.0]), np.arange(3) < 2)
    np.testing.assert_allclose(normalize([0.0, 9.0, 0.7], stats), [-0.5, 0.0, 0.7])
    np.testing.assert_allclose(denormalize([-0.5, 0.8, 0.7], stats), [0.0, 3.0, 0.7])


def write(path, data) -> None:
    path.write_text(data if isinstance(data, str) else json.dumps(data))


GOOD = {"q01": [0, 0], "q99": [1, 1], "mask": [True, False]}


def test_load_and_write_agree(tmp_path):
    path = tmp_path / "norm_stats.json"
    write(path, {"robot": {"action": {**GOOD, "mean": [0.5, 0.5]}, "num_transitions": 3}})
    assert Statistics.load(path, "robot").to_json() == GOOD


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"other": {"action": GOOD}}, r"expected statistics 'robot', available: \['other'\]"),
        ("{", "not valid JSON"),
        ([], "available: list"),
        ({"robot": {}}, "robot: expected action.q01, q99, mask"),
        ({"robot": {"action": {**GOOD, "q99": [1]}}}, r"q99: expected shape \(2,\), got \(1,\)"),
        ({"robot": {"action": {**GOOD, "q99": [1, -1]}}}, "q99: expected at least q01"),
        ({"robot": {"action": {**GOOD, "mask": [1, 0]}}}, "mask: expected booleans"),
        ('{"robot": {"action": {"q01": [NaN], "q99": [1], "mask": [true]}}}', "got NaN"),
        ({"robot": {"action": {**GOOD, "q01": 3}}}, "q01: expected a list"),
        ({"robot": {"action": {"q01": [0], "q99": [1]}}}, "KeyError.'mask'"),
    ],
)
def test_a_bad_file_gives_one_clear_line(tmp_path, data, message):
    path = tmp_path / "norm_stats.json"
    write(path, data)
    with pytest.raises(ValueError, match=message) as caught:
        Statistics.load(path, "robot")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"norm_stats\.json: no such file"):
        Statistics.load(tmp_path / "norm_stats.json", "robot")
