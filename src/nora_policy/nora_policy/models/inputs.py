"""What a network reads. Legend: B batch, L tokens, P patches, C patch values, N images."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED = -100  # label of a token that is not learned


@dataclass(frozen=True, slots=True)
class ModelInputs:
    """What the network reads, on the CPU.

    `input_ids_BL`, `attention_mask_BL`: int64, mask 0 at padding: in front of a text that
    is to be continued, behind one that is learned.
    `pixel_values_PC`: float32 patches of all images, row after row of the batch.
    `image_grid_N3`: int64, frames, rows and columns of patches of every image.
    """

    input_ids_BL: torch.Tensor
    attention_mask_BL: torch.Tensor
    pixel_values_PC: torch.Tensor
    image_grid_N3: torch.Tensor
