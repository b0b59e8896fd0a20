"""The audit of a bag that is already on disk, ours or of plain `ros2 bag record`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rosbags.rosbag2 import Reader
from rosbags.rosbag2.errors import ReaderError

from nora_bringup.bags.audit import Audit, AuditReport, Expectation
from nora_bringup.bags.definitions import Definitions, header_stamp_ns
from nora_bringup.bags.label import LABEL, Label
from nora_bringup.bags.repair import damage_of


def check(folder: Path, expected: Mapping[str, Expectation]) -> AuditReport:
    """Audit `folder`; between the start and end on its label, if it has one.

    Raises:
        ValueError: the bag cannot be read; says that `nora bags repair` may help.
    """
    if damage := damage_of(folder):
        raise ValueError(f"{folder}: {damage} Try `nora bags repair`.")
    label = Label.load(folder) if (folder / LABEL).is_file() else None
    problems: tuple[str, ...] = ()
    if label is not None and label.ended != "operator":
        problems = (f"ended without an operator: {label.ended}",)
    try:
        with Reader(folder) as reader:
            definitions = _definitions(reader)
            audit = Audit(expected, label.start_ns if label else reader.start_time)
            for connection, received_ns, data in reader.messages():
                has_header = definitions.has_header(connection.msgtype)
                stamp_ns = header_stamp_ns(data) if has_header else None
                audit.add(connection.topic, received_ns, stamp_ns)
            end_ns = label.end_ns if label else reader.end_time
    except ReaderError as error:
        raise ValueError(f"{folder}: {error}") from error
    return audit.report(end_ns, {}, problems)


def _definitions(reader: Reader) -> Definitions:
    definitions = Definitions.of_bag()
    for connection in reader.connections:
        encoding = f"ros2{connection.msgdef.format.name.lower()}"
        definitions.learn(connection.msgtype, connection.msgdef.data, encoding)
    return definitions
