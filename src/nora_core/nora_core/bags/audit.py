"""Is an episode worth keeping? Counts, rates, gaps and ages per topic; green, or red with why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from nora_core.embodiment import Embodiment

NS_PER_S = 1_000_000_000
STALE_SHARE = 0.01
FUTURE_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class Expectation:
    """The limits that a topic on the record list must keep; None means no limit.

    Attributes:
        max_gap_ns: longest silence, also after the start and before the end of the episode.
        max_age_ns: oldest header stamp at receipt.
        is_required: whether the episode needs a message of it; the limits apply in either case.
    """

    max_gap_ns: int | None = None
    max_age_ns: int | None = None
    is_required: bool = True


def expectations(embodiment: Embodiment, resolve: Callable[[str], str]) -> dict[str, Expectation]:
    """The limits that policy and bridge need, for every full topic name on the record list.

    Args:
        embodiment: its cameras, arm state and chunks have limits, the rest has none.
        resolve: from a name on the record list to the full topic name.
    """
    limits = {}
    for camera in embodiment.cameras:
        age_ns = int(camera.max_age_s * NS_PER_S)
        limits[camera.topic] = Expectation(age_ns, age_ns)
        limits[f"{camera.topic}/compressed"] = limits[camera.topic]
    if embodiment.driver is not None:
        age_ns = int(embodiment.safety.max_state_age_s * NS_PER_S)
        limits[embodiment.driver.state_topic] = Expectation(age_ns, age_ns)
    age_ns = int(embodiment.action.max_chunk_age_s * NS_PER_S)
    limits["policy/action_chunk"] = Expectation(max_age_ns=age_ns)
    required = {name: limits.get(name, Expectation()) for name in embodiment.record}
    optional = {
        name: replace(limits.get(name, Expectation()), is_required=False)
        for name in embodiment.record_optional
    }
    return {resolve(name): limit for name, limit in (required | optional).items()}


@dataclass(frozen=True, slots=True)
class TopicAudit:
    """One topic of an episode; times in s, NaN where there were too few messages to say."""

    name: str
    count: int
    rate_hz: float
    largest_gap_s: float
    oldest_s: float
    num_stale: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The verdict: `problems` are those of the whole episode, beside those of each topic.

    `remarks` are information and do not make the report red.
    """

    duration_s: float
    topics: tuple[TopicAudit, ...]
    problems: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        of_topics = (f"{topic.name}: {text}" for topic in self.topics for text in topic.problems)
        return (*self.problems, *of_topics)

    @property
    def is_green(self) -> bool:
        return not self.reasons

    def markdown(self, title: str) -> str:
        lines = [
            f"# {title}: {'green' if self.is_green else 'RED'}",
            "",
            *(f"- {line}" for line in (*self.reasons, *self.remarks)),
            *([""] if self.reasons or self.remarks else []),
            f"{self.duration_s:.1f} s",
            "",
            "| topic | messages | Hz | largest gap s | oldest s | stale |",
            "|---|---|---|---|---|---|",
        ]
        for topic in self.topics:
            cells = (topic.rate_hz, topic.largest_gap_s, topic.oldest_s)
            texts = ("–" if cell != cell else f"{cell:.3g}" for cell in cells)
            lines.append(
                f"| {topic.name} | {topic.count} | {' | '.join(texts)} | {topic.num_stale} |"
            )
        return "\n".join(lines) + "\n"


@dataclass(slots=True)
class _Seen:
    count: int = 0
    first_ns: int = 0
    last_ns: int = 0
    largest_gap_ns: int = 0
    last_stamp_ns: int | None = None
    num_back: int = 0
    num_stale: int = 0
    oldest_ns: int | None = None


class Audit:
    """Collect the statistics of every written message and report once, at the end.

    Args:
        expected: by full topic name; other topics are reported but never required.
        start_ns: start of the episode on the clock of the receipt stamps.
    """

    def __init__(self, expected: Mapping[str, Expectation], start_ns: int) -> None:
        self._expected = expected
        self._start_ns = start_ns
        self._seen: dict[str, _Seen] = {}

    def add(self, topic: str, received_ns: int, stamp_ns: int | None) -> None:
        """Count a message; `stamp_ns` is that of its header, None when it has none."""
        seen = self._seen.setdefault(topic, _Seen(first_ns=received_ns, last_ns=self._start_ns))
        seen.largest_gap_ns = max(seen.largest_gap_ns, received_ns - seen.last_ns)
        seen.last_ns = received_ns
        seen.count += 1
        if stamp_ns is None:
            return
        if seen.last_stamp_ns is not None and stamp_ns < seen.last_stamp_ns:
            seen.num_back += 1
        seen.last_stamp_ns = stamp_ns
        age_ns = received_ns - stamp_ns
        seen.oldest_ns = age_ns if seen.oldest_ns is None else max(seen.oldest_ns, age_ns)
        limit_ns = self._expected.get(topic, Expectation()).max_age_ns
        if limit_ns is not None and not -FUTURE_NS <= age_ns <= limit_ns:
            seen.num_stale += 1

    def count(self, topic: str) -> int:
        seen = self._seen.get(topic)
        return seen.count if seen else 0

    def report(
        self, end_ns: int, remarks: Mapping[str, str], problems: tuple[str, ...]
    ) -> AuditReport:
        """The verdict at `end_ns`.

        Args:
            end_ns: end of the episode.
            remarks: by topic, what may explain that a message never came.
            problems: of the whole episode, known to the caller.
        """
        names = (*self._expected, *sorted(self._seen.keys() - self._expected.keys()))
        topics = tuple(self._topic(name, end_ns, remarks.get(name, "")) for name in names)
        return AuditReport((end_ns - self._start_ns) / NS_PER_S, topics, problems)

    def _topic(self, name: str, end_ns: int, remark: str) -> TopicAudit:
        nan = float("nan")
        seen = self._seen.get(name)
        if seen is None:
            why = f"no message ({remark})" if remark else "no message"
            problems = (why,) if self._expected[name].is_required else ()
            return TopicAudit(name, 0, nan, nan, nan, 0, problems)
        gap_ns = max(seen.largest_gap_ns, end_ns - seen.last_ns)
        span_ns = seen.last_ns - seen.first_ns
        return TopicAudit(
            name,
            seen.count,
            (seen.count - 1) * NS_PER_S / span_ns if span_ns > 0 else nan,
            gap_ns / NS_PER_S,
            nan if seen.oldest_ns is None else seen.oldest_ns / NS_PER_S,
            seen.num_stale,
            self._problems(self._expected.get(name, Expectation()), seen, gap_ns),
        )

    def _problems(self, expected: Expectation, seen: _Seen, gap_ns: int) -> tuple[str, ...]:
        problems = []
        if expected.max_gap_ns is not None and gap_ns > expected.max_gap_ns:
            limit_s = expected.max_gap_ns / NS_PER_S
            problems.append(f"silent for {gap_ns / NS_PER_S:.2f} s, limit {limit_s:g} s")
        if expected.max_age_ns is not None and seen.num_stale > STALE_SHARE * seen.count:
            limit_s = expected.max_age_ns / NS_PER_S
            problems.append(
                f"{seen.num_stale} of {seen.count} stamps older than {limit_s:g} s at receipt, "
                f"or more than {FUTURE_NS / NS_PER_S:g} s ahead"
            )
        if seen.num_back:
            problems.append(f"header stamps went back {seen.num_back} times")
        return tuple(problems)
