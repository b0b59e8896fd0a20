"""Being told to stop while there is nothing to stop yet."""

from __future__ import annotations

import os
import signal


def end_quietly_when_told() -> None:
    """On SIGINT and SIGTERM end at once and without a traceback: for imports and start-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))
