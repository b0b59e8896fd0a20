"""rosbag2 folders (MCAP or sqlite3), read through rosbags: no ROS is needed.

The message types are those that the bag carries; standard ones are known where it carries none.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from nora_core import strict_yaml
from nora_core.bags.clock import set_back_s
from nora_core.bags.damage import decoded, decoding
from nora_core.bags.definitions import header_stamp_ns
from nora_core.bags.folders import COMPRESSED, METADATA, STORAGES
from nora_core.bags.label import LABEL, texts
from nora_training.data.alignment import Int64

ORIGIN = "provenance"
MAX_LAG_S = 5.0
UNREADABLE = "the bag cannot be read: "


class Message:
    """What was logged on `topic`, and when; deserialised when it is looked at, if ever."""

    def __init__(
        self, topic: str, log_ns: int, data: bytes, type_name: str, reader: AnyReader
    ) -> None:
        self.topic, self.log_ns = topic, log_ns
        self._data, self._type_name, self._reader = data, type_name, reader

    @cached_property
    def msg(self) -> Any:
        """The fields of the ROS message. Raises `ValueError` for a damaged one."""
        with decoding(UNREADABLE):
            return self._reader.deserialize(self._data, self._type_name)

    @property
    def stamp_ns(self) -> int:
        """The stamp of its header. Raises `ValueError` for a message too short to have one."""
        return header_stamp_ns(self._data)


def is_red(bag: Path) -> bool:
    """Whether the label of a bag says that its audit found faults.

    Raises:
        ValueError: the label cannot be read.
    """
    return _label(bag / LABEL).get("is_green") == "False"


def bag_sha256(bag: Path) -> str:
    """The hash of all that an episode is made from: metadata, storage files, label.

    Raises:
        ValueError: a file cannot be read.
    """
    total = hashlib.sha256()
    for path in sorted(bag.iterdir()):
        if path.name in (METADATA, LABEL) or path.name.endswith((*STORAGES, *COMPRESSED)):
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ValueError(f"{UNREADABLE}{error}") from error
            total.update(f"{path.name} {digest}\n".encode())
    return total.hexdigest()


class Bag:
    """One open rosbag2 folder. Whatever cannot be read is a `ValueError`, never a partial answer.

    `back_s`: by how much the recorder's clock was set back. `labels`: custom data of the metadata,
    and over it the entries of `label.yaml`.
    """

    def __init__(self, folder: Path, reader: AnyReader) -> None:
        self.folder, self._reader = folder, reader
        storage: Any = reader.readers[0].storage  # type: ignore[union-attr]
        try:
            self.back_s = max(set_back_s(Path(file.path)) for file in storage.storages)
        except ValueError as error:
            raise ValueError(f"{UNREADABLE}{error}") from error
        custom = storage.metadata.custom or {}
        if not isinstance(custom, dict):
            raise ValueError(f"{UNREADABLE}custom_data: expected a mapping, got {custom!r}")
        for connection in reader.connections:
            if not isinstance(connection.msgcount, int):
                raise ValueError(f"{UNREADABLE}message_count: got {connection.msgcount!r}")
        self.labels = texts(custom) | _label(folder / LABEL)

    @staticmethod
    @contextmanager
    def open(folder: Path) -> Iterator[Bag]:
        """Open the rosbag2 in `folder` for a while."""
        if not (folder / METADATA).is_file():
            raise ValueError(
                "metadata.yaml is missing; `nora bags repair` makes one from the storage file"
            )
        known = get_typestore(Stores.ROS2_JAZZY)
        with decoding(UNREADABLE):
            reader = AnyReader([folder], default_typestore=known)
            reader.open()
        try:
            bag = Bag(folder, reader)
            if bag.back_s:
                raise ValueError(
                    f"expected a recorder's clock that goes on, got one that goes back by "
                    f"{bag.back_s:.3f} s"
                )
            yield bag
        finally:
            reader.close()

    @staticmethod
    def is_named(recorded: str, topic: str) -> bool:
        """Whether `recorded` is `topic`, in any namespace if that is relative."""
        return recorded == topic or recorded.endswith("/" + topic)

    def connections(self, topic: str, msgtype: str) -> list[Connection]:
        """Find connections of `topic`: exactly, or in any one namespace when it is relative.

        Raises:
            ValueError: another type, or the topic is there in several namespaces.
        """
        found = [
            connection
            for connection in self._reader.connections
            if connection.msgcount and self.is_named(connection.topic, topic)
        ]
        if len(names := sorted({connection.topic for connection in found})) > 1:
            raise ValueError(f"{topic}: expected one topic of that name, got {names}")
        for connection in found:
            if connection.msgtype != msgtype:
                raise ValueError(f"{topic}: expected type {msgtype}, got {connection.msgtype}")
        return found

    def messages(self, connections: list[Connection]) -> Iterator[Message]:
        """All messages in the order they were logged.

        Raises:
            ValueError: a damaged file, or another number of messages than the metadata says.
        """
        if not connections:
            return
        num_read: Counter[str] = Counter()
        messages = decoded(self._reader.messages(connections), UNREADABLE)
        for connection, log_ns, data in messages:
            num_read[connection.topic] += 1
            yield Message(connection.topic, log_ns, data, connection.msgtype, self._reader)
        expected: Counter[str] = Counter()
        for connection in connections:
            expected[connection.topic] += connection.msgcount
        for topic in expected:
            if num_read[topic] != expected[topic]:
                raise ValueError(
                    f"{topic}: expected {expected[topic]} messages, got {num_read[topic]}"
                )

    def read(self, types: Mapping[str, str]) -> dict[str, list[Message]]:
        """All messages of the topics that are the keys, in one go over the bag.

        Raises:
            ValueError: as `connections` and `messages`.
        """
        found = {topic: self.connections(topic, msgtype) for topic, msgtype in types.items()}
        read: dict[str, list[Message]] = {topic: [] for topic in types}
        for message in self.messages([c for connections in found.values() for c in connections]):
            for topic in types:
                if self.is_named(message.topic, topic):
                    read[topic].append(message)
        return read


def stamps(topic: str, messages: Sequence[Message]) -> Int64:
    """The header stamps, ns. Raises `ValueError` as `check_clock`."""
    stamps_M = np.array([message.stamp_ns for message in messages], np.int64)
    check_clock(topic, stamps_M, np.array([message.log_ns for message in messages], np.int64))
    return stamps_M


def check_clock(topic: str, stamps_M: Int64, logs_M: Int64) -> None:
    """Raises `ValueError` if the clock goes backwards or is not that of the recorder; ns."""
    steps = np.diff(stamps_M)
    if steps.size and steps.min() < 0:
        raise ValueError(
            f"{topic}: expected a clock that goes on, got one that goes back by "
            f"{-steps.min() * 1e-9:.3f} s"
        )
    lags_s = (logs_M - stamps_M) * 1e-9
    if lags_s.size and np.abs(lags_s).max() > MAX_LAG_S:
        raise ValueError(
            f"{topic}: expected stamps of the recorder's clock, got one "
            f"{lags_s[np.abs(lags_s).argmax()]:.1f} s before it was recorded"
        )


def _label(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        data = strict_yaml.load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{LABEL}: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{LABEL}: expected a mapping, got {type(data).__name__}")
    flat = {**data, **provenance} if isinstance(provenance := data.get(ORIGIN), dict) else data
    return texts(flat)
