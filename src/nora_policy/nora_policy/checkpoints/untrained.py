"""Checkpoints of NORA-1.5 with random weights, for tests, demos and training from nothing.

`python -m nora_policy.checkpoints.untrained --out FOLDER --embodiment NAME|FILE` writes the tiny
one: same prompt, tokens and files as a real checkpoint. It has learned nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from nora_core import paths
from nora_core.command import run_command
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
NUM_WORDS = 600  # at most, bytes included
NUM_CHUNKS = 2000
HEAD_DIM = 32
# Normalised 1 is a step of 2 cm or 0.05 rad; the gripper (last, not scaled) is 0 ... 1.
STEP = np.array([0.02] * 3 + [0.05] * 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Widths and depths of an untrained network.

    `layers` is the depth of the language model and of the action expert. The last layer of the
    vision tower sees the whole image.
    """

    hidden: int
    intermediate: int
    layers: int
    vision_hidden: int
    vision_layers: int
    expert_hidden: int
    rope_theta: float


TINY = Size(
    hidden=128,
    intermediate=384,
    layers=2,
    vision_hidden=64,
    vision_layers=2,
    expert_hidden=64,
    rope_theta=1e6,
)
# Learns on a laptop. Positions of a few dozen tokens differ by angles under this rope_theta, not
# by thousandths of them as under the 1e6 of the large network.
SMALL = Size(
    hidden=128,
    intermediate=256,
    layers=4,
    vision_hidden=96,
    vision_layers=2,
    expert_hidden=64,
    rope_theta=10.0,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Write a tiny NORA-1.5 with random weights.

    Attributes:
        out: folder of the checkpoint.
        embodiment: name or file of the robot that it pretends to be trained for.
        seed: seed of the weights.
    """

    out: Path
    embodiment: str
    seed: int = 0


def make_tokenizer(
    texts: Iterable[str] = (), num_action_tokens: int = NUM_ACTION_TOKENS
) -> Tokenizer:
    """Byte-level BPE that knows the words of `texts` and encodes any other text as bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_WORDS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    actions = [f"<robot_action_{i}>" for i in range(num_action_tokens)]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*MARKERS, *actions)]
    )
    return tokenizer


def make_config(
    tokenizer: Tokenizer,
    *,
    size: Size = TINY,
    num_action_tokens: int = NUM_ACTION_TOKENS,
    image_size: int = 224,
    horizon: int = 5,
) -> NoraConfig:
    """The parts of NORA-1.5 at another size; about a million parameters for `TINY`."""
    vocab = tokenizer.get_vocab()
    return NoraConfig(
        text_config=_text(size, len(vocab)),
        vision_config=_vision(size),
        token_ids=TokenIds(
            image=vocab["<|image_pad|>"],
            video=vocab["<|video_pad|>"],
            vision_start=vocab["<|vision_start|>"],
            vision_end=vocab["<|vision_end|>"],
        ),
        expert=_expert(size),
        horizon=horizon,
        action_dim=7,
        action_token_min=vocab["<robot_action_0>"],
        num_action_tokens=num_action_tokens,
        token_head=TokenHeadConfig(end_token=vocab["<|im_end|>"]),
        image_size=image_size,
    )


def make_fast_tokenizer() -> FastTokenizer:
    """A FAST vocabulary fitted to smooth random chunks like those of an arm."""
    random = np.random.default_rng(0)
    chunks = random.normal(scale=0.2, size=(NUM_CHUNKS, 5, 7)).cumsum(axis=1)
    chunks = np.clip(chunks + random.normal(scale=0.3, size=(NUM_CHUNKS, 1, 7)), -1.0, 1.0)
    chunks[..., -1] = chunks[..., -1] > 0
    return FastTokenizer.fit(chunks, NUM_ACTION_TOKENS)


def write(
    out: Path,
    *,
    config: NoraConfig,
    tokenizer: Tokenizer,
    fast: FastTokenizer,
    embodiment_file: Path,
    statistics: Statistics,
    seed: int,
) -> Nora15:
    """Write a checkpoint with random weights into `out` and return its network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Nora15(config).eval()
    card = {
        "description": "NORA-1.5 with RANDOM weights: not trained.",
        "seed": seed,
        "parameters": num_parameters(model),
    }
    key = Embodiment.load(embodiment_file).action.statistics_key
    checkpoint.save(out, model, tokenizer, fast)
    checkpoint.save_facts(out, embodiment_file, {key: {"action": statistics.to_json()}}, card)
    return model


def write_tiny(out: Path, embodiment_file: Path, seed: int = 0) -> Nora15:
    """Write a tiny checkpoint for the robot of `embodiment_file` and return its network."""
    tokenizer = make_tokenizer()
    q99 = np.append(STEP, 1.0)
    return write(
        out,
        config=make_config(tokenizer),
        tokenizer=tokenizer,
        fast=make_fast_tokenizer(),
        embodiment_file=embodiment_file,
        statistics=Statistics(np.append(-STEP, 0.0), q99, np.arange(q99.size) < STEP.size),
        seed=seed,
    )


def num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _num_kv_heads(size: Size) -> int:
    return max(1, size.hidden // HEAD_DIM // 2)


def _text(size: Size, vocab_size: int) -> TextConfig:
    return TextConfig(
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // HEAD_DIM,
        num_key_value_heads=_num_kv_heads(size),
        vocab_size=vocab_size,
        rope_theta=size.rope_theta,
        rms_norm_eps=1e-6,
        mrope_section=(4, 6, 6),
        tie_word_embeddings=True,
    )


def _vision(size: Size) -> VisionConfig:
    return VisionConfig(
        depth=size.vision_layers,
        hidden_size=size.vision_hidden,
        intermediate_size=2 * size.vision_hidden,
        num_heads=size.vision_hidden // HEAD_DIM,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=size.hidden,
        window_size=112,
        fullatt_block_indexes=(size.vision_layers - 1,),
    )


def _expert(size: Size) -> ExpertConfig:
    return ExpertConfig(
        hidden_size=size.expert_hidden,
        intermediate_size=4 * size.expert_hidden,
        num_attention_heads=max(_num_kv_heads(size), size.expert_hidden // HEAD_DIM),
        num_key_value_heads=_num_kv_heads(size),
        num_hidden_layers=size.layers,
    )


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)

    def body() -> None:
        path = paths.embodiment_file(settings.embodiment)
        size = num_parameters(write_tiny(settings.out, path, settings.seed))
        sys.stdout.write(
            f"{settings.out}: tiny NORA-1.5, {size:,} RANDOM parameters, not trained\n"
        )

    run_command(body)


if __name__ == "__main__":
    main()
