"""Differences between the answers of policies and the demonstrations, and between policies.

Legend: P policies, N samples, T chunk step, A action dim (the gripper's opening last).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nora_core.types import Float64

OPEN = 0.5


@dataclass(frozen=True, slots=True)
class Answers:
    """Chunks of one policy in physical units, (N, T, A), and the time each took, s, (N,)."""

    name: str
    actions_NTA: Float64
    seconds_N: Float64


@dataclass(frozen=True, slots=True)
class Distance:
    """Between two sets of chunks, over real steps.

    `first_A`, `chunk_A`: mean absolute difference, m, rad and opening, of the first step and of
    all steps. `gripper`: fraction of steps with the gripper open in both or closed in both.
    """

    first_A: Float64
    chunk_A: Float64
    gripper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several policies compared with the demonstrations and with each other.

    `to_done`: from the demonstrations, by policy; `still`: the same for no motion with the gripper
    open. `between`: by pair of policies. `seconds`: inference times (N,) by policy.
    """

    num_samples: int
    horizon: int
    to_done: dict[str, Distance]
    still: Distance
    between: dict[tuple[str, str], Distance]
    seconds: dict[str, Float64]

    @classmethod
    def of(
        cls, answers: Sequence[Answers], done_NTA: Float64, is_real_NT: NDArray[np.bool_]
    ) -> Comparison:
        """Steps of `answers` past the length of the demonstrated chunks are ignored."""
        horizon = done_NTA.shape[1]
        short = {answer.name: answer.actions_NTA[:, :horizon] for answer in answers}
        still_NTA = np.zeros_like(done_NTA)
        still_NTA[..., -1] = 1.0
        return cls(
            num_samples=len(done_NTA),
            horizon=horizon,
            to_done={n: distance(a_NTA, done_NTA, is_real_NT) for n, a_NTA in short.items()},
            still=distance(still_NTA, done_NTA, is_real_NT),
            between={
                (a, b): distance(short[a], short[b], is_real_NT)
                for a, b in itertools.combinations(short, 2)
            },
            seconds={answer.name: answer.seconds_N for answer in answers},
        )


def distance(a_NTA: Float64, b_NTA: Float64, is_real_NT: NDArray[np.bool_]) -> Distance:
    """Symmetric; steps past the end of an episode do not count.

    Raises:
        ValueError: the shapes differ, or no step is real.
    """
    if a_NTA.shape != b_NTA.shape or a_NTA.shape[:2] != is_real_NT.shape:
        raise ValueError(
            f"distance: shapes must be equal, got {a_NTA.shape}, {b_NTA.shape} and the mask "
            f"{is_real_NT.shape}"
        )
    if not is_real_NT[:, 0].any():
        raise ValueError("distance: no step is real")
    difference_NTA = np.abs(a_NTA - b_NTA)
    is_same_NT = (a_NTA[..., -1] > OPEN) == (b_NTA[..., -1] > OPEN)
    return Distance(
        first_A=difference_NTA[is_real_NT[:, 0], 0].mean(axis=0),
        chunk_A=difference_NTA[is_real_NT].mean(axis=0),
        gripper=float(is_same_NT[is_real_NT].mean()),
    )
