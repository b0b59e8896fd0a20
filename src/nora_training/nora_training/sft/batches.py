"""Batches of training samples, prepared at once: the same numbers as `Samples` and `Preprocessor`.

What a batch holds follows from the seed and the step alone, so that a run can be continued or
spread over processes and see the same.

Legend: S all samples, N all steps, B batch, K flow draws per sample, F = B * K, T chunk step,
A action dim, L tokens, R image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nora_core.images import UInt8, resize
from nora_core.normalization import Statistics, normalize
from nora_core.types import Float64
from nora_policy.models.config import NoraConfig
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.inputs import IGNORED, ModelInputs
from nora_policy.preprocess import Preprocessor
from nora_training.data.alignment import Int64
from nora_training.data.dataset import Dataset, Entry
from nora_training.data.samples import starts
from nora_training.sft.augment import Augment, Changes
from nora_training.sft.keyframes import to_keyframe

PAD = 0
BETA, TAU_SCALE, TAU_MIN = 1.5, 0.999, 0.001
ORDER, NOISE, IMAGES = 0, 1, 2  # streams of random numbers


@dataclass(frozen=True, slots=True)
class Batch:
    """A part of the samples of an optimizer step, on the CPU.

    `inputs`: prompts, and FAST tokens behind them where they are learned. `labels_BL`: `IGNORED`
    where nothing is. `expert_mask_BL`: the prompt. `last_B`: place of its last token.
    `is_real_BT`: False behind the end of a stretch. `noise_FTA`, `tau_F`: noise and flow time,
    the draws of one sample neighbours. `keyframe_B3`: m.
    `num_tokens`, `num_steps`, `num_samples`: what is learned from the samples of the whole
    optimizer step, over all parts and processes.
    """

    inputs: ModelInputs
    labels_BL: torch.Tensor
    expert_mask_BL: torch.Tensor
    last_B: torch.Tensor
    actions_BTA: torch.Tensor
    is_real_BT: torch.Tensor
    noise_FTA: torch.Tensor
    tau_F: torch.Tensor
    keyframe_B3: torch.Tensor
    num_tokens: int
    num_steps: int
    num_samples: int


class Source:
    """All samples of `entries`, by index: every step with an image starts one.

    `fast` is None where no tokens are learned. `only_complete` leaves out chunks that the end of
    an episode cuts: they have no tokens.
    """

    def __init__(
        self,
        dataset: Dataset,
        entries: Sequence[Entry],
        statistics: Statistics,
        config: NoraConfig,
        preprocessor: Preprocessor,
        fast: FastTokenizer | None,
        only_complete: bool = False,
    ) -> None:
        self._dataset, self._entries, self._config = dataset, tuple(entries), config
        self._preprocessor, self._fast = preprocessor, fast
        if not self._entries:
            raise ValueError("samples: expected episodes, got none")
        steps = [dataset.steps(entry) for entry in self._entries]
        num_real = config.horizon if only_complete else 1
        found = [starts(s, num_real) for s in steps]
        lengths = [len(s.actions_NA) for s in steps]
        offsets = np.cumsum(lengths, dtype=np.int64) - lengths
        counts = [len(f) for f in found]
        self._step_S = np.concatenate(found)
        self._episode_S = np.repeat(np.arange(len(steps)), counts)
        self._start_S = self._step_S + np.repeat(offsets, counts)
        ends_N = np.concatenate([s.ends_N + o for s, o in zip(steps, offsets, strict=True)])
        self._end_S = ends_N[self._start_S]
        self.actions_NA: Float64 = np.concatenate([s.actions_NA for s in steps])
        self._normalised_NA = normalize(self.actions_NA, statistics)
        self._still_A = normalize(np.zeros(config.action_dim), statistics)
        self._keyframe_N3 = np.concatenate([to_keyframe(s) for s in steps])
        self._prompts = [preprocessor.prompt(entry.instruction) for entry in self._entries]
        self._targets: dict[int, list[int]] = {}
        self._frames: dict[tuple[int, str], tuple[Path, int]] = {}

    def __len__(self) -> int:
        return len(self._step_S)

    @property
    def num_cameras(self) -> int:
        return len(self._dataset.embodiment.cameras)

    @property
    def image_size(self) -> int:
        """px, of what the network reads."""
        return self._config.image_size

    def num_real(self, index_B: Int64) -> Int64:
        """Steps of each chunk that are real (B,)."""
        left: Int64 = self._end_S[index_B] - self._start_S[index_B]
        return np.minimum(left, self._config.horizon)

    def chunks(self, index_B: Int64) -> tuple[Float64, NDArray[np.bool_]]:
        """Normalised actions (B, T, A) and which are real (B, T), as in `Sample`."""
        step_BT = self._start_S[index_B, None] + np.arange(self._config.horizon)
        end_B1 = self._end_S[index_B, None]
        is_real_BT = step_BT < end_B1
        actions_BTA = self._normalised_NA[np.minimum(step_BT, end_B1 - 1)]
        actions_BTA[~is_real_BT, :6] = self._still_A[:6]
        return actions_BTA, is_real_BT

    def physical(self, index_B: Int64) -> Float64:
        """Recorded actions (B, T, A) as they are, m, rad, opening; the last one is repeated."""
        step_BT = self._start_S[index_B, None] + np.arange(self._config.horizon)
        last_B1 = self._end_S[index_B, None] - 1
        actions_BTA: Float64 = self.actions_NA[np.minimum(step_BT, last_B1)]
        return actions_BTA

    def keyframes(self, index_B: Int64) -> Float64:
        """(B, 3), m: see `to_keyframe`."""
        return self._keyframe_N3[self._start_S[index_B]]

    def target(self, index: int) -> list[int]:
        """Token ids to learn, none for a chunk that is not real to its end."""
        if self._fast is None or self.num_real(np.array([index]))[0] < self._config.horizon:
            return []
        if index not in self._targets:
            chunk_TA = self.chunks(np.array([index]))[0][0]
            self._targets[index] = self._preprocessor.target(self._fast.encode(chunk_TA))
        return self._targets[index]

    def prompt(self, index: int) -> list[int]:
        return self._prompts[self._episode_S[index]]

    def images(self, index_B: Int64) -> UInt8:
        """(B * cameras, R, R, 3), of the size that the network reads."""
        cameras, size = self._dataset.embodiment.cameras, self._dataset.settings.image_size
        out = np.empty((len(index_B), len(cameras), size, size, 3), np.uint8)
        for row, index in enumerate(index_B.tolist()):
            for column, camera in enumerate(cameras):
                path, offset = self._frame_file(int(self._episode_S[index]), camera.name)
                with path.open("rb") as file:
                    file.seek(offset + int(self._step_S[index]) * out[row, column].nbytes)
                    file.readinto(out[row, column].data)
        images = out.reshape(-1, size, size, 3)
        wanted = self._config.image_size
        if size == wanted:
            return images
        return np.stack([resize(image, wanted, wanted) for image in images])

    def inputs(
        self, index_B: Int64, has_target: bool, changes: Changes | None = None
    ) -> tuple[ModelInputs, torch.Tensor]:
        """What the network reads, padded behind the text, and the labels (B, L)."""
        indices = index_B.tolist()
        prompts = [self.prompt(i) for i in indices]
        targets = [self.target(i) if has_target else [] for i in indices]
        length = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
        ids_BL = np.full((len(indices), length), PAD)
        mask_BL = np.zeros((len(indices), length), np.int64)
        labels_BL = np.full((len(indices), length), IGNORED)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            end = len(prompt) + len(target)
            ids_BL[row, :end] = prompt + target
            mask_BL[row, :end] = 1
            labels_BL[row, len(prompt) : end] = target
        images = self.images(index_B)
        inputs = ModelInputs(
            torch.from_numpy(ids_BL),
            torch.from_numpy(mask_BL),
            *self._preprocessor.patches(images if changes is None else changes(images)),
        )
        return inputs, torch.from_numpy(labels_BL)

    def _frame_file(self, episode: int, camera: str) -> tuple[Path, int]:
        """Where the images are and begin: a map per file would keep thousands of files open."""
        key = (episode, camera)
        if key not in self._frames:
            images = self._dataset.images(self._entries[episode], camera)
            assert isinstance(images, np.memmap)
            self._frames[key] = (Path(str(images.filename)), images.offset)
        return self._frames[key]


@dataclass(frozen=True, slots=True)
class Share:
    """Which part of every batch is this process's."""

    rank: int = 0
    world: int = 1


