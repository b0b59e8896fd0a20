"""Motion on a grid of steps: what goes in comes out, whatever the grid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from nora_training.data.alignment import NOOP_NORM, ToolPath, commanded_path, held, moving

PERIOD_NS = 200_000_000
EPOCH_NS = 1_700_000_000_123_456_789
small = st.floats(-0.1, 0.1)


@st.composite
def commands(draw, min_gap_ns=20_000_000, max_gap_ns=900_000_000):
    """Stamps (N,), translations (N, 3) and rotations (N, 3)."""
    n = draw(st.integers(1, 12))
    gaps = draw(st.lists(st.integers(min_gap_ns, max_gap_ns), min_size=n, max_size=n))
    translations, rotations = (draw(hnp.arrays(float, (n, 3), elements=small)) for _ in range(2))
    return EPOCH_NS + np.cumsum(gaps), translations, rotations


def composed(steps):
    total = Rotation.identity()
    for turn in Rotation.from_euler("xyz", steps[:, 3:]):
        total = turn * total
    return total


@given(commands(PERIOD_NS, PERIOD_NS))
def test_steps_that_lie_on_the_grid_come_out_as_they_are(given_commands):
    stamps, translations, rotations = given_commands
    path = commanded_path(stamps, translations, rotations, PERIOD_NS)
    grid = stamps[0] + PERIOD_NS * np.arange(len(stamps) + 1)
    np.testing.assert_allclose(path.steps(grid), np.hstack([translations, rotations]), atol=1e-9)


@given(commands(), st.integers(5_000_000, 500_000_000))
def test_all_motion_is_in_the_steps_and_nothing_else(given_commands, period_ns):
    stamps, translations, rotations = given_commands
    path = commanded_path(stamps, translations, rotations, PERIOD_NS)
    num_steps = -(-int(path.stamps_M[-1] - path.stamps_M[0]) // period_ns)
    steps = path.steps(stamps[0] + period_ns * np.arange(num_steps + 1))
    np.testing.assert_allclose(steps[:, :3].sum(axis=0), translations.sum(axis=0), atol=1e-9)
    expected = composed(np.hstack([translations, rotations]))
    assert (composed(steps) * expected.inv()).magnitude() < 1e-6


@given(commands(PERIOD_NS, PERIOD_NS), st.data())
def test_early_and_late_commands_are_neither_doubled_nor_lost(given_commands, data):
    grid, translations, rotations = given_commands
    late = st.integers(-10_000_000, 10_000_000)
    stamps = grid + np.array([data.draw(late) for _ in grid])
    path = commanded_path(stamps, translations, rotations, PERIOD_NS)
    steps = path.steps(np.append(grid, grid[-1] + PERIOD_NS))
    assert np.abs(steps[:, :3] - translations).max() <= 0.25 * 0.1  # doubled would be 0.1 more


@given(commands())
def test_before_and_after_the_path_nothing_moves(given_commands):
    path = commanded_path(*given_commands, PERIOD_NS)
    before = path.stamps_M[0] - PERIOD_NS * np.arange(3, -1, -1)
    after = path.stamps_M[-1] + PERIOD_NS * np.arange(4)
    for grid in (before, after):
        np.testing.assert_array_equal(path.steps(grid), np.zeros((3, 6)))


def test_measured_poses_give_the_steps_between_them():
    rng = np.random.default_rng(0)
    grid = EPOCH_NS + PERIOD_NS * np.arange(6)
    rotations = Rotation.from_rotvec(rng.normal(size=(6, 3)) * 0.3)
    positions = rng.normal(size=(6, 3))
    steps = ToolPath(grid, positions, rotations).steps(grid)
    np.testing.assert_allclose(steps[:, :3], np.diff(positions, axis=0), atol=1e-9)
    for i in range(5):
        moved = Rotation.from_euler("xyz", steps[i, 3:]) * rotations[i]
        assert (moved * rotations[i + 1].inv()).magnitude() < 1e-6


@pytest.mark.parametrize("stamps", [[5], [5, 5], [6, 5]])
def test_a_path_needs_two_knots_in_order(stamps):
    with pytest.raises(ValueError, match="increasing time"):
        ToolPath(np.array(stamps), np.zeros((len(stamps), 3)), Rotation.identity(len(stamps)))


def test_two_commands_of_the_same_time_are_refused():
    with pytest.raises(ValueError, match="one at a time"):
        commanded_path(np.array([5, 5]), np.zeros((2, 3)), np.zeros((2, 3)), PERIOD_NS)


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=8, unique=True).map(sorted),
    st.lists(st.integers(-5, 60), max_size=8),
)
def test_held_is_the_newest_value_so_far(stamps, times):
    values = np.arange(len(stamps)) * 1.5
    expected = [
        max([v for s, v in zip(stamps, values, strict=True) if s <= t] or [0.0]) for t in times
    ]
    found = held(np.array(stamps), values, np.array(times, np.int64))
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 0.99, 1.01, 3.0]), st.sampled_from([0.0, 1.0])),
        max_size=12,
    )
)
def test_exactly_the_steps_that_move_nothing_are_no_ops(rows):
    actions = np.zeros((len(rows), 7))
    for row, (size, opening) in zip(actions, rows, strict=True):
        row[:3] = size * NOOP_NORM / np.sqrt(3)
        row[6] = opening
    kept, gripper = [], actions[0, 6] if rows else 0.0
    for i, (size, opening) in enumerate(rows):
        if size > 1 or opening != gripper:
            kept.append(i)
            gripper = opening
    assert np.flatnonzero(moving(actions)).tolist() == kept
