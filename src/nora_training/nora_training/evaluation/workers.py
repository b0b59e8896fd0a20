"""Trials in parallel: processes that run `nora_training.evaluation.rollout`."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO

from nora_core.processes import dies_with_parent
from nora_core.trials.record import Job, Record, Setup, result_of, to_line

MODULE = "nora_training.evaluation.rollout"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run_jobs(
    jobs: Sequence[Job], setup: Setup, num_workers: int, log_dir: Path
) -> Generator[Record, None, None]:
    """The trials as they end; when the iterator is closed, the workers are killed.

    Args:
        jobs: trials of one checkpoint next to each other are loaded for once.
        setup: of all trials.
        num_workers: processes, of one thread each.
        log_dir: one file per worker, for what it has to say.

    Raises:
        RuntimeError: a worker ended; says why.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    waiting = deque(jobs)
    workers: list[_Worker] = []
    try:
        with selectors.DefaultSelector() as selector:
            for number in range(min(num_workers, len(waiting))):
                worker = _Worker(setup, log_dir / f"worker_{number}.log")
                workers.append(worker)
                worker.start(waiting.popleft())
                selector.register(worker.answers, selectors.EVENT_READ, worker)
            while selector.get_map():
                for key, _ in selector.select():
                    worker = key.data
                    yield worker.finish()
                    if waiting:
                        worker.start(waiting.popleft())
                    else:
                        selector.unregister(worker.answers)
                        worker.end()
    finally:
        for worker in workers:
            worker.kill()


class _Worker:
    def __init__(self, setup: Setup, log: Path) -> None:
        self._log = log
        self._job: Job | None = None
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **ONE_THREAD},
                text=True,
                start_new_session=True,  # a Ctrl-C reaches it only through us
                preexec_fn=dies_with_parent(),
            )
        self._write(to_line(setup))

    @property
    def answers(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def start(self, job: Job) -> None:
        self._job = job
        self._write(to_line(job))

    def finish(self) -> Record:
        """Blocks until the answer is there."""
        assert self._job is not None
        if not (line := self.answers.readline()):
            raise RuntimeError(self._last_words())
        return Record(self._job, result_of(line))

    def end(self) -> None:
        """It ends by itself when nothing more can come."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._last_words()) from None

    def _last_words(self) -> str:
        code = self._process.wait()
        lines = self._log.read_text(errors="replace").splitlines()
        said = lines[-1].removeprefix("error: ") if lines else "it said nothing"
        return f"worker ended with exit code {code}: {said}"
