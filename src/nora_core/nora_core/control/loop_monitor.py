"""How regularly the control loop runs."""

from __future__ import annotations

from dataclasses import dataclass

OVERRUN_FACTOR = 1.5


@dataclass(slots=True)
class LoopMonitor:
    """Takes start and work time of every period, ns; `summary` covers the time since the last one.

    Starts are on the node clock, which times the loop: in slowed simulation, wall time would call
    every period late. An overrun is a period that began more than half a period late.
    """

    period_s: float
    overruns: int = 0
    _last_start_ns: int | None = None
    _jitter_s: float = 0.0
    _work_s: float = 0.0

    def record(self, start_ns: int, work_ns: int) -> None:
        self._work_s = max(self._work_s, work_ns * 1e-9)
        if self._last_start_ns is not None:
            interval_s = (start_ns - self._last_start_ns) * 1e-9
            self._jitter_s = max(self._jitter_s, abs(interval_s - self.period_s))
            self.overruns += interval_s > OVERRUN_FACTOR * self.period_s
        self._last_start_ns = start_ns

    def summary(self) -> dict[str, float]:
        """Worst jitter and work since the last summary, ms; overruns since the start."""
        values = {
            "worst jitter (ms)": 1e3 * self._jitter_s,
            "worst work (ms)": 1e3 * self._work_s,
            "overruns": float(self.overruns),
        }
        self._jitter_s = self._work_s = 0.0
        return values
