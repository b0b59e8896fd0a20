"""The person at a real robot: sets the scene, watches, and judges a trial with one key."""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from nora_core.types import Outcome

PIPE_BYTES = 1 << 16  # capacity of a pipe
OUTCOMES = {"s": Outcome.SUCCESS, "p": Outcome.PARTIAL, "f": Outcome.FAILURE}
DISTRACTOR, REPEAT = "d", "r"
HELP = "s success, p partial, f failure, d another object was grasped, r repeat this trial"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the operator saw; without an outcome the trial does not count and is repeated."""

    outcome: Outcome | None
    distractor_grasps: int


class Keys:
    """Keys of a terminal as they are pressed, or characters of a pipe.

    Raises:
        RuntimeError: from `wait` and `pressed`, at the end of the input.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._before: list[Any] | None = None

    def __enter__(self) -> Keys:
        if os.isatty(self._file):
            self._before = termios.tcgetattr(self._file)
            tty.setcbreak(self._file)  # Ctrl-C still interrupts
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def wait(self) -> str:
        """The next key, in lower case."""
        if not (data := os.read(self._file, 1)):
            raise RuntimeError("operator: the input ended while a key was expected")
        return data.decode("ascii", errors="replace").lower()

    def drop(self) -> None:
        """Forget the keys pressed so far."""
        if os.isatty(self._file):
            termios.tcflush(self._file, termios.TCIFLUSH)
        elif self._is_ready():
            os.read(self._file, PIPE_BYTES)

    def pressed(self) -> str | None:
        """The next key, if there is one already."""
        return self.wait() if self._is_ready() else None

    def _is_ready(self) -> bool:
        return bool(select.select([self._file], [], [], 0)[0])


class Operator:
    """Judges one trial after the other: `begin`, `start`, then `has_decided` and `verdict`."""

    def __init__(self, keys: Keys, say: Callable[[str], None]) -> None:
        self._keys, self._say = keys, say
        self._outcome: Outcome | None = None
        self._distractors = 0
        self._is_decided = False

    def begin(self, title: str, scene: str) -> None:
        """Ask for the scene; returns at a line end or a space pressed after that."""
        self._keys.drop()  # an Enter from before must not start the arm
        self._say(f"\n{title}\n  {scene}\n  Enter starts it. Then: {HELP}")
        while self._keys.wait() not in "\r\n ":
            pass

    def start(self) -> None:
        """The trial begins now: keys pressed before, while the arm went home, do not count."""
        self._outcome, self._distractors, self._is_decided = None, 0, False
        self._keys.drop()

    def has_decided(self) -> bool:
        """Whether the keys pressed so far include a verdict; does not wait."""
        while not self._is_decided and (key := self._keys.pressed()) is not None:
            self._take(key)
        return self._is_decided

    def verdict(self) -> Verdict:
        """Wait for the verdict."""
        if not self._is_decided:
            self._say(f"  over; how did it go? {HELP}")
        while not self._is_decided:
            self._take(self._keys.wait())
        said = self._outcome.text if self._outcome else "repeat"
        self._say(f"  {said}, distractor grasps: {self._distractors}")
        return Verdict(self._outcome, self._distractors)

    def _take(self, key: str) -> None:
        if key == DISTRACTOR:
            self._distractors += 1
        elif key == REPEAT or key in OUTCOMES:
            self._outcome, self._is_decided = OUTCOMES.get(key), True
