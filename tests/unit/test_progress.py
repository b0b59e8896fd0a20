"""Progress: a bar on a terminal, whole lines in a log file."""

import sys
from io import StringIO

from nora_core.progress import progress


class Terminal(StringIO):
    def isatty(self):
        return True


def log_file(monkeypatch):
    """Replaces stderr."""
    found = StringIO()
    monkeypatch.setattr(sys, "stderr", found)
    return found


def test_a_log_gets_whole_lines_and_no_control_characters(monkeypatch):
    stderr = log_file(monkeypatch)
    with progress(3, "bag", log_period_s=0.0) as bar:
        for _ in range(3):
            bar.set_postfix(bad=0)
            bar.update()
            bar.write("skipped one", file=stderr)
    lines = stderr.getvalue().splitlines()
    assert "\r" not in stderr.getvalue()
    assert lines[0].startswith("0/3 bag, 00:00 elapsed")
    assert lines[-1].startswith("3/3 bag, 00:00 elapsed, 00:00 left, bad=0")
    assert lines.count("skipped one") == 3


def test_a_log_of_short_work_stays_empty(monkeypatch):
    stderr = log_file(monkeypatch)
    assert list(progress(iter("abc"), "step", total=3)) == ["a", "b", "c"]
    assert stderr.getvalue() == ""


def test_a_log_gets_a_line_per_period(monkeypatch):
    stderr, now_s = log_file(monkeypatch), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    with progress(100, "step") as bar:
        bar.mininterval = 0.0
        for _ in range(100):
            now_s[0] += 1.0
            bar.update()
    numbers = [int(line.split("/")[0]) for line in stderr.getvalue().splitlines()]
    assert numbers == [30, 60, 90, 100]


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress([1, 2], "trial")) == [1, 2]
    assert "2/2" in sys.stderr.getvalue()
    assert "\r" in sys.stderr.getvalue()


def test_hidden_work_shows_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress([1, 2], "trial", is_hidden=True)) == [1, 2]
    assert sys.stderr.getvalue() == ""
