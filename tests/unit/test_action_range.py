"""The range of coefficients: that of a linear program; holds every chunk and nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.fft import dct, idct
from scipy.optimize import linprog

from nora_policy.models.action_range import MAX_HORIZON, TOLERANCE, ActionRange, action_range

SCALE = 10.0
horizons = st.integers(1, 6)
seeds = st.integers(0, 2**32 - 1)


def bounds(earlier: np.ndarray, horizon: int) -> tuple[float, float]:
    """Smallest and largest next coefficient, not rounded to integers: a linear program.

    Over a in [-1, 1]^T and the rounding r in [-1/2, 1/2]^F, with q = B a + r.
    """
    basis = SCALE * dct(np.eye(horizon), axis=0, norm="ortho")
    k = len(earlier)
    system = np.hstack([basis[: k + 1], np.eye(k + 1)])
    limits = [(-1, 1)] * horizon + [(-0.5, 0.5)] * (k + 1)
    equal = {"A_eq": system[:k], "b_eq": earlier} if k else {}
    low, high = (
        linprog(sign * system[k], bounds=limits, method="highs", **equal) for sign in (1, -1)
    )
    assert low.status == high.status == 0
    return low.fun, -high.fun


def walk(horizon: int, random: np.random.Generator, extreme: float) -> np.ndarray:
    """Integers inside of the intervals, at their ends with probability `extreme`: (1, T)."""
    limits = action_range(horizon, SCALE)
    path = np.zeros((1, 0), np.int64)
    for _ in range(horizon):
        low, high = (int(end[0]) for end in limits.interval(path))
        ends = [low, high] if random.random() < extreme else range(low, high + 1)
        path = np.append(path, [[random.choice(ends)]], axis=1)
    return path


@settings(max_examples=150, deadline=None)
@given(horizons, seeds, st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_the_interval_is_that_of_the_linear_program(horizon, seed, extreme, data):
    path = walk(horizon, np.random.default_rng(seed), extreme)
    k = data.draw(st.integers(0, horizon - 1))
    low, high = bounds(path[0, :k], horizon)
    got_low, got_high = action_range(horizon, SCALE).interval(path[:, :k])
    slack = 2 * TOLERANCE
    assert np.ceil(low - slack) <= got_low[0] <= np.ceil(low + slack)
    assert np.floor(high - slack) <= got_high[0] <= np.floor(high + slack)


def test_rows_are_independent():
    random = np.random.default_rng(0)
    paths = np.concatenate([walk(5, random, 0.5) for _ in range(20)])
    limits = action_range(5, SCALE)
    low, high = limits.interval(paths[:, :3])
    for path, *ends in zip(paths, low, high, strict=True):
        assert [int(end[0]) for end in limits.interval(path[None, :3])] == ends


@st.composite
def actions(draw) -> np.ndarray:
    """(T, 3) within [-1, 1], T = 1 ... 8, float32 or float64, often all at the limits."""
    shape = (draw(st.integers(1, MAX_HORIZON)), 3)
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    elements = draw(st.sampled_from([st.floats(-1, 1, width=32), st.sampled_from([-1.0, 1.0])]))
    return draw(hnp.arrays(dtype, shape, elements=elements))


@settings(deadline=None)
@given(actions())
def test_every_chunk_is_contained(chunk):
    coefficients = np.around(dct(chunk, axis=0, norm="ortho") * SCALE).astype(int)
    limits = action_range(len(chunk), SCALE)
    assert limits.contains(coefficients)
    size = np.full(3, len(chunk))
    assert limits.overlaps(coefficients.T, coefficients.T, size).all()


@settings(deadline=None)
@given(st.integers(1, MAX_HORIZON), seeds, st.sampled_from([0.0, 0.5, 1.0]))
def test_any_walk_ends_in_a_chunk(horizon, seed, extreme):
    path = walk(horizon, np.random.default_rng(seed), extreme)
    limits = action_range(horizon, SCALE)
    assert limits.contains(path.T)
    decoded = idct(path.T / SCALE, axis=0, norm="ortho")
    assert np.abs(decoded).max() <= 1 + limits.rounding_error + TOLERANCE


@settings(deadline=None)
@given(horizons, seeds, st.sampled_from([0.0, 0.5, 1.0]), st.data())
def test_one_beyond_the_interval_is_not_contained(horizon, seed, extreme, data):
    path = walk(horizon, np.random.default_rng(seed), extreme)
    k = data.draw(st.integers(0, horizon - 1))
    low, high = action_range(horizon, SCALE).interval(path[:, :k])
    path[0, k] = data.draw(st.sampled_from([low[0] - 1, high[0] + 1]))
    assert not action_range(horizon, SCALE).contains(path.T)


@settings(deadline=None)
@given(horizons, seeds, st.integers(-25, 25), st.integers(0, 30), st.data())
def test_overlaps_agrees_with_the_intervals(horizon, seed, last, width, data):
    """Of a path that may leave the range at its last coefficient, one of several."""
    path = walk(horizon, np.random.default_rng(seed), 0.5)
    k = data.draw(st.integers(0, horizon - 1))
    low, high = action_range(horizon, SCALE).interval(path[:, :k])
    lows, highs = path.copy(), path.copy()
    lows[0, k], highs[0, k] = last, last + width
    lows[0, k + 1 :] = highs[0, k + 1 :] = 999  # not looked at
    got = action_range(horizon, SCALE).overlaps(lows, highs, np.array([k + 1]))
    assert got[0] == (last <= high[0] and last + width >= low[0])


@pytest.mark.parametrize("horizon", [1, 2, 5, 8])
def test_the_rounding_error_is_reached(horizon):
    basis = dct(np.eye(horizon), axis=0, norm="ortho")
    worst = max(np.abs(0.5 / SCALE * basis.T @ np.sign(column)).max() for column in basis.T)
    assert action_range(horizon, SCALE).rounding_error == pytest.approx(worst)


def test_long_horizons_are_refused_by_name():
    with pytest.raises(ValueError, match="expected a horizon of at most 8, got 9"):
        action_range(MAX_HORIZON + 1, SCALE).interval(np.zeros((1, 0), np.int64))


def test_long_horizons_are_still_checked_by_what_they_decode_to():
    limits = ActionRange(50, SCALE)
    chunk = np.random.default_rng(0).uniform(-1, 1, (50, 2))
    coefficients = np.around(dct(chunk, axis=0, norm="ortho") * SCALE).astype(int)
    assert limits.contains(coefficients)
    coefficients[3] += 60
    assert not limits.contains(coefficients)
