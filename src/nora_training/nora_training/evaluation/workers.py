"""Trials in parallel worker processes."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from threadpoolctl import threadpool_limits

from nora_core.processes import dies_with_parent
from nora_core.trials.record import Job, Record, Result, Setup

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

Runner = Callable[[Job], Result]
OpenRunner = Callable[[Setup], Runner]  # a function of a module, so that a worker can import it


def run_jobs(
    jobs: Sequence[Job],
    setup: Setup,
    *,
    num_workers: int,
    log_file: Path,
    runner: OpenRunner,
) -> Generator[Record, None, None]:
    """Yield the trials as they end; closing the iterator kills the workers.

    Args:
        jobs: trials; a checkpoint is loaded once for those that follow each other.
        setup: what all trials have in common.
        num_workers: processes, of one thread each.
        log_file: receives everything that the workers print.
        runner: called once in every worker, with `setup`; what it returns runs the trials.

    Raises:
        ValueError, OSError: a trial cannot be run; the error of the worker.
        RuntimeError: a worker was killed.
    """
    if not jobs:
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(num_workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(dies_with_parent(), log_file, runner, setup),
    )
    try:
        with _for_children():
            futures = {pool.submit(_run, job): job for job in jobs}
        for future in as_completed(futures):
            yield Record(futures[future], _result(future, log_file))
    finally:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        pool.shutdown(cancel_futures=True)


def _result(future: Future[Result], log_file: Path) -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(f"a worker process ended unexpectedly; see {log_file}") from error


@contextlib.contextmanager
def _for_children() -> Iterator[None]:
    """Processes that start within compute in one thread, and do not see Ctrl-C.

    Numerical libraries read the number of threads when they are loaded, which happens before any
    of our code runs in a worker. A terminal sends Ctrl-C to all processes at once; the parent
    handles it when the block ends, and then kills the workers.
    """
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Worker:
    """State of a worker process. Its first trial opens `run`, so that errors reach the parent."""

    runner: OpenRunner
    setup: Setup
    run: Runner | None = None


def _start(
    dies_with_parent: Callable[[], None], log_file: Path, runner: OpenRunner, setup: Setup
) -> None:
    """First call in a worker process."""
    dies_with_parent()
    with log_file.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)  # a worker may be killed at any time
    threadpool_limits(1)
    _Worker.runner, _Worker.setup = runner, setup


def _run(job: Job) -> Result:
    if _Worker.run is None:
        _Worker.run = _Worker.runner(_Worker.setup)
    return _Worker.run(job)
