"""What a repetition penalty does to action tokens.

Chunks repeat tokens rightly (a steady motion is one coefficient again and again), while the stock
generation settings of the backbone punish repetition even in greedy decoding. A tiny token head is
taught some chunks and asked for them along the way with several penalties. Prints a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import show
from numpy.typing import NDArray
from tqdm import tqdm

from nora_policy.checkpoints.untrained import make_config, make_tokenizer
from nora_policy.models.config import NoraConfig
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.grammar import DecodingState, Grammar
from nora_policy.models.inputs import IGNORED, ModelInputs
from nora_policy.models.nora import Nora
from nora_policy.preprocess import pad_left, with_target

WORDS = 8
PAD = 0


@dataclass(frozen=True, slots=True)
class Settings:
    """Chunks to learn, gradient steps at which to ask, penalties to ask with."""

    chunks: int = 64
    steps: tuple[int, ...] = (20, 40, 80, 160)
    penalties: tuple[float, ...] = (1.0, 1.05, 1.2, 1.5)
    learning_rate: float = 2e-3
    threads: int = 2
    out: Path | None = None


def make_chunks(count: int) -> NDArray[np.float64]:
    """(N, 5, 7): steady motions of few axes with a gripper that stays or closes."""
    random = np.random.default_rng(0)
    directions = random.uniform(-1, 1, (count, 1, 7)) * (random.random((count, 1, 7)) < 0.5)
    chunks = np.clip(directions + random.normal(scale=0.05, size=(count, 5, 7)), -1, 1)
    chunks[..., 6] = np.arange(5) < random.integers(0, 6, (count, 1))
    return chunks


def make_prompt(config: NoraConfig, seed: int) -> ModelInputs:
    """A small random image and random words."""
    random = torch.Generator().manual_seed(seed)
    ids = config.token_ids
    words = torch.randint(1, 200, (WORDS,), generator=random).tolist()
    input_ids = torch.tensor([[ids.vision_start, *[ids.image] * 4, ids.vision_end, *words]])
    pixels = torch.randn(16, 1176, generator=random)
    return ModelInputs(input_ids, torch.ones_like(input_ids), pixels, torch.tensor([[1, 4, 4]]))


def make_batch(
    config: NoraConfig, prompts: Sequence[ModelInputs], texts: Sequence[list[int]]
) -> tuple[ModelInputs, torch.Tensor]:
    assert config.token_head is not None
    targets = [[config.action_token_min + t for t in text] for text in texts]
    end = config.token_head.end_token
    pairs = [with_target(p, [*t, end]) for p, t in zip(prompts, targets, strict=True)]
    batch = pad_left([inputs for inputs, _ in pairs], PAD)
    length = batch.input_ids_BL.shape[1]
    labels = [
        torch.nn.functional.pad(label, (length - label.shape[1], 0), value=IGNORED)
        for _, label in pairs
    ]
    return batch, torch.cat(labels)


def ask(
    model: Nora,
    prompts: ModelInputs,
    fast: FastTokenizer,
    chunks: NDArray[np.float64],
    penalty: float,
) -> tuple[float, float]:
    """Share of chunks that come back token for token, and mean |error| of the actions."""
    assert model.config.token_head is not None
    head = dataclasses.replace(model.config.token_head, repetition_penalty=penalty)
    plain, model.config = model.config, dataclasses.replace(model.config, token_head=head)
    grammar = Grammar(fast, model.config.horizon, model.config.action_dim)
    states = [DecodingState(grammar) for _ in chunks]
    with torch.no_grad():
        model.generate(*model.encode(prompts), states)
    model.config = plain
    got = np.stack([grammar.decode(state.ids) for state in states])
    expected = np.stack([grammar.decode(fast.encode(chunk)) for chunk in chunks])
    is_same = np.isclose(got, expected).all(axis=(1, 2))
    return float(is_same.mean()), float(np.abs(got - chunks).mean())


def run(settings: Settings) -> str:
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    config = dataclasses.replace(make_config(make_tokenizer()), image_size=56, expert=None)
    model = Nora(config)
    chunks = make_chunks(settings.chunks)
    fast = FastTokenizer.fit(make_chunks(2000), config.num_action_tokens)
    prompts = [make_prompt(config, seed) for seed in range(settings.chunks)]
    batch, labels = make_batch(config, prompts, [fast.encode(chunk) for chunk in chunks])
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate)
    rows = []
    for step in tqdm(range(1, max(settings.steps) + 1), leave=False, disable=None):
        loss = model.token_loss(batch, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in settings.steps:
            together = pad_left(prompts, PAD)
            asked = [ask(model, together, fast, chunks, p) for p in settings.penalties]
            cells = [f"{share:.0%}, {error:.3f}" for share, error in asked]
            rows.append(f"| {step} | {loss.item():.3f} | {' | '.join(cells)} |")
    names = " | ".join(f"penalty {penalty:g}" for penalty in settings.penalties)
    return "\n".join(
        [
            "# Repetition penalty and action tokens\n",
            f"- tiny token head, {settings.chunks} chunks of 5 x 7 to learn by heart, greedy "
            "decoding under the grammar",
            "- cells: share of chunks written token for token, mean error of normalised actions\n",
            f"| step | loss | {names} |",
            "|" + "---|" * (2 + len(settings.penalties)),
            *rows,
        ]
    )


def main() -> None:
    settings = tyro.cli(Settings)
    show(run(settings), settings.out)


if __name__ == "__main__":
    main()
