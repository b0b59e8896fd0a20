"""The inference thread: newest observation wins, failures are reported, the end is clean."""

import math
import threading

import numpy as np
import pytest

from nora_core.types import ActionChunk, Observation
from nora_policy.inference import InferenceStats, InferenceWorker

TIMEOUT_S = 10.0


def observation(stamp_ns: int) -> Observation:
    return Observation((), "go", stamp_ns)


def chunk_of(seen: Observation) -> ActionChunk:
    return ActionChunk(
        actions_TA=np.zeros((1, 7)),
        step_period_s=0.2,
        stamp_ns=seen.stamp_ns,
        instruction=seen.instruction,
        action_names=("x",) * 7,
        frame="base",
    )


class Record:
    """Collects what a worker reports and gates its model."""

    def __init__(self) -> None:
        self.chunks: list[int] = []
        self.failures: list[Exception] = []
        self.crashes: list[Exception] = []
        self.started, self.go_on, self.reported = (threading.Event() for _ in range(3))

    def infer(self, seen: Observation) -> ActionChunk:
        self.started.set()
        assert self.go_on.wait(TIMEOUT_S)
        if seen.stamp_ns < 0:
            raise ValueError("cannot answer")
        if seen.stamp_ns == 13:
            raise KeyError("a bug")
        return chunk_of(seen)

    def worker(self) -> InferenceWorker:
        def report(into: list, value: object) -> None:
            into.append(value)
            self.reported.set()

        return InferenceWorker(
            infer=self.infer,
            on_chunk=lambda chunk, _: report(self.chunks, chunk.stamp_ns),
            on_failure=lambda error: report(self.failures, error),
            on_crash=lambda error: report(self.crashes, error),
        )

    def wait_report(self) -> None:
        assert self.reported.wait(TIMEOUT_S)
        self.reported.clear()


def test_the_newest_observation_wins_and_the_rest_is_dropped():
    record = Record()
    worker = record.worker()
    assert worker.submit(observation(1))
    assert record.started.wait(TIMEOUT_S)
    assert [worker.submit(observation(stamp)) for stamp in (2, 3, 4)] == [True, False, False]
    record.go_on.set()
    record.wait_report()
    while record.chunks != [1, 4]:
        record.wait_report()
    assert worker.stop()


def test_a_failure_is_reported_and_the_thread_goes_on():
    record = Record()
    record.go_on.set()
    worker = record.worker()
    worker.submit(observation(-1))
    record.wait_report()
    worker.submit(observation(7))
    record.wait_report()
    assert [str(error) for error in record.failures] == ["cannot answer"]
    assert record.chunks == [7]
    assert worker.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_anything_else_is_a_crash_that_is_not_swallowed():
    record = Record()
    record.go_on.set()
    worker = record.worker()
    worker.submit(observation(13))
    record.wait_report()
    assert [type(error) for error in record.crashes] == [KeyError]
    assert worker.stop()


def test_no_chunk_comes_after_stop():
    record = Record()
    worker = record.worker()
    worker.submit(observation(1))
    assert record.started.wait(TIMEOUT_S)
    threading.Timer(0.2, record.go_on.set).start()
    assert worker.stop()
    assert record.chunks == []


def test_stats_rate_decays_when_chunks_stop():
    stats = InferenceStats()
    assert math.isnan(stats.summary(0).inference_p50_s)
    for k in range(11):
        stats.record(
            inference_s=0.010 + 0.001 * k,
            observation_age_s=0.1,
            num_tokens=k,
            now_ns=k * 100_000_000,
        )
    running, stalled = stats.summary(1_100_000_000), stats.summary(11_000_000_000)
    assert running.inference_p50_s == pytest.approx(0.015)
    assert running.inference_p95_s == pytest.approx(0.0195)
    assert running.rate_hz == pytest.approx(10.0)
    assert stalled.rate_hz == pytest.approx(1.0)
    assert running.chunks == 11
