"""Trials of a run's checkpoints while it trains: the protocol of `nora-trials`, in simulation."""

from __future__ import annotations

from pathlib import Path

from nora_core.paths import protocol_file
from nora_core.trials.protocol import Protocol, scene_of
from nora_core.trials.sheet import grouped, has_distractor, is_success
from nora_training.evaluation.cli import Trials, run_trials


def check(protocol: str) -> None:
    """Raises `ValueError` or `FileNotFoundError` for a protocol that cannot be run here."""
    read = Protocol.load(protocol_file(protocol))
    if scene_of(read.embodiment) is None:
        raise ValueError(f"trials: expected a simulated robot, got {read.embodiment}")


def run(protocol: str, folder: Path) -> dict[str, float]:
    """The protocol with `folder` for each of its checkpoints; log and sheet go beside it.

    Returns:
        Shares of successes and of trials with distractor grasps, by checkpoint and condition.
    """
    names = [candidate.name for candidate in Protocol.load(protocol_file(protocol)).checkpoints]
    out = folder.with_name(f"{folder.name}_trials")
    records = run_trials(Trials(protocol, out, folders=dict.fromkeys(names, folder)))
    return {
        f"{name}_{condition}_{what}": sum(map(test, found)) / len(found)
        for (name, condition), found in grouped(records).items()
        for what, test in (("success", is_success), ("distractor", has_distractor))
    }
