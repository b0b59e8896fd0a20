"""How processes end: children with their parent, and quietly during start-up."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def dies_with_parent() -> Callable[[], None]:
    """Return a `preexec_fn` by which the kernel ends the child when the calling process ends."""
    return functools.partial(_die_with, os.getpid())


def end_quietly_when_told() -> None:
    """On SIGINT and SIGTERM end at once and without a traceback: for imports and start-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(0))


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)  # the parent ended before the kernel watched it
