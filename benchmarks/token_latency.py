"""The token head per written token: under the grammar against free, for 1 and 8 samples.

Prints a Markdown table, for a tiny network or one of the size of the release. Random weights write
tokens without sense; so every text has the same number of them, whether it is complete or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from machine import show
from model_latency import INSTRUCTION, build, machine, memory_gb, now, shorten
from tqdm import tqdm

from nora_core.embodiment import Camera
from nora_core.types import Observation
from nora_policy.checkpoints.untrained import make_config, make_fast_tokenizer, make_tokenizer
from nora_policy.models.config import NORA_LONG_3B
from nora_policy.models.expert import Prefix
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.grammar import DecodingState, FreeDecodingState, Grammar
from nora_policy.models.nora import Nora
from nora_policy.preprocess import Preprocessor


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure.

    Args:
        size: tiny (float32 on the CPU), or 3b, the size of the release in bfloat16.
        device: auto, cpu or cuda.
        repeats: texts per row, after `warm_up` others; grammar and free take turns.
        warm_up: texts that are not counted.
        tokens: written per text.
        threads: of torch on the CPU.
        samples: texts per observation, one row each.
        fast: folder of a FAST tokenizer, such as the public FAST+; by default one is fitted.
        out: also write the table here.
    """

    size: Literal["tiny", "3b"] = "tiny"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    repeats: int = 30
    warm_up: int = 3
    tokens: int = 8
    threads: int = 2
    samples: tuple[int, ...] = (1, 8)
    fast: Path | None = None
    out: Path | None = None


class Limited(DecodingState):
    """A state that is cut off after `tokens`, and goes on behind a complete chunk before."""

    def __init__(self, grammar: Grammar, tokens: int) -> None:
        super().__init__(grammar)
        self._limit, self._written = tokens, 0

    def append(self, token: int) -> None:
        self._written += 1
        if token == self.end:  # as much work again
            super().__init__(self._grammar)
        else:
            super().append(token)
        self.is_ended = self._written == self._limit


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds per token of every repeat (R,), and of the grammar's own share (R,)."""

    samples: int
    prefix_ms: float
    free_ms: np.ndarray
    grammar_ms: np.ndarray


def measure(
    model: Nora, preprocessor: Preprocessor, grammar: Grammar, samples: int, settings: Settings
) -> Row:
    rgb = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    inputs = preprocessor(Observation((rgb,), INSTRUCTION, 0))
    if settings.size == "3b":
        inputs = shorten(inputs)
    start = now(model.device)
    prefix, hidden_BLE = model.encode(inputs)
    prefix_ms = (now(model.device) - start) * 1e3
    times: dict[str, list[float]] = {"free": [], "grammar": []}
    for repeat in tqdm(
        range(settings.warm_up + settings.repeats), f"K = {samples}", leave=False, disable=None
    ):
        randoms = [torch.Generator().manual_seed(1000 * repeat + i) for i in range(samples)]
        for name in times:
            states = [
                FreeDecodingState(grammar.end, settings.tokens)
                if name == "free"
                else Limited(grammar, settings.tokens)
                for _ in range(samples)
            ]
            times[name].append(write_ms(model, prefix, hidden_BLE, states, randoms))
    free, constrained = (np.array(x[settings.warm_up :]) for x in times.values())
    return Row(samples, prefix_ms, free / settings.tokens, constrained / settings.tokens)


def write_ms(
    model: Nora,
    prefix: Prefix,
    hidden_BLE: torch.Tensor,
    states: Sequence[DecodingState | FreeDecodingState],
    randoms: list[torch.Generator],
) -> float:
    start = now(model.device)
    model.generate(prefix, hidden_BLE, states, randoms)
    return (now(model.device) - start) * 1e3


def table(rows: list[Row]) -> str:
    lines = [
        "| K | free p50 ms/token | p95 | grammar p50 ms/token | p95 | grammar / free (p50) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        free = np.percentile(row.free_ms, (50, 95))
        constrained = np.percentile(row.grammar_ms, (50, 95))
        ratio = float(np.median(row.grammar_ms / row.free_ms))
        numbers = " | ".join(f"{value:.2f}" for value in (*free, *constrained))
        lines.append(f"| {row.samples} | {numbers} | {ratio:.3f} |")
    return "\n".join(lines)


@torch.inference_mode()
def run(settings: Settings) -> str:
    torch.set_num_threads(settings.threads)
    has_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")
    if settings.device == "cuda" and not has_cuda:
        raise SystemExit("--device cuda: no CUDA GPU")
    tokenizer = make_tokenizer()
    config, dtype = dataclasses.replace(make_config(tokenizer), expert=None), torch.float32
    if settings.size == "3b":
        config = dataclasses.replace(
            NORA_LONG_3B,
            token_ids=config.token_ids,
            action_token_min=config.action_token_min,
            token_head=config.token_head,
        )
        dtype = torch.bfloat16
    model = build(config, device, dtype)
    fast = FastTokenizer.load(settings.fast) if settings.fast else make_fast_tokenizer()
    grammar = Grammar(fast, config.horizon, config.action_dim)
    camera = Camera(name="primary", topic="camera/image_raw", encoding="rgb8", max_age_s=1.0)
    preprocessor = Preprocessor(config, tokenizer, (camera,))
    rows = [measure(model, preprocessor, grammar, k, settings) for k in settings.samples]
    kind = "CUDA" if device.type == "cuda" else "CPU"
    lines = [
        f"# Token head {settings.size}, {kind}, {str(dtype).removeprefix('torch.')}\n",
        f"- machine: {machine(device, settings.threads)}; torch {torch.__version__}, eager",
        f"- weights: random; FAST vocabulary of {fast.vocab_size} tokens"
        f"{'' if settings.fast else ', fitted here'}; chunks of 5 x 7",
        f"- {settings.tokens} tokens per text, {settings.repeats} repeats, both in turn; K texts "
        "from one prefix",
        f"- peak memory ({'allocated' if kind == 'CUDA' else 'resident'}): "
        f"{memory_gb(device):.2f} GB\n",
        table(rows),
    ]
    return "\n".join(lines)


def main() -> None:
    settings = tyro.cli(Settings)
    show(run(settings), settings.out)


if __name__ == "__main__":
    main()