class Batches:
    """The batches of a run, by step.

    Raises:
        ValueError: there are no samples, or `batch_size` cannot be shared.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        accumulate: int,
        seed: int,
        share: Share,
        flow_draws: int = 1,
        augment: Augment | None = None,
    ) -> None:
        if not len(source):
            raise ValueError("samples: expected steps with an image to learn from, got none")
        if batch_size % (share.world * accumulate):
            raise ValueError(
                f"batch_size: expected a multiple of {share.world} processes x {accumulate} "
                f"parts, got {batch_size}"
            )
        self._source, self._seed, self._size = source, seed, batch_size
        self._draws, self._augment = flow_draws, augment
        size = batch_size // share.world // accumulate
        first = share.rank * accumulate
        self._parts = [slice(k * size, (k + 1) * size) for k in range(first, first + accumulate)]

    def indices(self, step: int) -> Int64:
        """Samples of optimizer step `step` (B,): epoch after epoch, each in its own order."""
        epoch_B, place_B = np.divmod(step * self._size + np.arange(self._size), len(self._source))
        orders = {e: _order(len(self._source), self._seed, e) for e in np.unique(epoch_B).tolist()}
        pairs = zip(epoch_B.tolist(), place_B.tolist(), strict=True)
        return np.array([orders[epoch][place] for epoch, place in pairs])

    def at(self, step: int) -> list[Batch]:
        """The parts of step `step` that this process computes, one after the other."""
        source, index_B = self._source, self.indices(step)
        random = np.random.default_rng([self._seed, NOISE, step])
        actions_BTA, is_real_BT = source.chunks(index_B)
        shape = (len(index_B), self._draws, *actions_BTA.shape[1:])
        noise_BKTA = random.standard_normal(shape, np.float32)
        # Beta(a, 1) has the distribution function tau^a.
        tau_BK = random.random(shape[:2]) ** (1 / BETA) * TAU_SCALE + TAU_MIN
        changes_P = self._changes(step)
        num_tokens = sum(len(source.target(i)) for i in index_B.tolist())
        parts = []
        for part, changes in zip(self._parts, changes_P, strict=True):
            inputs, labels_BL = source.inputs(index_B[part], True, changes)
            expert_mask_BL = inputs.attention_mask_BL.bool() & (labels_BL == IGNORED)
            parts.append(
                Batch(
                    inputs=inputs,
                    labels_BL=labels_BL,
                    expert_mask_BL=expert_mask_BL,
                    last_B=expert_mask_BL.sum(dim=1) - 1,
                    actions_BTA=_float32(actions_BTA[part]),
                    is_real_BT=torch.from_numpy(is_real_BT[part]),
                    noise_FTA=torch.from_numpy(noise_BKTA[part]).flatten(0, 1),
                    tau_F=_float32(tau_BK[part]).flatten(),
                    keyframe_B3=_float32(source.keyframes(index_B[part])),
                    num_tokens=num_tokens,
                    num_steps=int(is_real_BT.sum()),
                    num_samples=len(index_B),
                )
            )
        return parts

    def _changes(self, step: int) -> list[Changes | None]:
        """Of the images of each part: what an image becomes does not depend on the parts."""
        if self._augment is None:
            return [None] * len(self._parts)
        random = np.random.default_rng([self._seed, IMAGES, step])
        each = self._source.num_cameras
        changes = self._augment.draw(random, self._size * each, self._source.image_size)
        return [changes.part(slice(p.start * each, p.stop * each)) for p in self._parts]

    def run(self, start: int, end: int) -> Iterator[list[Batch]]:
        """Steps `start` to `end`, each prepared while the one before is learned."""
        with ThreadPoolExecutor(1, "batches") as pool:
            following = pool.submit(self.at, start)
            for step in range(start, end):
                batch = following.result()
                if step + 1 < end:
                    following = pool.submit(self.at, step + 1)
                yield batch


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Int64:
    return np.random.default_rng([seed, ORDER, epoch]).permutation(count)


def _float32(x: Float64) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float32))
