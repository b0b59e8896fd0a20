"""FAST tokens: lengths, times, and what wrong tokens and the two gripper rules lead to.

Prints Markdown tables. Without `--fast` the vocabulary is one fitted to random walks; published
numbers are of the public one, FAST+.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

import numpy as np
import tyro
from machine import processor, show
from numpy.typing import NDArray
from scipy.fft import idct
from tqdm import tqdm

from nora_core.types import Float64
from nora_policy.checkpoints.untrained import make_fast_tokenizer
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.grammar import DecodingState, FreeDecodingState, Grammar

HORIZONS = (1, 5)
ACTION_DIM = 7
FAR = 100.0  # normalised units, as in the published hazard
PLAUSIBLE = 1.5
LOGITS = ("flat", "peaked")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure.

    Args:
        fast: folder with the FAST vocabulary.
        chunks: of each kind.
        wrong: sequences with one wrong token.
        out: also write the tables here.
    """

    fast: Path | None = None
    chunks: int = 300
    wrong: int = 5000
    out: Path | None = None


def smooth(count: int, horizon: int, random: np.random.Generator) -> Float64:
    """Random walks with a gripper that is open or closed, (N, T, A)."""
    steps = random.normal(scale=0.1, size=(count, horizon, ACTION_DIM)).cumsum(axis=1)
    chunks = np.clip(steps + random.normal(scale=0.3, size=(count, 1, ACTION_DIM)), -1, 1)
    chunks[..., -1] = random.random((count, 1)) < 0.5
    return chunks


def noisy(count: int, horizon: int, random: np.random.Generator) -> Float64:
    return random.uniform(-1, 1, (count, horizon, ACTION_DIM))


