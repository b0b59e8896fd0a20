"""Read the messages of a `.db3` file as far as it goes: SQLite rolls back what was cut off."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rosbags.rosbag2.metadata import parse_qos

from nora_core.bags.damage import decoding
from nora_core.bags.definitions import Definitions
from nora_core.bags.scan import Message, unpacked
from nora_core.bags.writer import Topic

DAMAGED = ".damaged"
COMPANIONS = ("-journal", "-wal", "-shm")


class SqliteScan:
    """One pass over a file; `messages` ends without an error where the file is damaged.

    The file is not changed: what a transaction left behind is rolled back in a copy.

    Args:
        path: of the file, also as `*.db3.damaged`.
        definitions: learn the types of its messages as far as it holds them.

    Attributes:
        damage: what ended the pass, in words; empty if all could be read.
        good_bytes: size of the file, or of what was read of its messages if it is damaged.
    """

    def __init__(self, path: Path, definitions: Definitions) -> None:
        self.path = path
        self._definitions = definitions
        self.damage = ""
        self.good_bytes = 0

    def messages(self) -> Iterator[Message]:
        """All messages up to the damage, in the order they were received."""
        try:
            with _database(self.path) as database:
                yield from self._rows(database)
            self.good_bytes = self.path.stat().st_size
        except (ValueError, sqlite3.Error) as error:
            self.damage = f"after {self.good_bytes} bytes of messages: {error}"

    def _rows(self, database: sqlite3.Connection) -> Iterator[Message]:
        self._learn(database)
        topics = {}
        for key, name, type_name, profiles in database.execute(
            "SELECT id, name, type, offered_qos_profiles FROM topics"
        ):
            with decoding():
                qos = tuple(parse_qos(profiles))
            topics[key] = Topic(_text(name), _text(type_name), qos)
        rows = database.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY id")
        for key, stamp_ns, data in rows:
            if not isinstance(data, bytes):
                raise ValueError(f"message: expected bytes, got {type(data).__name__}")
            if key not in topics or not isinstance(stamp_ns, int):
                raise ValueError(
                    f"message of topic {key!r} at {stamp_ns!r}: expected a topic of "
                    f"{sorted(topics)} and a number of ns"
                )
            yield Message(topics[key], stamp_ns, unpacked(data))
            self.good_bytes += len(data)

    def _learn(self, database: sqlite3.Connection) -> None:
        """Learn the types of the bag, or use the installed ones if it is older than Iron."""
        tables = "SELECT 1 FROM sqlite_master WHERE name = 'message_definitions'"
        if database.execute(tables).fetchone() is None:
            return
        for name, encoding, text in database.execute(
            "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
        ):
            self._definitions.learn_if_usable(_text(name), _text(text), _text(encoding))


def _text(value: object) -> str:
    """A text column; SQLite stores values of any type in it."""
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__}")
    return value


def leftovers(path: Path) -> list[Path]:
    """The files in which SQLite keeps an open transaction of `path`."""
    stem = path.name.removesuffix(DAMAGED)
    suffix = DAMAGED if path.name.endswith(DAMAGED) else ""
    found = (path.with_name(stem + companion + suffix) for companion in COMPANIONS)
    return [companion for companion in found if companion.is_file()]


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    companions, whole_bytes = leftovers(path), _whole_bytes(path)
    if not companions and path.stat().st_size >= whole_bytes:
        with closing(sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)) as database:
            yield database
        return
    with tempfile.TemporaryDirectory(prefix=".repair-", dir=path.parent) as folder:
        for source in (path, *companions):
            shutil.copyfile(source, Path(folder, source.name.removesuffix(DAMAGED)))
        copy = Path(folder, path.name.removesuffix(DAMAGED))
        if copy.stat().st_size < whole_bytes:
            os.truncate(copy, whole_bytes)  # longer: SQLite opens nothing that lacks its end
        with closing(sqlite3.connect(copy)) as database:
            yield database


def _whole_bytes(path: Path) -> int:
    """What the header says ("The Database Header": page size at byte 16, pages at 28)."""
    with path.open("rb") as file:
        header = file.read(32)
    if len(header) < 32:
        raise ValueError(f"expected a header, got {len(header)} bytes")
    page_bytes, num_pages = struct.unpack_from(">H10xI", header, 16)
    return int(num_pages) * (65536 if page_bytes == 1 else int(page_bytes))
