"""The `nora-sft` command: a data set and a checkpoint in, a fine-tuned checkpoint out."""

from __future__ import annotations

import json
import logging
import signal
import sys
from types import FrameType

import tyro

from nora_training.sft.run import Run, finished
from nora_training.sft.settings import Settings
from nora_training.sft.trainer import Stopped

FAILED, INTERRUPTED = 1, 130


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


def main() -> None:
    """Exit code 0: trained; 1: bad input; 130: stopped, `--resume` goes on."""
    logging.basicConfig(format="%(message)s")
    settings = tyro.cli(Settings, prog="nora-sft")
    stop = Stop()
    try:
        _train(settings, stop)
    except Stopped as stopped:
        print(f"\nstopped after step {stopped.step}; add --resume to go on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except KeyboardInterrupt:
        print("\nstopped; --resume goes on from the last saved state", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)


def _train(settings: Settings, stop: Stop) -> None:
    if card := finished(settings):
        print(f"{settings.out}: finished: {json.dumps(card['metrics'])}")
        return
    run = Run(settings, lambda: stop.is_asked)
    if run.is_main:
        print(run.describe())
    metrics = run.train()
    if run.is_main:
        print(run.outcome(metrics))


if __name__ == "__main__":
    main()
