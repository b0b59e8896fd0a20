"""Index arithmetic of the samples against the plain lists it stands for."""

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nora_training.data.dataset import NO_IMAGE, Steps
from nora_training.data.samples import chunk, locate, starts
from nora_training.sft.keyframes import to_keyframe

lengths = st.lists(st.integers(0, 5), min_size=1, max_size=8)


@given(lengths)
def test_locate_finds_every_place_of_every_episode_in_order(lengths):
    ends = np.cumsum(lengths)
    expected = [(e, i) for e, length in enumerate(lengths) for i in range(length)]
    assert [locate(ends, index) for index in range(int(ends[-1]))] == expected


def walk(stretches, observed=None) -> Steps:
    """An arm that goes where it is told to, and is pushed by 2 cm between `stretches`."""
    num = sum(stretches)
    actions = np.random.default_rng(num).normal(scale=0.01, size=(num, 7))
    pushed = np.zeros((num, 3))
    pushed[np.cumsum(stretches)[:-1], 1] = 0.02
    steps = actions[:, :3]
    positions = steps.cumsum(axis=0) - steps + pushed.cumsum(axis=0)
    stamps = np.arange(num) * 200_000_000
    images = stamps if observed is None else np.where(observed, stamps, NO_IMAGE)
    return Steps(stamps, images, actions, actions[:, :6].copy(), positions)


stretches = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@given(stretches, st.integers(1, 6), st.data())
def test_a_start_has_an_image_and_as_many_real_steps_as_asked_for(stretches, num_real, data):
    left = [length - i for length in stretches for i in range(length)]
    observed = data.draw(st.lists(st.booleans(), min_size=len(left), max_size=len(left)))
    expected = [i for i, rest in enumerate(left) if observed[i] and rest >= num_real]
    assert starts(walk(stretches, observed), num_real).tolist() == expected


@given(stretches, st.integers(1, 8), st.data())
def test_a_chunk_is_what_followed_and_then_stands_still_unreal(stretches, horizon, data):
    steps = walk(stretches)
    start = data.draw(st.integers(0, sum(stretches) - 1))
    end = next(end for end in np.cumsum(stretches).tolist() if end > start)
    before = steps.actions_NA.copy()
    found, is_real = chunk(steps.future(start), horizon)
    real = steps.actions_NA[start : min(start + horizon, end)]
    assert found.shape == (horizon, 7)
    assert is_real.tolist() == [i < len(real) for i in range(horizon)]
    np.testing.assert_array_equal(found[is_real], real)
    assert not found[~is_real, :6].any()
    assert (found[~is_real, 6] == steps.actions_NA[end - 1, 6]).all()
    np.testing.assert_array_equal(steps.actions_NA, before)


def test_without_measured_positions_an_episode_is_one_stretch():
    steps = walk([3, 4])
    unknown = dataclasses.replace(steps, positions_N3=np.full((7, 3), np.nan))
    assert steps.ends_N.tolist() == [3] * 3 + [7] * 4
    assert unknown.ends_N.tolist() == [7] * 7


def test_the_keyframe_is_where_the_tool_was_when_the_gripper_changed():
    steps = walk([3, 4])
    steps.actions_NA[:, 6] = np.arange(7) < 5
    place = np.array([5] * 5 + [7] * 2)
    path = np.vstack([steps.positions_N3, steps.positions_N3[-1] + steps.actions_NA[-1, :3]])
    expected = path[place] - steps.positions_N3
    np.testing.assert_allclose(to_keyframe(steps), expected, atol=1e-12)
    # Without positions all there is are the commands, which do not know of the push.
    unknown = dataclasses.replace(steps, positions_N3=np.full((7, 3), np.nan))
    expected[:3, 1] -= 0.02
    np.testing.assert_allclose(to_keyframe(unknown), expected, atol=1e-12)
