"""Training samples: an observation and the normalised action chunk that follows it.

Legend: S all samples, N all steps, B batch, C cameras, T chunk step, A action dim, R image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nora_core.images import UInt8
from nora_core.normalization import Statistics, normalize
from nora_core.types import Float64, Observation
from nora_training.data.alignment import Int64
from nora_training.data.dataset import Dataset, Entry, Steps


@dataclass(frozen=True, slots=True)
class Sample:
    """`actions_TA` is normalised; `is_real_T` is False past the end of the episode or segment.

    Steps that are not real must be masked out of every loss. They only give a batch one shape: no
    motion, gripper unchanged. Such chunks are masked and not dropped, because a policy that
    executes the first step of each chunk must also learn from the last images of an episode.
    """

    observation: Observation
    actions_TA: Float64
    is_real_T: NDArray[np.bool_]


class Samples(Sequence[Sample]):
    """All samples of `entries`, in their order: every step that has an image starts one.

    Trainer, validation, comparison and the FAST vocabulary all read from here: one sample by its
    index, or the arrays of many samples at once.

    Args:
        dataset: images are read from its files when they are asked for.
        entries: the episodes.
        statistics: for normalisation.
        horizon: steps per chunk, T.
        only_complete: leave out chunks that the end of a segment cuts off, as a loss over the
            tokens of whole chunks requires.
    """

    def __init__(
        self,
        dataset: Dataset,
        entries: Sequence[Entry],
        statistics: Statistics,
        horizon: int,
        *,
        only_complete: bool = False,
    ) -> None:
        self.dataset, self.entries, self.horizon = dataset, tuple(entries), horizon
        self.steps = tuple(dataset.steps(entry) for entry in self.entries)
        found = [_starts(steps, horizon if only_complete else 1) for steps in self.steps]
        lengths = [len(steps.stamps_N) for steps in self.steps]
        offsets = np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(lengths)]
        counts = [len(starts) for starts in found]
        self._step_S = _joined(found)
        self._episode_S = np.repeat(np.arange(len(found)), counts)
        self._start_S = self._step_S + np.repeat(offsets, counts)
        ends_N = _joined([s.ends_N + o for s, o in zip(self.steps, offsets, strict=True)])
        self._end_S = ends_N[self._start_S]
        num_actions = len(statistics.q01_A)
        self._actions_NA = np.concatenate(
            [np.empty((0, num_actions)), *(steps.actions_NA for steps in self.steps)]
        )
        self._normalised_NA = normalize(self._actions_NA, statistics)
        self._still_A = normalize(np.zeros(num_actions), statistics)
        self._frames: dict[tuple[int, str], tuple[Path, int]] = {}

    def __len__(self) -> int:
        return len(self._step_S)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        """Negative indices count from the end; raises `IndexError` beyond."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample: expected an index below {len(self)}, got {index}")
        index %= len(self)
        actions_BTA, is_real_BT = self.chunks(np.array([index]))
        return Sample(self.observation(index), actions_BTA[0], is_real_BT[0])

    def observation(self, index: int) -> Observation:
        """The images, the instruction and the time stamp that a policy would be given."""
        episode, step = self.episode(index), int(self._step_S[index])
        stamp_ns = int(self.steps[episode].image_stamps_N[step])
        images = tuple(self.images(np.array([index]))[0])
        return Observation(images, self.entries[episode].instruction, stamp_ns)

    def episode(self, index: int) -> int:
        """The index into `entries` of the episode of a sample."""
        return int(self._episode_S[index])

    def num_real(self, index_B: Int64) -> Int64:
        """The number of real steps of each chunk (B,)."""
        left_B: Int64 = self._end_S[index_B] - self._start_S[index_B]
        return np.minimum(left_B, self.horizon)

    def chunks(self, index_B: Int64) -> tuple[Float64, NDArray[np.bool_]]:
        """Normalised actions (B, T, A) and which steps are real (B, T), as in `Sample`."""
        step_BT, end_B1 = self._steps_of(index_B)
        is_real_BT = step_BT < end_B1
        actions_BTA = self._normalised_NA[np.minimum(step_BT, end_B1 - 1)]
        actions_BTA[~is_real_BT, :6] = self._still_A[:6]
        return actions_BTA, is_real_BT

    def physical(self, index_B: Int64) -> Float64:
        """Recorded actions (B, T, A) in m, rad and opening; the last real one is repeated."""
        step_BT, end_B1 = self._steps_of(index_B)
        actions_BTA: Float64 = self._actions_NA[np.minimum(step_BT, end_B1 - 1)]
        return actions_BTA

    def at_start(self, values_N: NDArray[np.float64], index_B: Int64) -> Float64:
        """The rows of `values_N`, one per step of all entries, at which samples start."""
        rows_B: Float64 = values_N[self._start_S[index_B]]
        return rows_B

    def images(self, index_B: Int64) -> UInt8:
        """(B, C, R, R, 3), of the data set's image size."""
        cameras, size = self.dataset.embodiment.cameras, self.dataset.settings.image_size
        images_BCRR3 = np.empty((len(index_B), len(cameras), size, size, 3), np.uint8)
        for row, index in zip(images_BCRR3, index_B.tolist(), strict=True):
            for image, camera in zip(row, cameras, strict=True):
                path, offset = self._image_file(self.episode(index), camera.name)
                with path.open("rb") as file:
                    file.seek(offset + int(self._step_S[index]) * image.nbytes)
                    file.readinto(image.data)
        return images_BCRR3

    def _steps_of(self, index_B: Int64) -> tuple[Int64, Int64]:
        step_BT: Int64 = self._start_S[index_B, None] + np.arange(self.horizon)
        return step_BT, self._end_S[index_B, None]

    def _image_file(self, episode: int, camera: str) -> tuple[Path, int]:
        """File and offset of the pixels; a memory map per file would keep thousands open."""
        key = (episode, camera)
        if key not in self._frames:
            images = self.dataset.images(self.entries[episode], camera)
            assert isinstance(images, np.memmap)
            self._frames[key] = (Path(str(images.filename)), images.offset)
        return self._frames[key]


def _starts(steps: Steps, num_real: int) -> Int64:
    """Steps with an image and at least `num_real` steps from there to the end of the segment."""
    left_N = steps.ends_N - np.arange(len(steps.stamps_N))
    return np.flatnonzero(steps.is_observed_N & (left_N >= num_real))


def _joined(parts: Sequence[Int64]) -> Int64:
    return np.concatenate([np.empty(0, np.int64), *parts])
