"""Batches of training examples, drawn by step.

The content of a batch depends on the seed and the step alone, so that a run which is resumed, or
spread over processes, sees the same batches.

Legend: B batch, K flow draws per sample, F = B * K, T chunk step, A action dim, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from nora_core.types import Float64
from nora_policy.models.inputs import IGNORED
from nora_policy.models.nora15 import Targets
from nora_training.data.alignment import Int64
from nora_training.sft.augment import Augment, Changes
from nora_training.sft.examples import Examples

BETA, TAU_SCALE, TAU_MIN = 1.5, 0.999, 0.001
ORDER, NOISE, IMAGES = 0, 1, 2  # independent streams of random numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One part of the samples of an optimizer step, on the CPU.

    `targets`: what NORA-1.5 is trained with. `last_B`: index of the last prompt token.
    `keyframe_B3`: m. `num_samples`: of the whole optimizer step, over all parts and processes.
    """

    targets: Targets
    last_B: torch.Tensor
    keyframe_B3: torch.Tensor
    num_samples: int


@dataclass(frozen=True, slots=True)
class Share:
    """The part of every batch that this process computes."""

    rank: int = 0
    world: int = 1


class Batches:
    """The batches of a run, by step.

    Raises:
        ValueError: there are no samples, or `batch_size` cannot be divided evenly.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        share: Share = Share(),
        flow_draws: int = 1,
        augment: Augment | None = None,
    ) -> None:
        if not len(examples):
            raise ValueError("samples: no step of the training episodes has an image")
        if batch_size % (share.world * accumulate):
            raise ValueError(
                f"batch_size: must be a multiple of {share.world} processes x {accumulate} "
                f"parts, got {batch_size}"
            )
        self._examples, self._seed, self._size = examples, seed, batch_size
        self._draws, self._augment = flow_draws, augment
        size = batch_size // share.world // accumulate
        first = share.rank * accumulate
        self._parts = [slice(k * size, (k + 1) * size) for k in range(first, first + accumulate)]

    def indices(self, step: int) -> Int64:
        """Samples of optimizer step `step` (B,): epoch after epoch, each in its own order."""
        count = len(self._examples)
        epoch_B, place_B = np.divmod(step * self._size + np.arange(self._size), count)
        orders = {e: _order(count, self._seed, e) for e in np.unique(epoch_B).tolist()}
        pairs = zip(epoch_B.tolist(), place_B.tolist(), strict=True)
        return np.array([orders[epoch][place] for epoch, place in pairs])

    def at(self, step: int) -> list[Batch]:
        """The parts of step `step` that this process computes, one after the other."""
        examples, index_B = self._examples, self.indices(step)
        random = np.random.default_rng([self._seed, NOISE, step])
        actions_BTA, is_real_BT = examples.samples.chunks(index_B)
        shape = (len(index_B), self._draws, *actions_BTA.shape[1:])
        noise_BKTA = random.standard_normal(shape, np.float32)
        # Beta(a, 1) has the distribution function tau^a.
        tau_BK = random.random(shape[:2]) ** (1 / BETA) * TAU_SCALE + TAU_MIN
        changes_P = self._changes(step)
        num_tokens = sum(len(examples.target(i)) for i in index_B.tolist())
        parts = []
        for part, changes in zip(self._parts, changes_P, strict=True):
            inputs, labels_BL = examples.inputs(index_B[part], has_target=True, changes=changes)
            expert_mask_BL = inputs.attention_mask_BL.bool() & (labels_BL == IGNORED)
            targets = Targets(
                inputs=inputs,
                labels_BL=labels_BL,
                expert_mask_BL=expert_mask_BL,
                actions_BTA=_float32(actions_BTA[part]),
                is_real_BT=torch.from_numpy(is_real_BT[part]),
                noise_FTA=torch.from_numpy(noise_BKTA[part]).flatten(0, 1),
                tau_F=_float32(tau_BK[part]).flatten(),
                num_tokens=num_tokens,
                num_steps=int(is_real_BT.sum()),
            )
            parts.append(
                Batch(
                    targets=targets,
                    last_B=expert_mask_BL.sum(dim=1) - 1,
                    keyframe_B3=_float32(examples.keyframes(index_B[part])),
                    num_samples=len(index_B),
                )
            )
        return parts

    def _changes(self, step: int) -> list[Changes | None]:
        """Image changes of each part; those of an image do not depend on how parts are cut."""
        if self._augment is None:
            return [None] * len(self._parts)
        random = np.random.default_rng([self._seed, IMAGES, step])
        each = self._examples.num_cameras
        changes = self._augment.draw(random, self._size * each, self._examples.image_size)
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
