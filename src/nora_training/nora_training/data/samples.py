"""What the trainer draws: an observation and the normalised chunk that followed it.

Legend: T chunk step, A action dim, E episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nora_core.normalization import Statistics, normalize
from nora_core.types import Float64, Observation
from nora_training.data.alignment import Int64
from nora_training.data.dataset import NO_IMAGE, Dataset, Entry, Steps


@dataclass(frozen=True, slots=True)
class Sample:
    """`actions_TA`: normalised. `is_real_T`: False behind the end of the episode or stretch.

    What is not real must not be learned: it is standing still with the gripper as it was, there
    only so that a batch has one shape. Masked and not left out, because a policy that executes
    the first step of each chunk must have learned from the last images of an episode as well.
    """

    observation: Observation
    actions_TA: Float64
    is_real_T: NDArray[np.bool_]


class Samples(Sequence[Sample]):
    """Every step with an image starts a sample, in the order of `entries`.

    Args:
        dataset: where the images are read from, when they are asked for.
        entries: the episodes to draw from.
        statistics: to normalise by.
        horizon: steps per chunk, T.
        only_complete: leave out what would not be real to the end, as a loss over the tokens of
            whole chunks needs it.
    """

    def __init__(
        self,
        dataset: Dataset,
        entries: Sequence[Entry],
        statistics: Statistics,
        horizon: int,
        only_complete: bool = False,
    ) -> None:
        self._dataset, self._entries = dataset, tuple(entries)
        self._statistics, self._horizon = statistics, horizon
        self._steps = [dataset.steps(entry) for entry in self._entries]
        self._starts = [starts(steps, horizon if only_complete else 1) for steps in self._steps]
        self._ends_E = np.cumsum([len(s) for s in self._starts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends_E[-1]) if len(self._ends_E) else 0

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        """Negative indices count from the end; raises `IndexError` beyond."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample: expected an index below {len(self)}, got {index}")
        episode, offset = locate(self._ends_E, index % len(self))
        step = int(self._starts[episode][offset])
        entry, steps = self._entries[episode], self._steps[episode]
        assert steps.image_stamps_N[step] != NO_IMAGE
        images = [
            np.array(self._dataset.images(entry, camera.name)[step])
            for camera in self._dataset.embodiment.cameras
        ]
        actions_TA, is_real_T = chunk(steps.future(step), self._horizon)
        return Sample(
            Observation(tuple(images), entry.instruction, int(steps.image_stamps_N[step])),
            normalize(actions_TA, self._statistics),
            is_real_T,
        )


def starts(steps: Steps, num_real: int) -> Int64:
    """Steps with an image and `num_real` steps from there to the end of the stretch, or more."""
    left_N = steps.ends_N - np.arange(len(steps.stamps_N))
    return np.flatnonzero(steps.is_observed_N & (left_N >= num_real))


def locate(ends_E: Int64, index: int) -> tuple[int, int]:
    """Episode and place in it of sample `index`; `ends_E` is the running sum of the lengths."""
    episode = int(np.searchsorted(ends_E, index, side="right"))
    return episode, index - (int(ends_E[episode - 1]) if episode else 0)


def chunk(future_SA: Float64, horizon: int) -> tuple[Float64, NDArray[np.bool_]]:
    """The first `horizon` actions of `Steps.future`, and which are real; the rest stand still."""
    index_T = np.arange(horizon)
    is_real_T = index_T < len(future_SA)
    actions_TA = future_SA[np.minimum(index_T, len(future_SA) - 1)]
    actions_TA[~is_real_T, :6] = 0.0
    return actions_TA, is_real_T
