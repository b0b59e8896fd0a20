"""A FAST vocabulary fitted to the chunks of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nora_core.normalization import Statistics, normalize
from nora_core.types import Float64
from nora_policy.models.fast import FastTokenizer
from nora_training.data.dataset import Dataset, Entry
from nora_training.data.samples import chunk, starts


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A fitted tokenizer, and what it does to the chunks it was fitted to."""

    tokenizer: FastTokenizer
    num_chunks: int
    tokens_per_chunk: float


def fit(
    dataset: Dataset, entries: Sequence[Entry], statistics: Statistics, horizon: int, size: int
) -> Vocabulary:
    """From every chunk of `horizon` steps that is real to its end, normalised by `statistics`.

    Raises:
        ValueError: there is none.
    """
    found = list(_chunks(dataset, entries, statistics, horizon))
    if not found:
        raise ValueError(f"horizon: expected episodes of at least {horizon} steps, got none")
    tokenizer = FastTokenizer.fit(found, size)
    counts = [len(tokenizer.encode(chunk_TA)) for chunk_TA in found]
    return Vocabulary(tokenizer, len(found), float(np.mean(counts)))


def _chunks(
    dataset: Dataset, entries: Sequence[Entry], statistics: Statistics, horizon: int
) -> Iterator[Float64]:
    for entry in entries:
        steps = dataset.steps(entry)
        for start in starts(steps, horizon).tolist():
            yield normalize(chunk(steps.future(start), horizon)[0], statistics)
