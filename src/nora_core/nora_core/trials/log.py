"""The log of a run: one line per finished trial, written at once, so that any stop is harmless."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from nora_core.control.kinematics import ARMS
from nora_core.sim.simulator import SCENE
from nora_core.trials.protocol import Protocol
from nora_core.trials.record import Record, record_of, to_line

LOG, IDENTITY = "trials.jsonl", "identity.json"
CARD = "card.json"  # gets metrics after the fact; changes nothing about the policy


class Log:
    """The finished trials in `folder`, by the key of their job.

    Raises:
        ValueError: what is there belongs to another run; says what differs.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / LOG
        _check_identity(folder / IDENTITY, identity)
        self._records = {record.job.key: record for record in _read(self._path)}

    def __contains__(self, key: str) -> bool:
        return key in self._records

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self._records.values())

    def append(self, record: Record) -> None:
        self._records[record.job.key] = record
        with self._path.open("a", encoding="utf-8") as file:
            file.write(to_line(record))


def identity(protocol: Protocol, embodiment_file: Path, has_ros: bool) -> dict[str, str]:
    """Digests of everything that a result depends on.

    Raises:
        FileNotFoundError: a checkpoint is not there.
    """
    facts = dataclasses.asdict(protocol)
    factor = facts.pop("real_time_factor")  # changes nothing without ROS
    run = "ROS" if factor == 1.0 else f"ROS at {factor:g} x real time"
    for what_changes_no_result in ("video", "bags", "checkpoints"):
        del facts[what_changes_no_result]
    found = {
        "protocol": _digest(json.dumps(facts, sort_keys=True)),
        "embodiment": _digest(embodiment_file.read_text()),
        "scene": _digest(
            "".join(path.read_text() for path in (SCENE, *sorted(ARMS.glob("*.xml"))))
        ),
        "run": run if has_ros else "in process",
    }
    folders: dict[str, str] = {}
    for contender in protocol.checkpoints:
        if contender.folder not in folders:
            folders[contender.folder] = folder_digest(Path(contender.folder))
        what = f"{folders[contender.folder]} {contender.head} {contender.conditions}"
        found[f"checkpoint {contender.name}"] = _digest(what)
    return found


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the files of a checkpoint, without its card."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected the folder of a checkpoint, found none")
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name != CARD:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_identity(path: Path, identity: Mapping[str, str]) -> None:
    if not path.is_file():
        partial = path.with_name(f".{path.name}")
        partial.write_text(json.dumps(dict(identity), indent=1) + "\n")
        partial.replace(path)
        return
    before = json.loads(path.read_text())
    names = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
    if names:
        raise ValueError(
            f"{path.parent}: its trials were run with another {', '.join(names)}; "
            "take another --out, or delete this one"
        )


def _read(path: Path) -> list[Record]:
    """A line without an end was cut off by a kill: it goes, and its trial is run again."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [record_of(line) for line in whole.decode().splitlines()]
