"""Index arithmetic of `Samples` against the plain lists it stands for."""

import dataclasses
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nora_core.normalization import Statistics, normalize
from nora_training.data.dataset import NO_IMAGE, Steps
from nora_training.data.samples import Samples
from nora_training.sft.keyframes import to_keyframe

STATISTICS = Statistics(np.full(7, -0.02), np.full(7, 0.02), np.arange(7) < 6)


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


def samples_of(episodes, horizon, **options) -> Samples:
    """`episodes`, which a data set on disk would hold; images are not asked for."""
    dataset = SimpleNamespace(steps=lambda steps: steps)
    return Samples(dataset, episodes, STATISTICS, horizon, **options)


stretches = st.lists(st.integers(1, 6), min_size=1, max_size=4)
episodes = st.lists(stretches, min_size=1, max_size=4)


@given(episodes, st.integers(1, 6), st.booleans(), st.data())
def test_samples_are_the_steps_with_an_image_and_chunks_what_followed(
    episodes, horizon, only_complete, data
):
    walks, expected = [], []
    for number, lengths in enumerate(episodes):
        left = [length - i for length in lengths for i in range(length)]
        observed = data.draw(st.lists(st.booleans(), min_size=len(left), max_size=len(left)))
        walks.append(walk(lengths, observed))
        wanted = horizon if only_complete else 1
        expected += [
            (number, i, rest) for i, rest in enumerate(left) if observed[i] and rest >= wanted
        ]
    before = [steps.actions_NA.copy() for steps in walks]
    samples = samples_of(walks, horizon, only_complete=only_complete)
    assert len(samples) == len(expected)
    index = np.arange(len(samples))
    (found, is_real), physical = samples.chunks(index), samples.physical(index)
    still = normalize(np.zeros(7), STATISTICS)
    assert found.shape == (len(samples), horizon, 7)
    for i, (number, start, rest) in enumerate(expected):
        count, actions = min(rest, horizon), walks[number].actions_NA
        real = actions[start : start + count]
        assert (samples.episode(i), samples.num_real(index[i : i + 1])) == (number, count)
        assert is_real[i].tolist() == [t < count for t in range(horizon)]
        np.testing.assert_array_equal(found[i, :count], normalize(real, STATISTICS))
        np.testing.assert_array_equal(physical[i, :count], real)
        # Past the end: no motion, the gripper as it was.
        assert (found[i, count:, :6] == still[:6]).all()
        assert (found[i, count:, 6] == actions[start + count - 1, 6]).all()
    for steps, actions in zip(walks, before, strict=True):
        np.testing.assert_array_equal(steps.actions_NA, actions)


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
