"""One rosbag2 bag (MCAP, metadata version 9 as in Jazzy) from serialised messages, as they are."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rosbags.interfaces import Connection, Qos, QosDurability
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.storage_mcap import McapWriter, Schema, write_schema

from nora_core.bags.definitions import Definitions

METADATA_VERSION: Final = 9
NO_HASH: Final = "INVALID"  # as ROS 2 prints it


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic: its full name, its type (`sensor_msgs/msg/Image`), what its publishers offer."""

    name: str
    type_name: str
    qos: tuple[Qos, ...] = ()

    @property
    def is_latched(self) -> bool:
        """Whether every publisher repeats its last message to late subscribers."""
        durabilities = {qos.durability for qos in self.qos}
        return durabilities == {QosDurability.TRANSIENT_LOCAL}


class BagWriter:
    """Writes the folder `path`; what was flushed is readable even if the process is killed.

    Data leave in chunks of about 1 MiB (with `compress`, by zstd) and with every `flush`. Use it
    from one thread at a time.

    Raises:
        OSError: from every method, when the file system refuses; call `abort` then.
        FileExistsError: the folder exists.
    """

    def __init__(self, path: Path, definitions: Definitions, compress: bool = False) -> None:
        if path.exists():
            raise FileExistsError(f"{path}: expected a new folder, it exists")
        self.path = path
        self._definitions = definitions
        self._writer = Writer(path, version=METADATA_VERSION, storage_plugin=StoragePlugin.MCAP)
        if compress:
            self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        fcntl.flock(self._storage().bio, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody repairs it now
        self._connections: dict[str, Connection] = {}

    def write(self, topic: Topic, stamp_ns: int, data: bytes) -> None:
        """Append a serialised message, received at `stamp_ns`.

        Raises:
            ValueError: the type is unknown, or the topic was of another type before.
        """
        connection = self._connections.get(topic.name)
        if connection is None:
            connection = self.add(topic)
        elif connection.msgtype != topic.type_name:
            raise ValueError(
                f"{topic.name}: expected type {connection.msgtype}, got {topic.type_name}"
            )
        self._writer.write(connection, stamp_ns, data)

    def add(self, topic: Topic) -> Connection:
        """Describe a topic; `write` does so by itself, this also names one without messages."""
        connection = self._writer.add_connection(
            topic.name,
            topic.type_name,
            typestore=self._definitions.store(topic.type_name),
            offered_qos_profiles=topic.qos,
        )
        self._connections[topic.name] = connection
        return connection

    def add_undefined(self, topic: Topic) -> None:
        """Like `add`, with an empty definition, as `ros2 bag record` does where it finds none."""
        storage = self._storage()
        if topic.type_name not in self._writer.added_types:
            schema = Schema(len(storage.schemas) + 1, topic.type_name, encoding="", data="")
            storage.schemas.append(schema)
            write_schema(storage.chunk.bio, schema)
            self._writer.added_types.add(topic.type_name)
        self._connections[topic.name] = self._writer.add_connection(
            topic.name,
            topic.type_name,
            msgdef="",
            rihs01=NO_HASH,
            offered_qos_profiles=topic.qos,
        )

    def flush(self) -> None:
        """Make what was written so far survive this process, and (almost) a power cut."""
        storage = self._storage()
        if storage.chunk.msgs:
            storage.close_chunk()
        storage.bio.flush()
        os.fdatasync(storage.bio.fileno())

    def close(self, custom_data: Mapping[str, str]) -> None:
        """Write the index and `metadata.yaml`, with `custom_data` in both."""
        self.flush()
        for key, value in custom_data.items():
            self._writer.set_custom_data(key, value)
        self._writer.close()

    def abort(self) -> None:
        """Close the file as it is, without index and metadata. Only for after an `OSError`."""
        with contextlib.suppress(OSError):  # the bytes that could not be written, once more
            self._writer.abort()

    def _storage(self) -> McapWriter:
        storage = self._writer.storage
        assert isinstance(storage, McapWriter)
        return storage
