"""FAST vocabularies for tests: one fitted here, and the public one where it is at hand.

The public one, FAST+, is not part of this repository: `NORA_FAST_DIR` names a folder with its
`tokenizer.json` and `processor_config.json`.
"""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nora_policy.models.fast import FastTokenizer

VARIABLE = "NORA_FAST_DIR"
NAMES = ("fitted", "public")


def smooth_chunks(count: int, horizon: int, seed: int = 0) -> np.ndarray:
    """Random walks with a binary gripper, (count, horizon, 7)."""
    random = np.random.default_rng(seed)
    chunks = random.normal(scale=0.1, size=(count, horizon, 7)).cumsum(axis=1)
    chunks = np.clip(chunks + random.normal(scale=0.3, size=(count, 1, 7)), -1, 1)
    chunks[..., -1] = chunks[..., -1] > 0
    return chunks


@cache
def vocabulary(name: str) -> FastTokenizer:
    """One of `NAMES`; skips the test where the public one is asked for and not there."""
    if name == "fitted":
        # Few different ones, all over the range: for tokens of many coefficients.
        extremes = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], (12, 5, 7))
        extremes[::3] = extremes[::3, :1]
        repeated = [chunk for chunk in [np.zeros((5, 7)), *extremes] for _ in range(100)]
        return FastTokenizer.fit([*smooth_chunks(1500, 5), *repeated], 900)
    folder = os.environ.get(VARIABLE)
    if folder is None:
        pytest.skip(f"{VARIABLE} names no folder with the public FAST+ vocabulary")
    return FastTokenizer.load(Path(folder))
