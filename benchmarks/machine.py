"""What the numbers of a benchmark were measured on, and where they go."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Model name of the CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def show(text: str, out: Path | None) -> None:
    """Print the tables and, if asked for, keep them in a file."""
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
