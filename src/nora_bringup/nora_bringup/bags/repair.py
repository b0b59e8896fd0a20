"""Give a bag that was cut off its index and metadata back, and say what could be kept."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rosbags.rosbag2 import Reader

from nora_bringup.bags.definitions import NS_PER_S, Definitions
from nora_bringup.bags.label import LABEL, Label
from nora_bringup.bags.scan import TORN, McapScan
from nora_bringup.bags.writer import BagWriter

DAMAGED = ".damaged"
REPORT = "repair.md"


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was kept; `damages` are by file, `set_aside` the files as they were found."""

    folder: Path
    counts: dict[str, int]
    start_ns: int
    end_ns: int
    total_bytes: int
    good_bytes: int
    damages: tuple[str, ...]
    set_aside: tuple[str, ...]

    def markdown(self) -> str:
        lost = self.total_bytes - self.good_bytes
        lines = [
            f"# {self.folder.name}: repaired",
            "",
            f"Kept {sum(self.counts.values())} messages, "
            f"{(self.end_ns - self.start_ns) / NS_PER_S:.2f} s; "
            f"{self.good_bytes} of {self.total_bytes} bytes were sound, {lost} were not.",
            *(f"- {damage}" for damage in self.damages),
            f"- the files as they were: {', '.join(self.set_aside)}",
            "",
            "| topic | messages |",
            "|---|---|",
            *(f"| {topic} | {count} |" for topic, count in sorted(self.counts.items())),
        ]
        return "\n".join(lines) + "\n"


def damage_of(folder: Path) -> str:
    """Why a bag cannot be read to its end with index and metadata; empty if it can."""
    try:
        with Reader(folder) as reader:
            found = sum(1 for _ in reader.messages())
            expected = reader.message_count
    except (*TORN, OSError) as error:
        return str(error)
    return "" if found == expected else f"expected {expected} messages, found {found}"


def repair(folder: Path) -> RepairReport | None:
    """Rewrite the readable part of a bag in place, the damaged files beside it as `*.damaged`.

    May be interrupted and called again. Returns None when there is nothing to repair.

    Raises:
        ValueError: not an MCAP bag, or not one message is readable; nothing is changed.
        OSError: the disk has no room for the readable part beside the damaged file.
    """
    sources = sorted(folder.glob(f"*.mcap{DAMAGED}"))  # of a repair that was itself cut off
    if not sources:
        sources = sorted(folder.glob("*.mcap"))
        if not sources:
            raise ValueError(f"{folder}: expected a folder with an .mcap file, found none")
        if not damage_of(folder):
            return None
    elif not damage_of(folder):
        return None
    workshop = folder / ".repair"
    if workshop.exists():
        shutil.rmtree(workshop)
    rewritten = workshop / folder.name
    report = _rewrite(folder, sources, rewritten)
    for source in sources:
        if not source.name.endswith(DAMAGED):
            source.rename(source.with_name(source.name + DAMAGED))
    for path in rewritten.iterdir():
        path.replace(folder / path.name)
    shutil.rmtree(workshop)
    (folder / REPORT).write_text(report.markdown(), encoding="utf-8")
    return report


def _rewrite(folder: Path, sources: list[Path], target: Path) -> RepairReport:
    total_bytes = sum(path.stat().st_size for path in sources)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < total_bytes:
        raise OSError(f"{folder}: expected {total_bytes} bytes of free space, got {free_bytes}")
    definitions = Definitions.of_bag()
    scans = [McapScan(path, definitions) for path in sources]
    messages = (message for scan in scans for message in scan.messages())
    counts: Counter[str] = Counter()
    stamps: list[int] = []
    writer = BagWriter(target, definitions)
    for message in messages:
        writer.write(message.topic, message.stamp_ns, message.data)
        counts[message.topic.name] += 1
        stamps = [min([message.stamp_ns, *stamps]), max([message.stamp_ns, *stamps])]
    damages = tuple(f"{s.path.name}: {s.damage}" for s in scans if s.damage)
    if not stamps:
        writer.abort()
        shutil.rmtree(target.parent)
        raise ValueError(f"{folder}: not one message is readable; {'; '.join(damages)}")
    writer.close(_relabel(folder, stamps[1]))
    names = tuple(f"{s.path.name.removesuffix(DAMAGED)}{DAMAGED}" for s in scans)
    good_bytes = sum(scan.good_bytes for scan in scans)
    return RepairReport(
        folder, dict(counts), stamps[0], stamps[1], total_bytes, good_bytes, damages, names
    )


def _relabel(folder: Path, end_ns: int) -> dict[str, str]:
    """Close the label of one of our episodes; a bag of somebody else's has none."""
    if not (folder / LABEL).is_file():
        return {}
    label = Label.load(folder)
    if not label.end_ns:
        label = dataclasses.replace(label, end_ns=end_ns, ended="cut off, repaired")
        label.save(folder)
    return label.custom_data()
