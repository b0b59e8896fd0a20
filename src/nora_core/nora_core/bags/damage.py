"""Library calls on bytes that may be damaged: every failure becomes one `ValueError`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rosbags.rosbag2 import Reader

T = TypeVar("T")


@contextmanager
def decoding(prefix: str = "") -> Iterator[None]:
    """Guard one call of rosbags, apsw or a decompressor; no code of ours may run inside.

    Their parsers check little: on damaged bytes they raise what the first wrong value leads to
    (`struct.error`, `TypeError`, `KeyError`, `AssertionError`, `MemoryError`, ...), so that there
    are no names to list.

    Raises:
        ValueError: the call failed; `prefix` and one line, the error's type if it has no text.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{prefix}{text}") from error


def decoded(items: Iterable[T], prefix: str = "") -> Iterator[T]:
    """Yield the items of a library's generator, guarded as in `decoding`."""
    iterator = iter(items)
    while True:
        with decoding(prefix):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


@contextmanager
def open_reader(folder: Path) -> Iterator[Reader]:
    """Open a bag for a while; read its `messages` through `decoded`.

    Raises:
        ValueError: it is no bag, or its metadata or index are damaged.
    """
    with decoding():
        reader = Reader(folder)
        reader.open()
    try:
        yield reader
    finally:
        reader.close()
