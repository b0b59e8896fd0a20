"""Samples as the network reads them: prompts, FAST tokens to predict, image patches.

Legend: B batch, L tokens, N steps of all episodes, R image size.
"""

from __future__ import annotations

import numpy as np
import torch

from nora_core.images import UInt8, resize
from nora_core.types import Float64
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.inputs import IGNORED, ModelInputs
from nora_policy.preprocess import Preprocessor
from nora_training.data.alignment import Int64
from nora_training.data.samples import Samples
from nora_training.sft.augment import Changes
from nora_training.sft.keyframes import to_keyframe

PAD = 0


class Examples:
    """`samples` prepared many at once: the same numbers as from `Preprocessor` one by one.

    `fast` is None where no tokens are learned. `image_size`: pixels, what the network reads.
    """

    def __init__(
        self,
        samples: Samples,
        preprocessor: Preprocessor,
        *,
        fast: FastTokenizer | None,
        image_size: int,
    ) -> None:
        self.samples, self.image_size = samples, image_size
        self._preprocessor, self._fast = preprocessor, fast
        self._prompts = [preprocessor.prompt(entry.instruction) for entry in samples.entries]
        keyframes = [to_keyframe(steps) for steps in samples.steps]
        self._keyframe_N3 = np.concatenate(keyframes) if keyframes else np.empty((0, 3))
        self._targets: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def num_cameras(self) -> int:
        return len(self.samples.dataset.embodiment.cameras)

    def keyframes(self, index_B: Int64) -> Float64:
        """Displacements (B, 3), m: see `to_keyframe`."""
        return self.samples.at_start(self._keyframe_N3, index_B)

    def target(self, index: int) -> list[int]:
        """Token ids to learn; empty for an incomplete chunk, which has no tokens."""
        if self._fast is None or self.samples.num_real(np.array([index]))[0] < (
            self.samples.horizon
        ):
            return []
        if index not in self._targets:
            chunk_TA = self.samples.chunks(np.array([index]))[0][0]
            self._targets[index] = self._preprocessor.target(self._fast.encode(chunk_TA))
        return self._targets[index]

    def inputs(
        self, index_B: Int64, *, has_target: bool, changes: Changes | None = None
    ) -> tuple[ModelInputs, torch.Tensor]:
        """What the network reads, padded on the right, and the labels (B, L)."""
        indices = index_B.tolist()
        prompts = [self._prompts[self.samples.episode(i)] for i in indices]
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
        images = self._images(index_B)
        inputs = ModelInputs(
            torch.from_numpy(ids_BL),
            torch.from_numpy(mask_BL),
            *self._preprocessor.patches(images if changes is None else changes(images)),
        )
        return inputs, torch.from_numpy(labels_BL)

    def _images(self, index_B: Int64) -> UInt8:
        """(B * cameras, R, R, 3), of the size that the network reads."""
        images_BCRR3 = self.samples.images(index_B)
        images = images_BCRR3.reshape(-1, *images_BCRR3.shape[2:])
        if images.shape[1] == self.image_size:
            return images
        return np.stack([resize(image, self.image_size, self.image_size) for image in images])
