"""Small changes of the images, drawn anew each time: a sample is never seen twice the same.

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
    """How much images may change; the labels stay as they are.

    Attributes:
        shift: sideways and up or down, as a share of the side; edges are repeated.
        jitter: of contrast and of brightness, as a share of full scale.
    """

    shift: float = 0.0
    jitter: float = 0.0

    def draw(self, random: np.random.Generator, num_images: int, size: int) -> Changes:
        """Changes of `num_images` images of `size` pixels."""
        reach = round(self.shift * size)
        jitter_F2 = random.uniform(-self.jitter, self.jitter, (num_images, 2))
        return Changes(reach, random.integers(0, 2 * reach + 1, (num_images, 2)), jitter_F2)


@dataclass(frozen=True, slots=True)
class Changes:
    """`offset_F2`: of the window in an image with `reach` pixels around it, down and right.

    `jitter_F2`: what contrast gains, and brightness.
    """

    reach: int
    offset_F2: Int64
    jitter_F2: Float64

    def part(self, which: slice) -> Changes:
        """Those of some of the images."""
        return Changes(self.reach, self.offset_F2[which], self.jitter_F2[which])

    def __call__(self, images_FRR3: UInt8) -> UInt8:
        """The images, changed; the ones given stay as they are."""
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
