"""A runner for `nora-trials` that opens at once and whose trials take a fifth of a second."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from nora_core.trials.record import Job, Result, Setup
from nora_core.types import Outcome


def open_runner(setup: Setup) -> Callable[[Job], Result]:
    assert setup.seconds > 0

    def run(job: Job) -> Result:
        if not Path(job.folder, "model.safetensors").is_file():
            raise FileNotFoundError(f"{job.folder}: no weights")
        if Path(job.folder, "killed").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        print("a trial")
        time.sleep(0.2)
        return Result(
            outcome=Outcome.PARTIAL, reached=True, distractor_grasps=0, chunks=1, duration_s=0.2
        )

    return run
