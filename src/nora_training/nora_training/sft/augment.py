"""Random image augmentation, drawn anew each time a sample is used.

Legend: F images, R image size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nora_core.images import UInt8
from nora_core.types import Float64
from nora_training.data.alignment import Int64

GREY = 127.5


@dataclass(frozen=True, slots=True)
class Augment:
    """Strength of the augmentation of images; the labels do not change.

    Attributes:
        shift: largest horizontal and vertical shift, as a share of the side; edges are repeated.
        jitter: largest change of contrast and of brightness, as a share of full scale.
    """

    shift: float = 0.0
    jitter: float = 0.0

    def draw(self, random: np.random.Generator, num_images: int, size: int) -> Changes:
        """Draw the changes for `num_images` images of `size` pixels."""
        reach = round(self.shift * size)
        jitter_F2 = random.uniform(-self.jitter, self.jitter, (num_images, 2))
        return Changes(reach, random.integers(0, 2 * reach + 1, (num_images, 2)), jitter_F2)


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes drawn for a batch of images.

    Attributes:
        reach: padding around each image, pixels.
        offset_F2: offset of the crop window in the padded image, down and right, pixels.
        jitter_F2: change of contrast and of brightness, as a share of full scale.
    """

    reach: int
    offset_F2: Int64
    jitter_F2: Float64

    def part(self, which: slice) -> Changes:
        """Select the changes of some of the images."""
        return Changes(self.reach, self.offset_F2[which], self.jitter_F2[which])

    def __call__(self, images_FRR3: UInt8) -> UInt8:
        """Return changed copies of the images."""
        reach, size = self.reach, images_FRR3.shape[1]
        padding = ((0, 0), (reach, reach), (reach, reach), (0, 0))
        padded = np.pad(images_FRR3, padding, mode="edge")
        values: NDArray[np.float64] = np.arange(256.0)
        out = np.empty_like(images_FRR3)
        for image, source, (down, right), (contrast, brightness) in zip(
            out, padded, self.offset_F2, self.jitter_F2, strict=True
        ):
            changed = (values - GREY) * (1.0 + contrast) + GREY + 255.0 * brightness
            table = changed.round().clip(0, 255).astype(np.uint8)
            image[:] = table[source[down : down + size, right : right + size]]
        return out
