"""Results of trials in a checkpoint's card: what the policy can do, and how that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nora_core.bags.provenance import git_revision
from nora_core.files import write_json
from nora_core.trials.record import Record
from nora_core.trials.sheet import grouped, is_success
from nora_core.trials.statistics import share
from nora_policy.checkpoints import files
from nora_policy.checkpoints.layout import CARD

TRIALS = "trials"
DIGITS = 4


def add_trials(folder: Path, records: Sequence[Record], *, protocol: str, command: str) -> None:
    """Write the results of the checkpoint in `folder` into its card, by protocol.

    Of `records`, those of other checkpoints do not count; earlier results of the same protocol are
    replaced. A card that is missing is made.
    """
    path = folder / CARD
    card = files.read_json(path) if path.is_file() else {}
    own = [record for record in records if Path(record.job.folder) == folder.resolve()]
    results = []
    for (_, condition), found in grouped(own).items():
        success = share([is_success(record) for record in found])
        results.append(
            {
                "head": found[0].job.head,
                "condition": condition,
                "successes": success.count,
                "trials": success.total,
                "wilson_95": [round(success.low, DIGITS), round(success.high, DIGITS)],
            }
        )
    entry = {"command": command, "git_revision": git_revision(), "results": results}
    write_json(path, {**card, TRIALS: {**card.get(TRIALS, {}), protocol: entry}})
