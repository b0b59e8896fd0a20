"""How inference shares the CPU with other processes. Imports no torch: it must run before that."""

from __future__ import annotations

import os
import sys

WAIT_POLICY = "OMP_WAIT_POLICY"


def sleep_at_barriers() -> None:
    """Have OpenMP threads sleep while they wait for each other; a user's own setting stays.

    By default libgomp spins for milliseconds at every barrier. When another process holds the
    core of one thread, the others burn theirs until the scheduler takes it away, and a chunk of
    0.3 s takes 10 s (benchmarks/results/cpu_contention.md).

    Raises:
        RuntimeError: torch is imported already; libgomp reads the environment only once.
    """
    if "torch" in sys.modules:
        raise RuntimeError(f"{WAIT_POLICY}: must be set before torch is imported")
    os.environ.setdefault(WAIT_POLICY, "passive")


def default_threads() -> int:
    """Threads of inference: all cores that this process may use but one, which is left free.

    A container or `taskset` may grant fewer cores than the machine has.
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)
