"""Index arithmetic of the samples against the plain lists it stands for."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nora_training.samples import chunk, locate, starts

lengths = st.lists(st.integers(0, 5), min_size=1, max_size=8)


@given(lengths)
def test_locate_finds_every_place_of_every_episode_in_order(lengths):
    ends = np.cumsum(lengths)
    expected = [(e, i) for e, length in enumerate(lengths) for i in range(length)]
    assert [locate(ends, index) for index in range(int(ends[-1]))] == expected


@given(st.lists(st.booleans(), max_size=12), st.integers(1, 6))
def test_a_start_has_an_image_and_as_many_real_steps_as_asked_for(observed, num_real):
    n = len(observed)
    expected = [i for i in range(n) if observed[i] and i + num_real <= n]
    assert starts(np.array(observed, bool), num_real).tolist() == expected


@given(st.integers(1, 12), st.integers(1, 8), st.data())
def test_a_chunk_is_what_followed_and_then_stands_still_unreal(num_steps, horizon, data):
    start = data.draw(st.integers(0, num_steps - 1))
    actions = np.random.default_rng(num_steps).normal(size=(num_steps, 7))
    before = actions.copy()
    found, is_real = chunk(actions, start, horizon)
    real = actions[start : start + horizon]
    assert found.shape == (horizon, 7)
    assert is_real.tolist() == [i < len(real) for i in range(horizon)]
    np.testing.assert_array_equal(found[is_real], real)
    assert not found[~is_real, :6].any()
    assert (found[~is_real, 6] == actions[-1, 6]).all()
    np.testing.assert_array_equal(actions, before)
