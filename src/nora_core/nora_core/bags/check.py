"""The audit of a bag that is already on disk, ours or of plain `ros2 bag record`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rosbags.rosbag2 import Reader

from nora_core.bags.audit import Audit, AuditReport, Expectation
from nora_core.bags.clock import set_back_s
from nora_core.bags.damage import decoded, open_reader
from nora_core.bags.definitions import Definitions, header_stamp_ns, message_folders
from nora_core.bags.label import Label
from nora_core.bags.repair import damage_of


def check(folder: Path, expected: Mapping[str, Expectation]) -> AuditReport:
    """Audit `folder`; between the start and end on its label, if our recorder wrote one.

    Raises:
        ValueError: the bag cannot be read; says that `nora bags repair` may help. Or its label
            is broken.
        OSError: the label cannot be read.
    """
    if damage := damage_of(folder):
        raise ValueError(f"{folder}: {damage.rstrip('.')}. Try `nora bags repair`.")
    label = Label.find(folder)
    problems: tuple[str, ...] = ()
    if label is not None and label.ended != "operator":
        problems = (f"ended without an operator: {label.ended or 'cut off'}",)
    try:
        with open_reader(folder) as reader:
            has_header = _has_header(reader)
            start_ns = label.start_ns if label else reader.start_time
            files: Any = reader.storage.storages  # type: ignore[attr-defined]
            back_s = max(set_back_s(Path(file.path)) for file in files)
            end_ns = (label.end_ns if label else 0) or reader.end_time
            audit = Audit(expected, start_ns)
            for connection, received_ns, data in decoded(reader.messages()):
                stamp_ns = header_stamp_ns(data) if has_header[connection.msgtype] else None
                audit.add(connection.topic, received_ns, stamp_ns)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    if back_s:
        problems = (*problems, f"the clock of the recorder goes back by {back_s:.3f} s")
    remarks = tuple(
        f"type {name} unknown: stamps not checked"
        for name, is_known in has_header.items()
        if is_known is None
    )
    report = audit.report(max(start_ns, end_ns), {}, problems)
    return dataclasses.replace(report, remarks=remarks)


def _has_header(reader: Reader) -> dict[str, bool | None]:
    """Whether a type has a header, by its definition in the bag or else the installed one.

    None if there is no definition.
    """
    definitions = Definitions.of_bag(Definitions(message_folders()))
    for connection in reader.connections:
        encoding = f"ros2{connection.msgdef.format.name.lower()}"
        definitions.learn_if_usable(connection.msgtype, connection.msgdef.data, encoding)
    types = sorted({connection.msgtype for connection in reader.connections})
    return {
        name: definitions.has_header(name) if definitions.knows(name) else None for name in types
    }
