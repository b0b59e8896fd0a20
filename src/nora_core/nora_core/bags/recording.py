"""One open episode: a separate thread writes messages, so that a slow disk delays nobody."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nora_core.bags.audit import Audit
from nora_core.bags.definitions import Definitions, header_stamp_ns
from nora_core.bags.writer import BagWriter, Topic

FLUSH_PERIOD_S = 0.5
MAX_WAITING_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Item:
    """A serialised message as it was received."""

    topic: Topic
    received_ns: int
    data: bytes


class Recording:
    """Writes what is `put` to a new bag, until `drain`.

    Attributes:
        failure: why writing ended early, None while it goes well; later messages are dropped.
        num_dropped: number of messages not written: too many waited, or writing had failed.

    Raises:
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, definitions: Definitions, audit: Audit) -> None:
        self.failure: str | None = None
        self.num_dropped = 0
        self._definitions, self._audit = definitions, audit
        self._writer = BagWriter(folder, definitions)
        self._waiting: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._bytes_in = self._bytes_out = 0  # each is written by one thread only
        self._thread = threading.Thread(target=self._run, name="bag")
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand a message over; never waits."""
        waiting_bytes = self._bytes_in - self._bytes_out
        if self.failure or waiting_bytes + len(item.data) > MAX_WAITING_BYTES:
            self.num_dropped += 1
            return
        self._bytes_in += len(item.data)
        self._waiting.put(item)

    def drain(self) -> None:
        """Wait until all is written, or failed; nothing may be `put` afterwards."""
        self._waiting.put(None)
        self._thread.join()

    def discard(self) -> None:
        """Close the file of a bag that is about to be deleted; call it after `drain`."""
        self._writer.abort()

    def close(self, custom_data: Mapping[str, str]) -> None:
        """Finish the bag, or leave it as it is if writing failed; call it after `drain`."""
        if not self.failure:
            try:
                self._writer.close(custom_data)
            except OSError as error:
                self.failure = str(error)
        if self.failure:
            self._writer.abort()

    def _run(self) -> None:
        try:
            self._write_all()
        except (OSError, ValueError) as error:
            self.failure = str(error)

    def _write_all(self) -> None:
        flush_at = time.monotonic() + FLUSH_PERIOD_S
        while True:
            wait_s = flush_at - time.monotonic()
            if wait_s <= 0:
                self._writer.flush()
                flush_at = time.monotonic() + FLUSH_PERIOD_S
                continue
            try:
                item = self._waiting.get(timeout=wait_s)
            except queue.Empty:
                continue
            if item is None:
                return
            self._write(item)

    def _write(self, item: Item) -> None:
        name, type_name = item.topic.name, item.topic.type_name
        self._writer.write(item.topic, item.received_ns, item.data)
        has_header = self._definitions.has_header(type_name)
        stamp_ns = header_stamp_ns(item.data) if has_header else None
        self._audit.add(name, item.received_ns, stamp_ns)
        self._bytes_out += len(item.data)
