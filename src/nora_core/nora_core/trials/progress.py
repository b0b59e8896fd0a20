"""Follow trials as they end and print their sheet, in process or over ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from nora_core.trials.log import Log
from nora_core.trials.record import Job, Record
from nora_core.trials.sheet import write_sheet


def follow(records: Iterator[Record], log: Log, every: tuple[Job, ...]) -> None:
    """Log each record as it comes, under a progress bar."""
    outcomes = Counter(record.result.outcome.text for record in log.records)
    done = len(log.records)
    with tqdm(total=len(every), initial=done, unit="trial", disable=None) as progress:
        for record in records:
            log.append(record)
            outcomes[record.result.outcome.text] += 1
            progress.set_postfix(dict(outcomes), refresh=False)
            progress.update()


def finish(out: Path, log: Log, every: tuple[Job, ...], title: str) -> list[Record]:
    """Write the sheet, in the order of the protocol, and print it."""
    by_key = {record.job.key: record for record in log.records}
    records = [by_key[job.key] for job in every]
    print(write_sheet(out, records, title))
    print(f"\nsheet {out}/trials.md, trials.csv, trials.png; videos {out}/videos")
    return records
