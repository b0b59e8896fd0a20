"""What the numbers of a benchmark were measured on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor() -> str:
    """Model name of the CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
