"""Numbers that tell good demonstrations from bad ones.

Legend: N steps, A action dim, E episodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nora_core.normalization import Statistics
from nora_core.types import Float64
from nora_training.data.dataset import ROUNDING, Dataset, Entry, Steps

MOVES = 1e-3  # m or rad per step: below, a sign means nothing
MAX_STILL, MAX_UNSEEN, MAX_CLIPPED = 0.5, 0.05, 0.2
MIN_AGREEMENT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeQuality:
    """`jerk_m_s3`: root mean square of the commanded path. Shares are 0 ... 1.

    `still`: no-op steps, of all periods. `unseen`: steps without an image. `clipped`: scaled
    values beyond the quantiles. `oldest_image_s`: greatest age of an image when its step began.
    `agreement_6`: how often commanded and measured motion have the same sign, NaN if unknown.
    """

    entry: Entry
    duration_s: float
    jerk_m_s3: float
    still: float
    unseen: float
    clipped: float
    oldest_image_s: float
    agreement_6: Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The quality of a data set.

    Attributes:
        instructions: number of episodes by instruction, most frequent first; `outcomes` likewise.
        agreement_6: how often commanded and measured motion have the same sign, NaN if unknown.
        problems: one line for each fault of the data.
        remarks: one line for each thing worth knowing that is no fault.
    """

    episodes: tuple[EpisodeQuality, ...]
    instructions: dict[str, int]
    outcomes: dict[str, int]
    agreement_6: Float64
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def assess(dataset: Dataset, statistics: Statistics) -> Quality:
    """Raises `ValueError` for a data set without episodes."""
    if not dataset.entries:
        raise ValueError("the data set has no episodes")
    period_s = dataset.embodiment.action.step_period_s
    all_steps = [dataset.steps(entry) for entry in dataset.entries]
    pairs = zip(dataset.entries, all_steps, strict=True)
    episodes = tuple(assess_episode(e, steps, statistics, period_s) for e, steps in pairs)
    actions = np.concatenate([steps.actions_NA for steps in all_steps])
    names = dataset.embodiment.action.names
    is_constant_A = np.ptp(actions, axis=0) < ROUNDING
    is_lost_A = ~is_constant_A & statistics.mask_A & (statistics.q99_A <= statistics.q01_A)
    constant, lost = (
        tuple(name for name, is_so in zip(names, is_so_A, strict=True) if is_so)
        for is_so_A in (is_constant_A, is_lost_A)
    )
    measured = np.concatenate([steps.measured_N6 for steps in all_steps])
    agreement_6 = agreement(actions[:, :6], measured)
    return Quality(
        episodes=episodes,
        instructions=dict(Counter(e.instruction for e in dataset.entries).most_common()),
        outcomes=dict(Counter(e.outcome for e in dataset.entries).most_common()),
        agreement_6=agreement_6,
        problems=(*_problems_of_all(names, lost, agreement_6), *_problems_of_each(episodes)),
        remarks=tuple(
            f"action {name} is the same in every step: a policy trained on it will not move it"
            for name in constant
        ),
    )


def assess_episode(
    entry: Entry, steps: Steps, statistics: Statistics, period_s: float
) -> EpisodeQuality:
    ages_s = (steps.stamps_N - steps.image_stamps_N)[steps.is_observed_N] * 1e-9
    return EpisodeQuality(
        entry=entry,
        duration_s=float(steps.stamps_N[-1] - steps.stamps_N[0]) * 1e-9 + period_s,
        jerk_m_s3=jerk(steps.actions_NA[:, :3], period_s),
        still=1.0 - entry.num_steps / entry.num_periods,
        unseen=1.0 - entry.num_observed / entry.num_steps,
        clipped=clipped_share(steps.actions_NA, statistics),
        oldest_image_s=float(ages_s.max()),
        agreement_6=agreement(steps.actions_NA[:, :6], steps.measured_N6),
    )


def jerk(translations_N3: Float64, period_s: float) -> float:
    """Root mean square of the third derivative of the path, m/s^3; 0 for less than three steps."""
    jerk_N3 = np.diff(translations_N3, n=2, axis=0) / period_s**3
    return float(np.sqrt((jerk_N3**2).sum(axis=1).mean())) if len(jerk_N3) else 0.0


def clipped_share(actions_NA: Float64, statistics: Statistics) -> float:
    """Share of the scaled values that normalisation cuts off."""
    is_outside = (actions_NA < statistics.q01_A) | (actions_NA > statistics.q99_A)
    return float(is_outside[:, statistics.mask_A].mean())


def agreement(commanded_N6: Float64, measured_N6: Float64) -> Float64:
    """Share of steps whose signs agree, (6,) of 0 ... 1, NaN for an axis that never moves.

    An arm follows late: a step counts as agreeing if this or the next measured one does.
    """
    later_N6 = np.vstack([measured_N6[1:], measured_N6[-1:]])
    moves_N6 = (np.abs(commanded_N6) > MOVES) & (np.abs(measured_N6) + np.abs(later_N6) > MOVES)
    agrees_N6 = (commanded_N6 * measured_N6 > 0) | (commanded_N6 * later_N6 > 0)
    num_moves_6 = moves_N6.sum(axis=0)
    share_6 = (agrees_N6 & moves_N6).sum(axis=0) / np.maximum(num_moves_6, 1)
    return np.where(num_moves_6 > 0, share_6, np.nan)


def _problems_of_all(
    names: Sequence[str], lost: tuple[str, ...], agreement_6: Float64
) -> list[str]:
    problems = [
        f"action {name} moves in too few steps to have quantiles: a policy will never move it"
        for name in lost
    ]
    for name, share in zip(names[:6], agreement_6, strict=True):
        if share < MIN_AGREEMENT:
            problems.append(
                f"action {name} and the measured motion agree in sign in {share:.0%} of the steps"
            )
    return problems


def _problems_of_each(episodes: tuple[EpisodeQuality, ...]) -> list[str]:
    jerks = np.array([episode.jerk_m_s3 for episode in episodes])
    too_jerky = 5.0 * float(np.median(jerks))
    problems = []
    for e in episodes:
        said = [
            (e.still > MAX_STILL, f"stands still for {e.still:.0%} of the time"),
            (e.unseen > MAX_UNSEEN, f"has no image for {e.unseen:.0%} of the steps"),
            (e.clipped > MAX_CLIPPED, f"has {e.clipped:.0%} of its actions clipped"),
            (e.jerk_m_s3 > too_jerky > 0, f"jerks: {e.jerk_m_s3:.1f} m/s^3, 5 x the median"),
        ]
        problems += [f"{e.entry.bag} {text}" for is_bad, text in said if is_bad]
    return problems
