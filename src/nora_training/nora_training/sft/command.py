"""The `nora-sft` command, which fine-tunes a checkpoint on a data set."""

from __future__ import annotations

import json
import logging
import signal
import sys
from types import FrameType
from typing import NoReturn

import tyro

from nora_core.command import INTERRUPTED, run_command
from nora_training.sft.run import Run, finished
from nora_training.sft.settings import Settings
from nora_training.train.loop import Stopped


class Stop:
    """Remembers that SIGINT or SIGTERM came; a second one ends the process at once."""

    def __init__(self) -> None:
        self.is_asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True


def main() -> NoReturn:
    """Run the command with the exit codes of `run_command`; 130 also after saving the state."""
    logging.basicConfig(format="%(message)s")
    run_command(_main, when_interrupted="stopped; --resume goes on from the last saved state")


def _main() -> int:
    settings = tyro.cli(Settings, prog="nora-sft")
    if card := finished(settings):
        print(f"{settings.out}: finished: {json.dumps(card['metrics'])}")
        return 0
    stop = Stop()
    try:
        _train(Run(settings, lambda: stop.is_asked))
    except Stopped as stopped:
        print(f"\nstopped after step {stopped.step}; add --resume to go on", file=sys.stderr)
        return INTERRUPTED
    return 0


def _train(run: Run) -> None:
    run.begin()
    if run.is_main:
        print(run.describe())
    metrics = run.train()
    if run.is_main:
        print(run.outcome(metrics))


if __name__ == "__main__":
    main()
