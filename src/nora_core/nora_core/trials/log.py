"""The log of a run: one line per trial, appended when it ends, so that a run can be resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from nora_core.control.kinematics import ARMS
from nora_core.files import write_json
from nora_core.sim.simulator import SCENE
from nora_core.trials.protocol import Protocol
from nora_core.trials.record import Record, record_of, to_line

LOG, IDENTITY = "trials.jsonl", "identity.json"
CARD = "card.json"  # metrics are added to it later; it does not change the policy


class Log:
    """The finished trials in `folder`, by the key of their job.

    Raises:
        ValueError: the folder belongs to another run; names what differs.
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
        FileNotFoundError: the folder of a checkpoint is missing.
    """
    facts = dataclasses.asdict(protocol)
    factor = facts.pop("real_time_factor")  # without ROS it has no effect
    run = "ROS" if factor == 1.0 else f"ROS at {factor:g} x real time"
    for without_effect in ("video", "bags", "checkpoints"):
        del facts[without_effect]
    found = {
        "protocol": _digest(json.dumps(facts, sort_keys=True)),
        "embodiment": _digest(embodiment_file.read_text()),
        "scene": _digest(
            "".join(path.read_text() for path in (SCENE, *sorted(ARMS.glob("*.xml"))))
        ),
        "run": run if has_ros else "in process",
    }
    folders: dict[str, str] = {}
    for candidate in protocol.checkpoints:
        if candidate.folder not in folders:
            folders[candidate.folder] = folder_digest(Path(candidate.folder))
        what = f"{folders[candidate.folder]} {candidate.head} {candidate.conditions}"
        found[f"checkpoint {candidate.name}"] = _digest(what)
    return found


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of the files of a checkpoint, without its card."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the folder of a checkpoint is missing")
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
        write_json(path, dict(identity))
        return
    before = json.loads(path.read_text())
    names = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
    if names:
        raise ValueError(
            f"{path.parent}: its trials were run with another {', '.join(names)}; "
            "take another --out, or delete this one"
        )


def _read(path: Path) -> list[Record]:
    """Remove a last line without an end, which a kill cut off; its trial is run again."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [record_of(line) for line in whole.decode().splitlines()]
