"""How sure one can be of a share of trials, and of a difference between two policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Share:
    """`count` of `total` trials, and the Wilson score interval of that proportion (1927)."""

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.count / self.total

    def __str__(self) -> str:
        return f"{_percent(self.value)} [{_percent(self.low)}, {_percent(self.high)}]"


@dataclass(frozen=True, slots=True)
class Paired:
    """Two policies in the same scenes: where only one of them did it, and how likely by chance.

    `p_value`: exact, two-sided, of the null hypothesis that both are equally good.
    """

    both: int
    only_first: int
    only_second: int
    neither: int
    p_value: float


def _percent(part: float) -> str:
    """Whole ones; with the decimals it takes to say 0 and 100 of none and all only."""
    digits = 0
    while 0.0 < part < 1.0 and float(f"{part:.{digits}%}"[:-1]) in (0.0, 100.0):
        digits += 1
    return f"{part:.{digits}%}"


def share(outcomes: Sequence[bool]) -> Share:
    """Raises `ValueError` when there are none."""
    if not outcomes:
        raise ValueError("share: trials are missing, at least one is needed")
    count, total = sum(outcomes), len(outcomes)
    interval = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return Share(count, total, float(interval.low), float(interval.high))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Exact McNemar test: which way the scenes fall that tell the two apart (McNemar 1947).

    Raises:
        ValueError: not the same number of trials.
    """
    if len(first) != len(second):
        raise ValueError(f"mcnemar: expected pairs, got {len(first)} and {len(second)} trials")
    pairs = list(zip(first, second, strict=True))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    decided = only_first + only_second
    p_value = float(binomtest(only_first, decided).pvalue) if decided else 1.0
    return Paired(
        pairs.count((True, True)), only_first, only_second, pairs.count((False, False)), p_value
    )
