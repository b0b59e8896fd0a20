"""Detect non-monotonic time stamps in the files; readers sort messages and would hide them."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import apsw
from rosbags.rosbag2.storage_mcap import decompress

from nora_core.bags.damage import decoded, decoding
from nora_core.bags.definitions import NS_PER_S
from nora_core.bags.scan import CHUNK, DATA_END, MAGIC, MESSAGE, take, unpack

MAX_BACK_S = 0.1  # of one topic: messages are not written exactly in the order they came


def set_back_s(path: Path) -> float:
    """The largest step back in the time stamps of one topic, s; 0 if up to `MAX_BACK_S`.

    Args:
        path: an uncompressed storage file.

    Raises:
        ValueError: it is damaged.
    """
    back_ns = 0
    newest_ns: dict[int, int] = {}
    for topic, log_ns in _sqlite(path) if path.suffix == ".db3" else _mcap(path):
        latest_ns = newest_ns.get(topic, log_ns)
        back_ns = max(back_ns, latest_ns - log_ns)
        newest_ns[topic] = max(latest_ns, log_ns)
    back_s = back_ns / NS_PER_S
    return back_s if back_s > MAX_BACK_S else 0.0


def _sqlite(path: Path) -> Iterator[tuple[int, int]]:
    with decoding():
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        with decoding():
            rows = connection.execute("SELECT topic_id, timestamp FROM messages ORDER BY id")
        for topic, log_ns in decoded(rows):
            if not isinstance(log_ns, int):
                raise ValueError(f"timestamp: expected a number, got {log_ns!r}")
            yield topic, log_ns
    finally:
        connection.close()


def _mcap(path: Path) -> Iterator[tuple[int, int]]:
    with path.open("rb") as file:
        file.seek(len(MAGIC))
        yield from _records(file, path.stat().st_size)


def _records(file: BinaryIO | BytesIO, end: int) -> Iterator[tuple[int, int]]:
    """Channel and stamp of the messages from here to `end`; their contents are not read."""
    while file.tell() < end:
        opcode, size = unpack("<BQ", take(file, 9))
        after = file.tell() + size
        if after > end:
            raise ValueError(f"a record ends {after - end} bytes past the end of its file")
        if opcode == DATA_END:
            return
        if opcode == MESSAGE:
            channel, _, log_ns = unpack("<HIQ", take(file, 14))
            yield channel, log_ns
        elif opcode == CHUNK:
            _, _, plain_size, crc, name_size = unpack("<QQQII", take(file, 32))
            compression = take(file, min(name_size, size)).decode()
            (packed_size,) = unpack("<Q", take(file, 8))
            if compression:
                packed = take(file, min(packed_size, size))
                with decoding():
                    plain = decompress(packed, compression, plain_size, crc)
                yield from _records(BytesIO(plain), len(plain))
            else:
                yield from _records(file, after)
        file.seek(after)
