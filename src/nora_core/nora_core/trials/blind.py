"""Order and names of trials for an operator who must not know which policy is which."""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence

import numpy as np

from nora_core.trials.record import Job


def blind_order(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Keep the order of the scenes; draw the order of the policies in each by its seed."""
    ordered: list[Job] = []
    for (seed, _), group in itertools.groupby(jobs, key=lambda job: (job.seed, job.instruction)):
        of_scene = list(group)
        ordered += [of_scene[i] for i in np.random.default_rng(seed).permutation(len(of_scene))]
    return tuple(ordered)


def blind_names(names: Sequence[str], seed: int) -> dict[str, str]:
    """Letters from A on, drawn by `seed`; digits when there are more names than letters."""
    letters = [*string.ascii_uppercase, *map(str, range(len(names)))][: len(names)]
    shuffled = np.random.default_rng(seed).permutation(letters).tolist()
    return dict(zip(names, shuffled, strict=True))
