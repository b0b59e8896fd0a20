"""Begin, end, label and audit episodes; without ROS and without a clock of its own."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path

from nora_core.bags.audit import Audit, AuditReport, Expectation
from nora_core.bags.definitions import Definitions
from nora_core.bags.label import Label, Provenance, episode_folder, next_episode
from nora_core.bags.recording import Item, Recording
from nora_core.types import Outcome, Rejection

AUDIT = "audit.md"
BY_OPERATOR = "operator"


class StartError(IntEnum):
    """Equal to the response constants of `nora_msgs/srv/StartEpisode`, beside its NONE = 0."""

    NOT_ACTIVE = 1
    EPISODE_OPEN = 2
    INVALID_REQUEST = 3
    DISK_FULL = 4
    WRITE_FAILED = 5


class EndError(IntEnum):
    """Equal to the response constants of `nora_msgs/srv/EndEpisode`, beside its NONE = 0."""

    NOT_ACTIVE = 1
    NO_EPISODE = 2
    INVALID_OUTCOME = 3
    WRITE_FAILED = 4


@dataclass(frozen=True, slots=True)
class Ended:
    """How an episode ended.

    Attributes:
        report: its audit; None if it was discarded or the request was rejected.
        rejection: what went wrong; None if nothing did. An episode with a report has ended, even
            if its files could not be written.
    """

    report: AuditReport | None = None
    rejection: Rejection[EndError] | None = None


class Recorder:
    """Records one episode at a time into `directory/episode_000123`.

    Args:
        directory: the folder for one embodiment; need not exist.
        provenance: written into every label.
        definitions: know every type that will be `put`.
        expected: the record list, by full topic name.
        min_free_bytes: with less free disk space no episode begins, and an open one ends.

    Attributes:
        folder, label: folder and label of the open or the last episode; None before the first.
        problem: why the last episode ended by itself; None if an operator ended it.
    """

    def __init__(
        self,
        *,
        directory: Path,
        provenance: Provenance,
        definitions: Definitions,
        expected: Mapping[str, Expectation],
        min_free_bytes: int,
    ) -> None:
        self.folder: Path | None = None
        self.label: Label | None = None
        self.problem: str | None = None
        self._directory, self._provenance = directory, provenance
        self._definitions, self._expected = definitions, expected
        self._min_free_bytes = min_free_bytes
        self._latched: dict[str, Item] = {}
        self._recording: Recording | None = None
        self._audit = Audit({}, 0)

    @property
    def is_recording(self) -> bool:
        return self._recording is not None

    @property
    def counts(self) -> tuple[int, ...]:
        """Messages of the episode so far, in the order of the record list."""
        return tuple(self._audit.count(name) for name in self._expected)

    @property
    def num_dropped(self) -> int:
        return self._recording.num_dropped if self._recording else 0

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._directory).free

    def start(self, instruction: str, notes: str, now_ns: int) -> Rejection[StartError] | None:
        """Begin an episode; returns None if it has begun."""
        if self._recording is not None:
            return Rejection(StartError.EPISODE_OPEN, f"{self.folder} is still being recorded")
        if not instruction.strip():
            return Rejection(StartError.INVALID_REQUEST, "instruction is missing")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if problem := self._disk_problem(self.free_bytes()):
                return Rejection(StartError.DISK_FULL, problem)
            self._open(instruction, notes, now_ns)
        except OSError as error:
            return Rejection(StartError.WRITE_FAILED, str(error))
        return None

    def put(self, item: Item) -> None:
        """Record a message; every episode begins with the last one of each latched topic."""
        if item.topic.is_latched:
            self._latched[item.topic.name] = item
        if self._recording is not None:
            self._recording.put(item)

    def end(
        self,
        *,
        outcome: int,
        distractor_grasps: int,
        notes: str,
        now_ns: int,
        unpublished: Collection[str],
    ) -> Ended:
        """End, label and audit the open episode; `unpublished` topics are named as such."""
        if self._recording is None or self.label is None:
            return self._no_episode()
        if outcome not in list(Outcome):
            text = f"outcome: expected one of {[int(o) for o in Outcome]}, got {outcome}"
            return Ended(rejection=Rejection(EndError.INVALID_OUTCOME, text))
        self.label = replace(
            self.label,
            outcome=Outcome(outcome).text,
            distractor_grasps=distractor_grasps,
            notes="\n".join(text for text in (self.label.notes, notes) if text),
        )
        return self._finish(BY_OPERATOR, now_ns, unpublished)

    def discard(self) -> Ended:
        """Delete the open episode."""
        if self._recording is None or self.folder is None:
            return self._no_episode()
        recording, self._recording = self._recording, None
        recording.drain()
        recording.discard()
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            return Ended(rejection=Rejection(EndError.WRITE_FAILED, str(error)))
        return Ended()

    def watch(self, now_ns: int, unpublished: Collection[str]) -> str | None:
        """End the episode if it cannot go on; returns why, None if it goes on."""
        if self._recording is None:
            return None
        reason = self._recording.failure or self._disk_problem(self.free_bytes())
        return self.close(reason, now_ns, unpublished) if reason else None

    def close(self, reason: str, now_ns: int, unpublished: Collection[str]) -> str | None:
        """End an open episode without an operator, outcome unknown; returns what to tell them."""
        if self._recording is None:
            return None
        rejection = self._finish(reason, now_ns, unpublished).rejection
        why = reason if rejection is None else rejection.detail
        self.problem = f"{self.folder} was ended, outcome unknown: {why}"
        return self.problem

    def _no_episode(self) -> Ended:
        text = self.problem or "no episode is being recorded"
        return Ended(rejection=Rejection(EndError.NO_EPISODE, text))

    def _open(self, instruction: str, notes: str, now_ns: int) -> None:
        episode = next_episode(self._directory)
        folder = episode_folder(self._directory, episode)
        outcome = Outcome.UNKNOWN.text
        label = Label(
            episode=episode,
            instruction=instruction,
            outcome=outcome,
            distractor_grasps=0,
            notes=notes,
            start_ns=now_ns,
            end_ns=0,
            ended="",
            is_green=None,
            provenance=self._provenance,
        )
        audit = Audit(self._expected, now_ns)
        recording = Recording(folder, self._definitions, audit)
        try:
            label.save(folder)
        except OSError:
            recording.drain()
            recording.discard()
            shutil.rmtree(folder)
            raise
        self.folder, self.label, self.problem = folder, label, None
        self._audit, self._recording = audit, recording
        for item in self._latched.values():
            recording.put(replace(item, received_ns=now_ns))

    def _finish(self, ended: str, now_ns: int, unpublished: Collection[str]) -> Ended:
        recording, label, folder = self._recording, self.label, self.folder
        assert recording is not None
        assert label is not None
        assert folder is not None
        self._recording = None
        recording.drain()
        remarks = dict.fromkeys(unpublished, "nobody publishes it")
        report = self._audit.report(now_ns, remarks, _problems(recording, ended))
        label = replace(label, end_ns=now_ns, ended=ended, is_green=report.is_green)
        recording.close(label.custom_data())
        if recording.failure:
            report = self._audit.report(now_ns, remarks, _problems(recording, ended))
            label = replace(label, ended=f"write failed: {recording.failure}", is_green=False)
        self.label = label
        failure = recording.failure
        try:
            label.save(folder)
            (folder / AUDIT).write_text(report.markdown(folder.name), encoding="utf-8")
        except OSError as error:
            failure = failure or str(error)
        return Ended(report, Rejection(EndError.WRITE_FAILED, failure) if failure else None)

    def _disk_problem(self, free_bytes: int) -> str | None:
        if free_bytes >= self._min_free_bytes:
            return None
        return (
            f"{self._directory}: expected at least {self._min_free_bytes / 1e9:.3f} GB of free "
            f"space, got {free_bytes / 1e9:.3f} GB"
        )


def _problems(recording: Recording, ended: str) -> tuple[str, ...]:
    problems = []
    if recording.failure:
        problems.append(f"writing failed: {recording.failure}; run `nora bags repair`")
    elif ended != BY_OPERATOR:
        problems.append(f"ended without an operator: {ended}")
    if recording.num_dropped:
        problems.append(f"{recording.num_dropped} messages dropped: the disk is too slow")
    return tuple(problems)
