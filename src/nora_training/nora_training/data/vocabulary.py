"""A FAST vocabulary fitted to the chunks of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nora_core.normalization import Statistics
from nora_policy.models.fast import FastTokenizer
from nora_training.data.dataset import Dataset, Entry
from nora_training.data.samples import Samples


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A fitted tokenizer, and how well it compresses the chunks it was fitted to."""

    tokenizer: FastTokenizer
    num_chunks: int
    tokens_per_chunk: float


def fit(
    dataset: Dataset, entries: Sequence[Entry], statistics: Statistics, *, horizon: int, size: int
) -> Vocabulary:
    """Fit to every complete chunk of `horizon` steps, normalised by `statistics`.

    Raises:
        ValueError: there is none.
    """
    samples = Samples(dataset, entries, statistics, horizon, only_complete=True)
    if not len(samples):
        raise ValueError(f"horizon: no episode has {horizon} steps; choose a shorter horizon")
    chunks_STA, _ = samples.chunks(np.arange(len(samples)))
    tokenizer = FastTokenizer.fit(list(chunks_STA), size)
    counts = [len(tokenizer.encode(chunk_TA)) for chunk_TA in chunks_STA]
    return Vocabulary(tokenizer, len(samples), float(np.mean(counts)))
