"""Progress of long work on stderr: a bar on a terminal, a line every 30 s in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
LOG_PERIOD_S = 30.0
LOG_LINE = "{n_fmt}/{total_fmt} {unit}, {elapsed} elapsed, {remaining} left{postfix}"


def progress(
    work: Iterable[T] | int,
    unit: str,
    *,
    total: int | None = None,
    initial: int = 0,
    is_hidden: bool = False,
    log_period_s: float = LOG_PERIOD_S,
) -> tqdm[T]:
    """Show how far long work is; a `tqdm` bar, closed at the end of a `with` block or iteration.

    Args:
        work: items to iterate over, or their number; then call `update()` after each.
        unit: one item in words, as "step".
        total: number of items, where `work` does not know it.
        initial: items that were done before.
        is_hidden: show nothing, for all processes but one.
        log_period_s: time between two lines where stderr is not a terminal. Work that takes less
            prints nothing there.
    """
    items, number = (None, work) if isinstance(work, int) else (work, total)
    if sys.stderr.isatty() or is_hidden:
        return tqdm(items, total=number, initial=initial, unit=unit, disable=is_hidden)
    return _LogLines(log_period_s, items, total=number, initial=initial, unit=unit)


class _LogLines(tqdm):  # type: ignore[misc]  # tqdm has no types
    """Write whole lines instead of redrawing one."""

    monitor_interval = 0  # needs no thread

    def __init__(self, period_s: float, items: Iterable[Any] | None, **options: Any) -> None:
        self._period_s = period_s
        self._due_s = time.monotonic() + period_s
        self._has_lines = False
        super().__init__(items, leave=False, miniters=1, bar_format=LOG_LINE, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write a line if one is due."""
        if msg is not None or time.monotonic() < self._due_s:
            return False
        self.fp.write(f"{self}\n")
        self._due_s = time.monotonic() + self._period_s
        self._has_lines = True
        return True

    def clear(self, *args: Any, **options: Any) -> None:
        """Lines of a log stay."""

    def close(self) -> None:
        """Write a last line where there were others."""
        if self._has_lines and not self.disable:
            self._due_s = 0.0
            self.display()
        super().close()