def microseconds(call: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    start = time.perf_counter_ns()
    call(*args, **kwargs)
    return (time.perf_counter_ns() - start) / 1e3


def p50_p95(times_us: Iterable[float]) -> str:
    return " | ".join(f"{value:.0f}" for value in np.percentile(list(times_us), (50, 95)))


def encoding(fast: FastTokenizer, settings: Settings) -> list[str]:
    rows = [
        "| H | chunks | tokens mean | max | encode us p50 | p95 | decode us p50 | p95 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for horizon in HORIZONS:
        for make in (smooth, noisy):
            chunks = make(settings.chunks, horizon, np.random.default_rng(0))
            texts = [fast.encode(chunk) for chunk in chunks]
            sizes = [len(ids) for ids in texts]
            encode_us = [microseconds(fast.encode, chunk) for chunk in chunks]
            decode_us = [microseconds(fast.decode, ids, horizon, ACTION_DIM) for ids in texts]
            rows.append(
                f"| {horizon} | {make.__name__} | {np.mean(sizes):.1f} | {max(sizes)} "
                f"| {p50_p95(encode_us)} | {p50_p95(decode_us)} |"
            )
    return rows


def follow(state: DecodingState, ids: Iterable[int]) -> list[float]:
    """Microseconds of `allowed` and `append` per token."""

    def step(token: int) -> None:
        state.allowed()
        state.append(token)

    return [microseconds(step, token) for token in ids]


def draw(grammar: Grammar, random: np.random.Generator) -> list[int]:
    """Any of the allowed tokens, to the end."""
    state = DecodingState(grammar)
    while not state.is_ended:
        state.append(int(random.choice(np.flatnonzero(state.allowed()))))
    return state.ids


def stepping(fast: FastTokenizer, settings: Settings) -> list[str]:
    rows = [
        "| H | grammar build ms | sequences | allowed + append us p50 | p95 |",
        "|---|---|---|---|---|",
    ]
    for horizon in HORIZONS:
        random = np.random.default_rng(0)
        Grammar(fast, horizon, ACTION_DIM)  # the range is kept
        start = time.perf_counter()
        grammar = Grammar(fast, horizon, ACTION_DIM)
        build_ms = (time.perf_counter() - start) * 1e3
        count = settings.chunks // 3
        texts = {
            "smooth": [fast.encode(chunk) for chunk in smooth(count, horizon, random)],
            "noisy": [fast.encode(chunk) for chunk in noisy(count, horizon, random)],
            "random": [draw(grammar, random) for _ in range(count)],
        }
        for name, sequences in texts.items():
            times = [
                us
                for ids in sequences
                for us in follow(DecodingState(grammar), (*ids, grammar.end))
            ]
            rows.append(f"| {horizon} | {build_ms:.0f} | {name} | {p50_p95(times)} |")
    return rows


def greedy(state: DecodingState | FreeDecodingState, logits_SV: Float64) -> list[int]:
    for logits_V in logits_SV:
        state.append(int(np.where(state.allowed(), logits_V, -np.inf).argmax()))
        if state.is_ended:
            break
    return state.ids


def without(fast: FastTokenizer, settings: Settings) -> list[str]:
    """Greedy over the same logits: random, or random and in favour of the tokens of a chunk."""
    rows = [
        "| H | logits | free: no chunk | grammar: no chunk | the same where free was a chunk |",
        "|---|---|---|---|---|",
    ]
    for horizon in HORIZONS:
        grammar = Grammar(fast, horizon, ACTION_DIM)
        random = np.random.default_rng(0)
        for kind in LOGITS:
            chunks = smooth(settings.chunks, horizon, random)
            bad_free, bad, equal = 0, 0, 0
            for chunk in tqdm(chunks, desc=f"H = {horizon}, {kind}", leave=False, disable=None):
                ids = [*fast.encode(chunk), grammar.end]
                logits_SV = random.normal(size=(2 * grammar.size + 1, grammar.end + 1))
                logits_SV[np.arange(len(ids)), ids] += random.uniform(3, 7) * (kind == "peaked")
                free = greedy(FreeDecodingState(grammar.end, 2 * grammar.size), logits_SV)
                constrained = greedy(DecodingState(grammar), logits_SV)
                is_chunk = grammar.accepts(free)
                bad_free += not is_chunk
                bad += not grammar.accepts(constrained)
                equal += is_chunk and constrained == free
            total = len(chunks)
            rows.append(
                f"| {horizon} | {kind} | {bad_free / total:.1%} | {bad / total:.1%} "
                f"| {equal} of {total - bad_free} |"
            )
    return rows


def lenient(fast: FastTokenizer, ids: list[int], horizon: int) -> Float64 | None:
    """Decode like the original: U+FFFD for broken characters; None where it returns zeros."""
    text = b"".join(fast.token_bytes[i] for i in ids).decode(errors="replace")
    codes = np.array([ord(character) for character in text])
    if codes.size != horizon * ACTION_DIM:
        return None
    coefficients_FA = (codes + fast.settings.min_token).reshape(horizon, ACTION_DIM)
    actions_TA: Float64 = idct(coefficients_FA / fast.settings.scale, axis=0, norm="ortho")
    return actions_TA


def hazards(fast: FastTokenizer, settings: Settings) -> list[str]:
    """One wrong token in a valid sequence of H = 5."""
    random = np.random.default_rng(0)
    grammar = Grammar(fast, 5, ACTION_DIM)
    classes = ("wrong length", f"up to {PLAUSIBLE}", f"up to {FAR:.0f}", f"{FAR:.0f} or more")
    seen = dict.fromkeys(classes, 0)
    accepted = dict.fromkeys(classes, 0)
    largest, largest_ours = 0.0, 0.0
    for chunk in smooth(settings.wrong, 5, random):
        ids = fast.encode(chunk)
        place = random.integers(len(ids))
        ids[place] = int((ids[place] + random.integers(1, fast.vocab_size)) % fast.vocab_size)
        actions_TA = lenient(fast, ids, 5)
        kind = classes[0]
        if actions_TA is not None:
            size = float(np.abs(actions_TA).max())
            kind = classes[1 + (size > PLAUSIBLE) + (size >= FAR)]
            largest = max(largest, size)
        seen[kind] += 1
        if grammar.accepts(ids):
            accepted[kind] += 1
            largest_ours = max(largest_ours, float(np.abs(grammar.decode(ids)).max()))
    actions = ("zeros", "executed", "executed", "executed")
    return [
        "| largest action in the original | share | original | here: refused | accepted |",
        "|---|---|---|---|---|",
        *(
            f"| {kind} | {seen[kind] / settings.wrong:.1%} | {action} "
            f"| {seen[kind] - accepted[kind]} | {accepted[kind]} |"
            for kind, action in zip(classes, actions, strict=True)
        ),
        f"\nLargest action: original {largest:.0f}, here {largest_ours:.2f}.",
    ]


def gripper(fast: FastTokenizer) -> list[str]:
    """All patterns of an open or closed gripper over five steps, other dimensions random."""
    random = np.random.default_rng(0)
    wrong_PR = np.zeros((32, 2), int)  # original, here
    for pattern in range(32):
        is_open_T = np.array([bool(pattern >> t & 1) for t in range(5)])
        chunk = np.column_stack([random.uniform(-1, 1, (5, ACTION_DIM - 1)), is_open_T])
        decoded_T = fast.decode(fast.encode(chunk.astype(np.float32)), 5, ACTION_DIM)[:, -1]
        for rule, got_T in enumerate((opens_in_original(decoded_T), decoded_T > 0.5)):
            wrong_PR[pattern, rule] = (got_T != is_open_T).sum()
    names = ("original: un-normalised by 0 and 1, sign", "raw value above 0.5")
    return [
        "| gripper rule, 32 patterns of 5 steps | wrong commands | patterns with any |",
        "|---|---|---|",
        *(
            f"| {name} | {wrong_P.sum()} of 160 | {(wrong_P > 0).sum()} |"
            for name, wrong_P in zip(names, wrong_PR.T, strict=True)
        ),
    ]


def opens_in_original(decoded_T: Float64) -> NDArray[np.bool_]:
    """NORA's LIBERO evaluation: no mask, sign of 2 g - 1, flipped; 0 and above closes."""
    physical_T = 0.5 * (decoded_T + 1) * (1 - 0) + 0
    command_T = -np.sign(2 * physical_T - 1)
    return np.where(command_T >= 0, 1.0, command_T) < 0


def run(settings: Settings) -> str:
    fast = FastTokenizer.load(settings.fast) if settings.fast else make_fast_tokenizer()
    kind = "public" if settings.fast else "fitted to random walks"
    sections = {
        "Tokens per chunk": encoding(fast, settings),
        "The grammar per token": stepping(fast, settings),
        "Greedy over the same logits": without(fast, settings),
        f"One wrong token, {settings.wrong} times": hazards(fast, settings),
        "Gripper": gripper(fast),
    }
    return "\n".join(
        [
            "# FAST tokens\n",
            f"- machine: CPU {processor()}, 1 process",
            f"- vocabulary: {fast.vocab_size} tokens, {kind}; {ACTION_DIM} dimensions",
            *("\n".join([f"\n## {title}\n", *lines]) for title, lines in sections.items()),
        ]
    )


def main() -> None:
    settings = tyro.cli(Settings)
    show(run(settings), settings.out)


if __name__ == "__main__":
    main()
