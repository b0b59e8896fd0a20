"""How every command line of the suite ends: one line on stderr and the same exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

BAD_INPUT, INTERRUPTED = 2, 130


def run_command(body: Callable[[], int | None], when_interrupted: str = "stopped") -> NoReturn:
    """Run the body of a command and exit with what it returns (None: 0).

    Exit codes: 2 for bad input (`ValueError`, `OSError` or `RuntimeError`, printed as one line),
    130 after Ctrl-C or SIGTERM, which both raise `KeyboardInterrupt` in `body`. An error of any
    other type is a fault of ours and keeps its traceback.
    """
    # Both, because a shell that starts a job in the background has it ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        code = body()
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{when_interrupted}\n")
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(BAD_INPUT)
    sys.exit(code or 0)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
