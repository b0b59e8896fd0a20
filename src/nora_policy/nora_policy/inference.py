"""The thread that runs the model, and its timing statistics (numpy layer)."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from nora_core.types import ActionChunk, Observation

WINDOW = 200
JOIN_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Statistics of the last `WINDOW` chunks; NaN where nothing was measured yet."""

    inference_p50_s: float
    inference_p95_s: float
    observation_age_p50_s: float
    observation_age_p95_s: float
    tokens_p50: float
    tokens_max: float
    rate_hz: float
    chunks: int
    dropped: int
    failures: int


@dataclass(slots=True, kw_only=True)
class InferenceStats:
    """Counts since the start, times of the last `WINDOW` chunks."""

    chunks: int = 0
    dropped: int = 0
    failures: int = 0
    _inference_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _age_s: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _tokens: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _published_ns: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def record(
        self, *, inference_s: float, observation_age_s: float, num_tokens: int, now_ns: int
    ) -> None:
        self.chunks += 1
        self._tokens.append(num_tokens)
        self._inference_s.append(inference_s)
        self._age_s.append(observation_age_s)
        self._published_ns.append(now_ns)

    @property
    def last_inference_s(self) -> float:
        return self._inference_s[-1] if self._inference_s else float("nan")

    @property
    def last_observation_age_s(self) -> float:
        return self._age_s[-1] if self._age_s else float("nan")

    def summary(self, now_ns: int) -> Summary:
        """`rate_hz` counts up to `now_ns`, so that it decays when chunks stop coming."""
        nan = float("nan")
        inference = np.percentile(self._inference_s, (50, 95)) if self._inference_s else (nan, nan)
        age = np.percentile(self._age_s, (50, 95)) if self._age_s else (nan, nan)
        span_s = (now_ns - self._published_ns[0]) * 1e-9 if self._published_ns else 0.0
        return Summary(
            inference_p50_s=float(inference[0]),
            inference_p95_s=float(inference[1]),
            observation_age_p50_s=float(age[0]),
            observation_age_p95_s=float(age[1]),
            tokens_p50=float(np.median(self._tokens)) if self._tokens else nan,
            tokens_max=float(max(self._tokens, default=nan)),
            rate_hz=len(self._published_ns) / span_s if span_s > 0 else nan,
            chunks=self.chunks,
            dropped=self.dropped,
            failures=self.failures,
        )


class InferenceWorker:
    """Runs `infer` in a thread of its own on the newest observation submitted.

    Args:
        infer: the model; raises `ValueError` or `RuntimeError` when it cannot answer.
        on_chunk: called in the worker thread with the chunk and the inference time in s.
        on_failure: called in the worker thread when `infer` raised one of these two.
        on_crash: called in the worker thread when anything else was raised; the thread ends.
    """

    def __init__(
        self,
        *,
        infer: Callable[[Observation], ActionChunk],
        on_chunk: Callable[[ActionChunk, float], None],
        on_failure: Callable[[Exception], None],
        on_crash: Callable[[Exception], None],
    ) -> None:
        self._infer, self._on_chunk = infer, on_chunk
        self._on_failure, self._on_crash = on_failure, on_crash
        self._wake = threading.Condition()
        self._pending: Observation | None = None
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def submit(self, observation: Observation) -> bool:
        """Hand over the newest observation; false when it replaced one that was not inferred."""
        with self._wake:
            is_first = self._pending is None
            self._pending = observation
            self._wake.notify()
        return is_first

    def clear(self) -> None:
        """Forget the observation that waits."""
        with self._wake:
            self._pending = None

    def stop(self) -> bool:
        """End the thread; false when a running inference outlasts `JOIN_TIMEOUT_S`."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join(JOIN_TIMEOUT_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (observation := self._next()) is not None:
                self._answer(observation)
        except Exception as error:
            self._on_crash(error)
            raise

    def _next(self) -> Observation | None:
        with self._wake:
            self._wake.wait_for(lambda: self._pending is not None or self._is_stopping)
            observation, self._pending = self._pending, None
            return None if self._is_stopping else observation

    def _answer(self, observation: Observation) -> None:
        start = time.perf_counter()
        try:
            chunk = self._infer(observation)
        except (ValueError, RuntimeError) as error:
            if not self._is_stopping:
                self._on_failure(error)
            return
        if not self._is_stopping:
            self._on_chunk(chunk, time.perf_counter() - start)
