"""A tiny NORA-1.5 with random weights.

`python -m nora_policy.checkpoints.tiny --out FOLDER --embodiment FILE`

Same prompt, image size, tokens and files as a real checkpoint, small enough for tests and for the
demo. It has learned nothing.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nora_core.embodiment import Embodiment
from nora_core.normalization import Statistics
from nora_policy.checkpoints import checkpoint
from nora_policy.models.config import (
    ExpertConfig,
    NoraConfig,
    TextConfig,
    TokenHeadConfig,
    TokenIds,
    VisionConfig,
)
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.nora15 import Nora15

MARKERS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
NUM_ACTION_TOKENS = 2048
NUM_CHUNKS = 2000
# Normalised 1 is a step of 2 cm or 0.05 rad; the gripper (last, not scaled) is 0 ... 1.
STEP = np.array([0.02] * 3 + [0.05] * 3)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the checkpoint goes and for which robot it pretends to be trained."""

    out: Path
    embodiment: Path
    seed: int = 0


def make_tokenizer() -> Tokenizer:
    """Byte level without merges: one token per byte, so that it can write any instruction."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: index for index, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    actions = [f"<robot_action_{i}>" for i in range(NUM_ACTION_TOKENS)]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*MARKERS, *actions)]
    )
    return tokenizer


def make_config(tokenizer: Tokenizer, num_action_tokens: int = NUM_ACTION_TOKENS) -> NoraConfig:
    """About a million parameters at 224 px."""
    vocab = tokenizer.get_vocab()
    return NoraConfig(
        text_config=TextConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=len(vocab),
            rope_theta=1e6,
            rms_norm_eps=1e-6,
            mrope_section=(4, 6, 6),
            tie_word_embeddings=True,
        ),
        vision_config=VisionConfig(
            depth=2,
            hidden_size=64,
            intermediate_size=128,
            num_heads=2,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=128,
            window_size=112,
            fullatt_block_indexes=(1,),
        ),
        token_ids=TokenIds(
            image=vocab["<|image_pad|>"],
            video=vocab["<|video_pad|>"],
            vision_start=vocab["<|vision_start|>"],
            vision_end=vocab["<|vision_end|>"],
        ),
        expert=ExpertConfig(
            hidden_size=64,
            intermediate_size=256,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_hidden_layers=2,
        ),
        horizon=5,
        action_dim=7,
        action_token_min=vocab["<robot_action_0>"],
        num_action_tokens=num_action_tokens,
        token_head=TokenHeadConfig(end_token=vocab["<|im_end|>"]),
    )


def make_fast_tokenizer() -> FastTokenizer:
    """Fitted on smooth random chunks like those of an arm."""
    random = np.random.default_rng(0)
    chunks = random.normal(scale=0.2, size=(NUM_CHUNKS, 5, 7)).cumsum(axis=1)
    chunks = np.clip(chunks + random.normal(scale=0.3, size=(NUM_CHUNKS, 1, 7)), -1.0, 1.0)
    chunks[..., -1] = chunks[..., -1] > 0
    return FastTokenizer.fit(chunks, NUM_ACTION_TOKENS)


def write(out: Path, embodiment_file: Path, seed: int = 0) -> Nora15:
    """Write a checkpoint for the robot of `embodiment_file` into `out` and return its network."""
    key = Embodiment.load(embodiment_file).action.statistics_key
    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Nora15(make_config(tokenizer)).eval()
    q99 = np.append(STEP, 1.0)
    statistics = Statistics(np.append(-STEP, 0.0), q99, np.arange(q99.size) < STEP.size)
    card = {
        "description": "Tiny NORA-1.5 with RANDOM weights for tests and demos: not trained.",
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    checkpoint.save(out, model, tokenizer, make_fast_tokenizer())
    checkpoint.save_facts(out, embodiment_file, {key: {"action": statistics.to_json()}}, card)
    return model


def main() -> None:
    settings = tyro.cli(Settings)
    model = write(settings.out, settings.embodiment, settings.seed)
    size = sum(parameter.numel() for parameter in model.parameters())
    sys.stdout.write(f"{settings.out}: tiny NORA-1.5, {size:,} RANDOM parameters, not trained\n")


if __name__ == "__main__":
    main()
