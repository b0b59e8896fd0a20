"""The trial sheet: `trials.md`, `trials.csv` and `trials.png`."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import statistics as numbers
from collections.abc import Callable, Sequence
from pathlib import Path

from nora_core.files import replacing, write_text
from nora_core.trials.plots import write_plot
from nora_core.trials.record import Job, Record, Result, to_dict
from nora_core.trials.statistics import Share, mcnemar, share
from nora_core.types import Outcome

METHOD = (
    "Shares with 95 % Wilson intervals. `reached`: the named object was touched, or the tool came "
    "within 3 cm of it. `partial`: it was grasped, but is not where it should be. `distractor`: "
    "another object was grasped. Medians are over all trials that have the number."
)
Group = tuple[str, str]  # checkpoint, condition


def write_sheet(folder: Path, records: Sequence[Record], title: str) -> str:
    """The text of `trials.md`, which is written with the other two into `folder`."""
    groups = grouped(records)
    text = "\n\n".join(
        [f"# {title}", METHOD, _summary(groups), *_by_task(groups), *_pairs(groups)]
    )
    write_text(folder / "trials.md", text + "\n")
    _write_csv(folder / "trials.csv", records)
    if groups:
        write_plot(folder / "trials.png", _bars(groups), title)
    return text


def grouped(records: Sequence[Record]) -> dict[Group, list[Record]]:
    """By checkpoint and condition, in the order of the protocol's first trial of each."""
    groups: dict[Group, list[Record]] = {}
    for record in records:
        groups.setdefault((record.job.checkpoint, record.job.condition), []).append(record)
    return groups


def is_success(record: Record) -> bool:
    return record.result.outcome is Outcome.SUCCESS


def has_distractor(record: Record) -> bool:
    return record.result.distractor_grasps > 0


def _is_partial(record: Record) -> bool:
    return record.result.outcome is Outcome.PARTIAL


def _was_reached(record: Record) -> bool:
    return bool(record.result.reached)


def _bars(groups: dict[Group, list[Record]]) -> dict[str, dict[str, Share]]:
    """By group, then by what is counted; without what nobody could see."""
    tests = {"success": is_success, "reached": _was_reached, "partial": _is_partial}
    tests["distractor"] = has_distractor
    if all(r.result.reached is None for records in groups.values() for r in records):
        del tests["reached"]
    return {
        f"{checkpoint}, {condition} (n = {len(records)})": {
            name: share([test(record) for record in records]) for name, test in tests.items()
        }
        for (checkpoint, condition), records in groups.items()
    }


def _summary(groups: dict[Group, list[Record]]) -> str:
    lines = [
        "| checkpoint | condition | trials | success | reached | partial | distractor "
        "| chunks | time to grasp | errors |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (checkpoint, condition), records in groups.items():
        shares = [
            _share_text(records, test)
            for test in (is_success, _was_reached, _is_partial, has_distractor)
        ]
        chunks = _median([record.result.chunks for record in records])
        grasp_s = [record.result.grasp_s for record in records]
        cells = [checkpoint, condition, str(len(records)), *shares, f"{chunks:.0f}"]
        cells += [_seconds([s for s in grasp_s if s is not None])]
        cells += [str(sum(bool(record.result.error) for record in records))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_task(groups: dict[Group, list[Record]]) -> list[str]:
    """Success per instruction, when there is more than one."""
    tasks = sorted({record.job.instruction for records in groups.values() for record in records})
    if len(tasks) < 2:
        return []
    names = [f"{checkpoint}, {condition}" for checkpoint, condition in groups]
    lines = [f"| success | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for task in tasks:
        cells = []
        for records in groups.values():
            of_task = [is_success(record) for record in records if record.job.instruction == task]
            cells.append(f"{sum(of_task)} / {len(of_task)}")
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return ["\n".join(lines)]


def _pairs(groups: dict[Group, list[Record]]) -> list[str]:
    """Exact McNemar tests of success, every two groups in the scenes that both have been in."""
    lines = [
        "| first | second | scenes | both | only first | only second | neither | McNemar p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (a, records_a), (b, records_b) in itertools.combinations(groups.items(), 2):
        first, second = _by_scene(records_a), _by_scene(records_b)
        scenes = [scene for scene in first if scene in second]
        found = mcnemar([first[s] for s in scenes], [second[s] for s in scenes])
        counts = [found.both, found.only_first, found.only_second, found.neither]
        cells = [", ".join(a), ", ".join(b), str(len(scenes)), *map(str, counts)]
        lines.append(f"| {' | '.join(cells)} | {found.p_value:.2g} |")
    return ["\n".join(lines)] if len(groups) > 1 else []


def _by_scene(records: Sequence[Record]) -> dict[tuple[int, str], bool]:
    return {(r.job.seed, r.job.instruction): is_success(r) for r in records}


def _share_text(records: Sequence[Record], test: Callable[[Record], bool]) -> str:
    if test is _was_reached and all(record.result.reached is None for record in records):
        return "unknown"
    return str(share([test(record) for record in records]))


def _median(values: Sequence[float]) -> float:
    return numbers.median(values) if values else float("nan")


def _seconds(values: Sequence[float]) -> str:
    return f"{_median(values):.1f} s" if values else "none"


def _write_csv(path: Path, records: Sequence[Record]) -> None:
    names = [f.name for kind in (Job, Result) for f in dataclasses.fields(kind)]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for record in records:
            writer.writerow(to_dict(record.job) | to_dict(record.result))
