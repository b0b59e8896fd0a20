"""Trials of a run's checkpoints while it trains: the protocol of `nora-trials`, in simulation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nora_core.embodiment import Embodiment, training_mismatches
from nora_core.paths import embodiment_file, protocol_file
from nora_core.trials.protocol import Protocol
from nora_core.trials.sheet import grouped, has_distractor, is_success
from nora_training.evaluation import card
from nora_training.evaluation.command import run_protocol


def with_checkpoint(protocol: str, folder: Path) -> Protocol:
    """The protocol with `folder` in the place of its first checkpoint.

    Other entries that name the same folder as the first, with another head, stay. Entries with
    another folder, such as baselines, are left out: they are not the checkpoint being trained.
    """
    read = Protocol.load(protocol_file(protocol))
    trained = read.checkpoints[0].folder
    kept = tuple(
        dataclasses.replace(entry, folder=str(folder.resolve()))
        for entry in read.checkpoints
        if entry.folder == trained
    )
    return dataclasses.replace(read, checkpoints=kept)


def check(protocol: str, embodiment: Embodiment, heads: tuple[str, ...]) -> None:
    """Raises `ValueError` or `FileNotFoundError` for a protocol that this run cannot use."""
    read = with_checkpoint(protocol, Path())
    robot = Embodiment.load(embodiment_file(read.embodiment))
    if not robot.is_simulated:
        raise ValueError(f"trials: {protocol} is for {read.embodiment}, which is not simulated")
    if differences := training_mismatches(embodiment, robot):
        raise ValueError(
            f"trials: {protocol} is for another robot than the data set: {'; '.join(differences)}"
        )
    for entry in read.checkpoints:
        if entry.head not in heads:
            raise ValueError(
                f"trials: {protocol} tests the {entry.head} head, but the network has only "
                f"{' and '.join(heads)}"
            )


def run(protocol: str, folder: Path) -> dict[str, float]:
    """Run it with the checkpoint in `folder`; log and sheet are written beside the checkpoint.

    The results also go into the checkpoint's card.

    Returns:
        Fractions of successes and of trials with distractor grasps, by checkpoint and condition.
    """
    path = protocol_file(protocol)
    out = folder.with_name(f"{folder.name}_trials")
    records = run_protocol(with_checkpoint(protocol, folder), title=path.stem, out=out)
    card.add_trials(folder, records, protocol=path.stem, command=f"nora-sft --trials {protocol}")
    return {
        f"{name}_{condition}_{what}": sum(map(test, found)) / len(found)
        for (name, condition), found in grouped(records).items()
        for what, test in (("success", is_success), ("distractor", has_distractor))
    }
