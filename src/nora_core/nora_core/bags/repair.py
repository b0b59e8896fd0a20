"""Restore the index and metadata of a truncated bag, and report what could be recovered."""

from __future__ import annotations

import dataclasses
import fcntl
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from nora_core.bags.damage import decoded, open_reader
from nora_core.bags.definitions import NS_PER_S, Definitions, message_folders
from nora_core.bags.folders import COMPRESSED, METADATA, STORAGES
from nora_core.bags.label import Label, entries, texts
from nora_core.bags.scan import McapScan
from nora_core.bags.sqlite_scan import DAMAGED, SqliteScan, leftovers
from nora_core.bags.writer import BagWriter
from nora_core.strict_yaml import load_yaml

REPORT = "repair.md"
SQLITE_LOCKS = 0x40000000  # where SQLite locks a file it writes to


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was kept; `damages` are by file or topic, `set_aside` the files as they were found."""

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
    if cut_off := [path.name for db3 in folder.glob("*.db3") for path in leftovers(db3)]:
        return f"a transaction was cut off: {', '.join(cut_off)}"
    try:
        with open_reader(folder) as reader:
            found = sum(1 for _ in decoded(reader.messages()))
            expected = reader.message_count
    except ValueError as error:
        return str(error)
    return "" if found == expected else f"expected {expected} messages, found {found}"


def repair(folder: Path) -> RepairReport | None:
    """Rewrite the readable part of a bag in place, the damaged files beside it as `*.damaged`.

    What was a `.db3` file becomes an `.mcap` file. May be interrupted and called again. Returns
    None when there is nothing to repair.

    Raises:
        ValueError: not a bag, one that is being written, one of compressed files, or not one
            message is readable; nothing is changed.
        OSError: the disk has no room for the readable part beside the damaged file.
    """
    if not damage_of(folder):
        return None
    sources = _sources(folder)
    workshop = folder / ".repair"
    shutil.rmtree(workshop, ignore_errors=True)
    try:
        report = _rewrite(folder, sources, workshop / folder.name)
        companions = [path for source in sources for path in leftovers(source)]
        for path in (*sources, *companions, folder / METADATA):
            if path.exists() and not path.name.endswith(DAMAGED):
                path.rename(path.with_name(path.name + DAMAGED))
        for path in (workshop / folder.name).iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
    (folder / REPORT).write_text(report.markdown(), encoding="utf-8")
    return report


def _sources(folder: Path) -> list[Path]:
    """The files as they were recorded, also when a repair was cut off or is repeated."""
    found = {path.name: path for suffix in STORAGES for path in folder.glob(f"*{suffix}")}
    damaged = {
        path.stem: path for suffix in STORAGES for path in folder.glob(f"*{suffix}{DAMAGED}")
    }
    if damaged:
        found.pop(f"{folder.name}.mcap", None)  # made of them
    found |= damaged
    for path in sorted(path for suffix in COMPRESSED for path in folder.glob(f"*{suffix}")):
        if path.stem not in found:
            raise ValueError(
                f"{path}: expected a file that is not compressed; run "
                f"`zstd -dc {quote(str(path))} > {quote(str(path.with_suffix('')))}`, then this"
            )
    if not found:
        raise ValueError(f"{folder}: expected a folder with a file of {STORAGES}, found none")
    for path in found.values():
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if _is_sqlite(path):
                    fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 512, SQLITE_LOCKS)
            except BlockingIOError as error:
                raise ValueError(f"{path}: expected a closed file, it is being written") from error
    return [found[name] for name in sorted(found)]


def _is_sqlite(path: Path) -> bool:
    return path.name.removesuffix(DAMAGED).endswith(".db3")


def _rewrite(folder: Path, sources: list[Path], target: Path) -> RepairReport:
    total_bytes = sum(path.stat().st_size for path in sources)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < total_bytes:
        raise OSError(f"{folder}: expected {total_bytes} bytes of free space, got {free_bytes}")
    definitions = Definitions.of_bag(Definitions(message_folders()))
    scans = [
        SqliteScan(path, definitions) if _is_sqlite(path) else McapScan(path, definitions)
        for path in sources
    ]
    messages = (message for scan in scans for message in scan.messages())
    counts: Counter[str] = Counter()
    stamps: list[int] = []
    undefined: list[str] = []
    writer = BagWriter(target, definitions)
    for message in messages:
        topic = message.topic
        if topic.name not in counts and not definitions.knows(topic.type_name):
            writer.add_undefined(topic)
            undefined.append(
                f"{topic.name}: type {topic.type_name} unknown, kept without definition"
            )
        writer.write(topic, message.stamp_ns, message.data)
        counts[topic.name] += 1
        stamps = [min([message.stamp_ns, *stamps]), max([message.stamp_ns, *stamps])]
    damages = tuple(f"{s.path.name}: {s.damage}" for s in scans if s.damage)
    if not stamps:
        writer.abort()
        raise ValueError(f"{folder}: not one message is readable; {'; '.join(damages)}")
    custom_data, lost = _relabel(folder, stamps[1])
    writer.close(custom_data)
    damages = (*damages, *undefined, *lost)
    names = tuple(f"{s.path.name.removesuffix(DAMAGED)}{DAMAGED}" for s in scans)
    good_bytes = sum(scan.good_bytes for scan in scans)
    return RepairReport(
        folder, dict(counts), stamps[0], stamps[1], total_bytes, good_bytes, damages, names
    )


def _relabel(folder: Path, end_ns: int) -> tuple[dict[str, str], list[str]]:
    """Return the custom data, and why some are lost.

    They are those of our label, which is closed; or those of somebody else's bag, and over them
    what is said by a label that was written by hand.
    """
    if label := Label.find(folder):
        if not label.end_ns:
            label = dataclasses.replace(label, end_ns=end_ns, ended="cut off, repaired")
            label.save(folder)
        return label.custom_data(), []
    said = entries(folder)
    lost: list[str] = []
    for path in (folder / METADATA, folder / f"{METADATA}{DAMAGED}"):
        if path.is_file():
            try:
                return _custom_data(path) | said, lost
            except ValueError as error:
                lost.append(f"{path.name}: custom data are lost: {' '.join(str(error).split())}")
    return said, lost


def _custom_data(path: Path) -> dict[str, str]:
    """Custom data of a metadata file; raises `ValueError` if it ends before them."""
    match load_yaml(path.read_text(encoding="utf-8")):
        case {"rosbag2_bagfile_information": {"custom_data": dict() as custom}}:
            return texts(custom)
        case {"rosbag2_bagfile_information": {"custom_data": None}}:
            return {}
        case {"rosbag2_bagfile_information": {"version": int(version)}} if version < 6:  # older
            return {}
    raise ValueError("expected custom_data, found none")
