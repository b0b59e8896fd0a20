"""A small untrained NORA-1.5 for one data set, small enough to train on a laptop.

`python -m nora_training.sft.small --dataset DIR --out CHECKPOINT`

What the published checkpoints got from pre-training is made from the data set instead: a text
tokenizer with the words of its instructions, a FAST vocabulary fitted to its actions.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from nora_core.command import run_command
from nora_policy.checkpoints import untrained
from nora_policy.models.nora15 import Nora15
from nora_policy.preprocess import PROMPT_HEAD, PROMPT_TAIL
from nora_training.data import vocabulary
from nora_training.data.dataset import EMBODIMENT, Dataset
from nora_training.dataset_command import Selection

NUM_ACTION_TOKENS = 1024
HORIZON = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """Write an untrained checkpoint for a data set.

    Attributes:
        dataset: made by `nora-dataset build`; decides the image size.
        out: folder of the checkpoint.
        seed: seed of the weights.
    """

    dataset: Path
    out: Path
    seed: int = 0


def write(settings: Settings) -> Nora15:
    """Write the checkpoint and return its network.

    Raises:
        FileNotFoundError, ValueError: the data set is missing or has no episodes to train on.
    """
    dataset = Dataset.load(settings.dataset)
    selection = Selection()
    entries, statistics = selection.entries(dataset), selection.statistics(dataset)
    instructions = sorted({entry.instruction.lower() for entry in entries})
    tokenizer = untrained.make_tokenizer(
        [*instructions, PROMPT_HEAD, PROMPT_TAIL], NUM_ACTION_TOKENS
    )
    fast = vocabulary.fit(dataset, entries, statistics, horizon=HORIZON, size=NUM_ACTION_TOKENS)
    return untrained.write(
        settings.out,
        config=untrained.make_config(
            tokenizer,
            size=untrained.SMALL,
            num_action_tokens=NUM_ACTION_TOKENS,
            image_size=dataset.settings.image_size,
            horizon=HORIZON,
        ),
        tokenizer=tokenizer,
        fast=fast.tokenizer,
        embodiment_file=settings.dataset / EMBODIMENT,
        statistics=statistics,
        seed=settings.seed,
    )


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__)

    def body() -> None:
        size = untrained.num_parameters(write(settings))
        sys.stdout.write(
            f"{settings.out}: small NORA-1.5, {size:,} RANDOM parameters, not trained\n"
        )

    run_command(body)


if __name__ == "__main__":
    main()
