"""Read an MCAP file sequentially up to the first damage: for truncated files or without index.

Record layout: MCAP specification, "Records" (little endian; opcode, length, content).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from backports import zstd
from rosbags.interfaces import Qos
from rosbags.rosbag2.storage_mcap import decompress, get_qos

from nora_core.bags.damage import decoding
from nora_core.bags.definitions import Definitions
from nora_core.bags.writer import Topic

MAGIC = b"\x89MCAP0\r\n"
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, DATA_END = 1, 2, 3, 4, 5, 6, 15
OPCODES = range(HEADER, DATA_END + 1)
MAX_RECORD_BYTES = 1 << 30
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # no CDR message begins like that


@dataclass(frozen=True, slots=True)
class Message:
    """A serialised message and when it was received.

    Raises:
        ValueError: a time that no bag can hold.
    """

    topic: Topic
    stamp_ns: int
    data: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.stamp_ns < 2**63:
            raise ValueError(f"stamp: expected 0 to 2^63 - 1 ns, got {self.stamp_ns}")


def unpacked(data: bytes) -> bytes:
    """Decompress a message of a bag of compression mode MESSAGE; others stay as they are.

    Raises:
        ValueError: the compressed bytes are damaged.
    """
    if not data.startswith(ZSTD_MAGIC):
        return data
    with decoding():
        return zstd.decompress(data)


class McapScan:
    """One pass over a file; `messages` ends without an error where the file is damaged.

    Args:
        path: of the file.
        definitions: learn the types of its messages, before each comes.

    Attributes:
        damage: what ended the pass, in words; empty if the file is whole to the end of its data.
        good_bytes: length of the part that could be read.
    """

    def __init__(self, path: Path, definitions: Definitions) -> None:
        self.path = path
        self._definitions = definitions
        self.damage = ""
        self.good_bytes = 0
        self._types: dict[int, str] = {}
        self._topics: dict[int, Topic] = {}

    def messages(self) -> Iterator[Message]:
        """All messages up to the damage, in the order of the file."""
        with self.path.open("rb") as file:
            try:
                if file.read(len(MAGIC)) != MAGIC:
                    raise ValueError("expected an MCAP file, got another beginning")
                self.good_bytes = len(MAGIC)
                yield from self._outer(file)
            except ValueError as error:
                self.damage = f"byte {self.good_bytes}: {error}"

    def _outer(self, file: BinaryIO) -> Iterator[Message]:
        while True:
            opcode, size = _head(file)
            if opcode in (DATA_END, FOOTER):
                return
            if opcode == CHUNK:
                yield from self._chunk(file, size)
            else:
                yield from self._record(opcode, take(file, size))
            self.good_bytes = file.tell()

    def _chunk(self, file: BinaryIO, size: int) -> Iterator[Message]:
        """The records of a chunk; of a truncated chunk, only the complete ones."""
        content = file.read(size)
        start = file.tell() - len(content)
        _, _, plain_size, crc, name_size = unpack("<QQQII", content)
        compression = content[32 : 32 + name_size].decode()
        (packed_size,) = unpack("<Q", content, 32 + name_size)
        packed = content[40 + name_size : 40 + name_size + packed_size]
        is_cut = len(packed) < packed_size
        if is_cut and compression:
            raise ValueError("a compressed chunk is cut off")
        if not is_cut:
            with decoding():
                packed = decompress(packed, compression, plain_size, crc)
        inner = BytesIO(packed)
        while inner.tell() < len(packed):
            opcode, record_size = _head(inner)
            yield from self._record(opcode, take(inner, record_size))
            if not compression:
                self.good_bytes = start + 40 + name_size + inner.tell()
        if is_cut:
            raise ValueError("a chunk is cut off between two records")

    def _record(self, opcode: int, content: bytes) -> Iterator[Message]:
        if opcode == SCHEMA:
            (key,) = unpack("<H", content)
            name, offset = _text(content, 2)
            encoding, offset = _text(content, offset)
            self._definitions.learn_if_usable(name, _text(content, offset)[0], encoding)
            self._types[key] = name
        elif opcode == CHANNEL:
            self._add_channel(content)
        elif opcode == MESSAGE:
            key, _, stamp_ns = unpack("<HIQ", content)
            topic = self._topics.get(key)
            if topic is None:
                raise ValueError(f"a message of channel {key}, which was never described")
            yield Message(topic, stamp_ns, unpacked(content[22:]))

    def _add_channel(self, content: bytes) -> None:
        key, schema = unpack("<HH", content)
        type_name = self._types.get(schema)
        if type_name is None:
            raise ValueError(f"channel {key} of type {schema}, which was never described")
        name, offset = _text(content, 4)
        _, offset = _text(content, offset)
        (size,) = unpack("<I", content, offset)
        with decoding():
            qos: list[Qos] = get_qos(content[offset + 4 : offset + 4 + size])
        self._topics[key] = Topic(name, type_name, tuple(qos))


def _head(file: BinaryIO | BytesIO) -> tuple[int, int]:
    opcode, size = struct.unpack("<BQ", take(file, 9))
    if opcode not in OPCODES or size > MAX_RECORD_BYTES:
        raise ValueError(f"expected a record, got opcode {opcode} and size {size}")
    return opcode, size


def take(file: BinaryIO | BytesIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise ValueError(f"the file ends {size - len(content)} bytes before its record does")
    return content


def unpack(layout: str, content: bytes, offset: int = 0) -> tuple[Any, ...]:
    missing = offset + struct.calcsize(layout) - len(content)
    if missing > 0:
        raise ValueError(f"a record ends {missing} bytes before its fields do")
    return struct.unpack_from(layout, content, offset)


def _text(content: bytes, offset: int) -> tuple[str, int]:
    (size,) = unpack("<I", content, offset)
    end = offset + 4 + size
    return content[offset + 4 : end].decode(), end
