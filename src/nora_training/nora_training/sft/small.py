"""A small untrained NORA-1.5 for one data set, of a size that learns on a laptop.

`python -m nora_training.sft.small --dataset DIR --out CHECKPOINT`

What the published checkpoints got from pre-training is made from the data set instead: a text
tokenizer with the words of its instructions, a FAST vocabulary fitted to its actions.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from nora_policy.checkpoints import checkpoint, tiny
from nora_policy.models.config import ExpertConfig, NoraConfig, TextConfig, VisionConfig
from nora_policy.models.nora15 import Nora15
from nora_policy.preprocess import PROMPT_HEAD, PROMPT_TAIL
from nora_training.data import vocabulary
from nora_training.data.dataset import EMBODIMENT, Dataset
from nora_training.dataset_command import Selection

NUM_ACTION_TOKENS = 1024
NUM_WORDS = 600  # at most, bytes included
HEAD_DIM = 32
# Positions of a few dozen tokens are told apart by angles, not by thousandths of them as with the
# 1e6 of the large network.
ROPE_THETA = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Which data set the network is for, and its size.

    Attributes:
        dataset: made by `nora-dataset build`; decides the image size.
        out: folder of the checkpoint.
        hidden: width of the language model.
        layers: of the language model and of the action expert.
        vision_hidden: width of the vision tower.
        vision_layers: of the vision tower; the last one looks at the whole image.
        expert_hidden: width of the action expert.
        horizon: steps per chunk.
        seed: of the weights.
    """

    dataset: Path
    out: Path
    hidden: int = 128
    layers: int = 4
    vision_hidden: int = 96
    vision_layers: int = 2
    expert_hidden: int = 64
    horizon: int = 5
    seed: int = 0


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE that knows the words of `texts` and can write any other."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_WORDS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    actions = [f"<robot_action_{i}>" for i in range(NUM_ACTION_TOKENS)]
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (*tiny.MARKERS, *actions)]
    )
    return tokenizer


def make_config(settings: Settings, tokenizer: Tokenizer, image_size: int) -> NoraConfig:
    """The parts and proportions of NORA-1.5."""
    text, expert, vision = settings.hidden, settings.expert_hidden, settings.vision_hidden
    num_kv_heads = max(1, text // HEAD_DIM // 2)
    return dataclasses.replace(
        tiny.make_config(tokenizer, NUM_ACTION_TOKENS),
        image_size=image_size,
        horizon=settings.horizon,
        text_config=TextConfig(
            hidden_size=text,
            intermediate_size=2 * text,
            num_hidden_layers=settings.layers,
            num_attention_heads=text // HEAD_DIM,
            num_key_value_heads=num_kv_heads,
            vocab_size=tokenizer.get_vocab_size(),
            rope_theta=ROPE_THETA,
            rms_norm_eps=1e-6,
            mrope_section=(4, 6, 6),
            tie_word_embeddings=True,
        ),
        vision_config=VisionConfig(
            depth=settings.vision_layers,
            hidden_size=vision,
            intermediate_size=2 * vision,
            num_heads=vision // HEAD_DIM,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=text,
            window_size=112,
            fullatt_block_indexes=(settings.vision_layers - 1,),
        ),
        expert=ExpertConfig(
            hidden_size=expert,
            intermediate_size=4 * expert,
            num_attention_heads=max(num_kv_heads, expert // HEAD_DIM),
            num_key_value_heads=num_kv_heads,
            num_hidden_layers=settings.layers,
        ),
    )


def write(settings: Settings) -> Nora15:
    """Write the checkpoint and return its network.

    Raises:
        FileNotFoundError, ValueError: the data set is not there or has no episodes to train on.
    """
    dataset = Dataset.load(settings.dataset)
    selection = Selection()
    entries, statistics = selection.entries(dataset), selection.statistics(dataset)
    instructions = sorted({entry.instruction.lower() for entry in entries})
    tokenizer = make_tokenizer([*instructions, PROMPT_HEAD, PROMPT_TAIL])
    fast = vocabulary.fit(dataset, entries, statistics, settings.horizon, NUM_ACTION_TOKENS)
    config = make_config(settings, tokenizer, dataset.settings.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Nora15(config).eval()
    key = dataset.embodiment.action.statistics_key
    card = {
        "description": "Small NORA-1.5 with RANDOM weights: not trained.",
        "seed": settings.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    checkpoint.save(settings.out, model, tokenizer, fast.tokenizer)
    facts = {key: {"action": statistics.to_json()}}
    checkpoint.save_facts(settings.out, settings.dataset / EMBODIMENT, facts, card)
    return model


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)
    try:
        model = write(settings)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    size = sum(parameter.numel() for parameter in model.parameters())
    sys.stdout.write(f"{settings.out}: small NORA-1.5, {size:,} RANDOM parameters, not trained\n")


if __name__ == "__main__":
    main()
