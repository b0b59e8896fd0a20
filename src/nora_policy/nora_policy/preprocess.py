"""Observation to model inputs: resize, patches, prompt. Serving and training both call this.

Legend: H W image size, R resized size, P patches, C patch values, B batch, L tokens, N images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from tokenizers import Tokenizer

from nora_core.embodiment import Camera
from nora_core.images import Float32, UInt8, orient, resize
from nora_core.types import Observation
from nora_policy.models.config import NoraConfig
from nora_policy.models.inputs import IGNORED, ModelInputs

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

PROMPT_HEAD = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"  # Qwen2.5-VL
)
PROMPT_TAIL = "<|im_end|>\n<|im_start|>assistant\n"
TURN_END = "\n"
IMAGE_START, IMAGE_PAD, IMAGE_END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"


class Preprocessor:
    """Turns an observation of `cameras` into the inputs of a network described by `config`."""

    def __init__(
        self, config: NoraConfig, tokenizer: Tokenizer, cameras: tuple[Camera, ...]
    ) -> None:
        self._config, self._tokenizer, self._cameras = config, tokenizer, cameras
        self._reserved = frozenset(tokenizer.get_added_tokens_decoder())
        vision = config.vision_config
        side = config.image_size // vision.patch_size
        self._grid = torch.tensor([1, side, side])
        pads = IMAGE_PAD * (side // vision.spatial_merge_size) ** 2
        images = f"{IMAGE_START}{pads}{IMAGE_END}" * len(cameras)
        self._head = tokenizer.encode(PROMPT_HEAD + images, add_special_tokens=False).ids
        self._tail = tokenizer.encode(PROMPT_TAIL, add_special_tokens=False).ids
        self._turn_end = tokenizer.encode(TURN_END, add_special_tokens=False).ids

    def __call__(self, observation: Observation) -> ModelInputs:
        """Batch of one. Raises `ValueError` for an image or instruction it cannot use."""
        if len(observation.images) != len(self._cameras):
            raise ValueError(
                f"images: expected {len(self._cameras)} (one per camera), "
                f"got {len(observation.images)}"
            )
        input_ids_BL = torch.tensor([self.prompt(observation.instruction)])
        size = self._config.image_size
        pairs = zip(self._cameras, observation.images, strict=True)
        images_NRR3 = np.stack([resize(orient(rgb, camera), size, size) for camera, rgb in pairs])
        return ModelInputs(input_ids_BL, torch.ones_like(input_ids_BL), *self.patches(images_NRR3))

    def patches(self, images_NRR3: UInt8) -> tuple[torch.Tensor, torch.Tensor]:
        """`pixel_values_PC` and `image_grid_N3` of images of the network's size."""
        vision = self._config.vision_config
        pixel_values_PC = patchify(
            images_NRR3, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        )
        return torch.from_numpy(pixel_values_PC), self._grid.expand(len(images_NRR3), 3)

    def prompt(self, instruction: str) -> list[int]:
        """Token ids of Qwen2.5-VL's chat template, one user turn: images, then the instruction."""
        if self._config.lowercase_instruction:
            instruction = instruction.lower()
        ids = self._tokenizer.encode(instruction, add_special_tokens=False).ids
        if self._reserved & set(ids):
            raise ValueError(f"instruction: expected plain text, got a marker in {instruction!r}")
        return [*self._head, *ids, *self._tail]

    def target(self, action_tokens: Sequence[int]) -> list[int]:
        """Ids to learn behind the prompt: FAST tokens 0 ... V - 1, `<|im_end|>`, a new line."""
        if self._config.token_head is None:
            raise ValueError("config.json: token_head: expected one to learn action tokens")
        ids = [self._config.action_token_min + token for token in action_tokens]
        return [*ids, self._config.token_head.end_token, *self._turn_end]


def patchify(rgb_NHW3: UInt8, patch: int, merge: int, frames: int) -> Float32:
    """Normalised patches (P, 3 * frames * patch * patch), bit for bit those of the HF processor.

    Image after image, each row after row of blocks; patches that the vision tower merges (`merge`
    x `merge`) are neighbours in the order. Every image is repeated as `frames` frames.
    """
    images, height, width, _ = rgb_NHW3.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    blocks = rgb_NHW3.reshape(images, rows, merge, patch, columns, merge, patch, 3)
    blocks = blocks.transpose(7, 0, 1, 4, 2, 5, 3, 6).reshape(3, -1, 1, patch, patch)
    patches = np.empty((blocks.shape[1], 3, frames, patch, patch), np.float32)
    for channel, levels in enumerate(_levels()):
        patches[:, channel] = levels[blocks[channel]]
    return patches.reshape(len(patches), -1)


@cache
def _levels() -> Float32:
    """(3, 256): what each value of a channel becomes."""
    rescaled = (np.arange(256) * (1 / 255)).astype(np.float32)  # the processor scales in float64
    levels: Float32 = (rescaled - CLIP_MEAN[:, None]) / CLIP_STD[:, None]
    return levels


def with_target(inputs: ModelInputs, target: Sequence[int]) -> tuple[ModelInputs, torch.Tensor]:
    """A prompt (batch of one) followed by `target`, and its labels (1, L), `IGNORED` before it."""
    ids = torch.tensor([list(target)])
    longer = dataclasses.replace(
        inputs,
        input_ids_BL=torch.cat([inputs.input_ids_BL, ids], dim=1),
        attention_mask_BL=torch.cat([inputs.attention_mask_BL, torch.ones_like(ids)], dim=1),
    )
    return longer, torch.cat([torch.full_like(inputs.input_ids_BL, IGNORED), ids], dim=1)


def pad_left(rows: Sequence[ModelInputs], pad_id: int) -> ModelInputs:
    """One batch out of several; shorter prompts are padded on the left."""
    length = max(row.input_ids_BL.shape[1] for row in rows)

    def stack(tensors: list[torch.Tensor], value: int) -> torch.Tensor:
        missing = [length - x.shape[1] for x in tensors]
        pairs = zip(tensors, missing, strict=True)
        return torch.cat([torch.nn.functional.pad(x, (n, 0), value=value) for x, n in pairs])

    return ModelInputs(
        stack([row.input_ids_BL for row in rows], pad_id),
        stack([row.attention_mask_BL for row in rows], 0),
        torch.cat([row.pixel_values_PC for row in rows]),
        torch.cat([row.image_grid_N3 for row in rows]),
    )
