"""The number of simulation periods that are due after some real time."""

from __future__ import annotations


class Pacer:
    """Turns real time into whole periods of simulated time, `factor` simulated seconds per second.

    At most `max_periods` are due at once; on a slow machine the rest is dropped, so that the
    simulation falls behind instead of catching up in a rush.
    """

    def __init__(self, period_ns: int, factor: float, max_periods: int) -> None:
        self._period_ns, self._factor, self._max_periods = period_ns, factor, max_periods
        self._last_ns: int | None = None
        self._owed_ns = 0

    def due(self, now_ns: int) -> tuple[int, int]:
        """Number of periods to simulate now, and number of those dropped.

        `now_ns`: monotonic time; the first call starts the count.
        """
        if self._last_ns is None:
            self._last_ns = now_ns
        self._owed_ns += round((now_ns - self._last_ns) * self._factor)
        self._last_ns = now_ns
        owed, self._owed_ns = divmod(self._owed_ns, self._period_ns)
        return min(owed, self._max_periods), max(0, owed - self._max_periods)
