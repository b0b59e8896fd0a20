"""The episodes of a recorder: begun, ended, labelled and audited; no ROS, no clock of its own."""

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
from nora_core.types import Outcome

AUDIT = "audit.md"
BY_OPERATOR = "operator"


class StartError(IntEnum):
    """Equal to the response constants of `nora_msgs/srv/StartEpisode`."""

    NONE = 0
    NOT_ACTIVE = 1
    EPISODE_OPEN = 2
    INVALID_REQUEST = 3
    DISK_FULL = 4
    WRITE_FAILED = 5


class EndError(IntEnum):
    """Equal to the response constants of `nora_msgs/srv/EndEpisode`."""

    NONE = 0
    NOT_ACTIVE = 1
    NO_EPISODE = 2
    INVALID_OUTCOME = 3
    WRITE_FAILED = 4


@dataclass(frozen=True, slots=True)
class Ended:
    """How an episode ended; `report` is None when it was discarded."""

    error: EndError
    error_msg: str
    report: AuditReport | None = None


class Recorder:
    """Records one episode at a time into `directory/episode_000123`.

    Args:
        directory: of one embodiment; need not exist.
        provenance: goes into every label.
        definitions: of every type that will be `put`.
        expected: the record list, by full topic name.
        min_free_bytes: with less on the disk, no episode begins and an open one ends.

    Attributes:
        folder, label: of the open episode, or the last one; None before the first.
        problem: why the last episode ended by itself; empty when an operator ended it.
    """

    def __init__(
        self,
        directory: Path,
        provenance: Provenance,
        definitions: Definitions,
        expected: Mapping[str, Expectation],
        min_free_bytes: int,
    ) -> None:
        self.folder: Path | None = None
        self.label: Label | None = None
        self.problem = ""
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

    def start(self, instruction: str, notes: str, now_ns: int) -> tuple[StartError, str]:
        """Begin an episode; the error and its text, NONE and empty if it has begun."""
        if self._recording is not None:
            return StartError.EPISODE_OPEN, f"{self.folder}: expected no open episode"
        if not instruction.strip():
            return StartError.INVALID_REQUEST, "instruction: expected some text, got none"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if problem := self._disk_problem(self.free_bytes()):
                return StartError.DISK_FULL, problem
            self._open(instruction, notes, now_ns)
        except OSError as error:
            return StartError.WRITE_FAILED, str(error)
        return StartError.NONE, ""

    def put(self, item: Item) -> None:
        """A message of the record list; of latched topics the last one opens every episode."""
        if item.topic.is_latched:
            self._latched[item.topic.name] = item
        if self._recording is not None:
            self._recording.put(item)

    def end(
        self,
        outcome: int,
        distractor_grasps: int,
        notes: str,
        now_ns: int,
        unpublished: Collection[str],
    ) -> Ended:
        """End, label and audit the open episode; `unpublished` topics are named as such."""
        if self._recording is None or self.label is None:
            return Ended(EndError.NO_EPISODE, self.problem or "expected an open episode")
        if outcome not in list(Outcome):
            text = f"outcome: expected one of {[int(o) for o in Outcome]}, got {outcome}"
            return Ended(EndError.INVALID_OUTCOME, text)
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
            return Ended(EndError.NO_EPISODE, self.problem or "expected an open episode")
        recording, self._recording = self._recording, None
        recording.drain()
        recording.discard()
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            return Ended(EndError.WRITE_FAILED, str(error))
        return Ended(EndError.NONE, "")

    def watch(self, now_ns: int, unpublished: Collection[str]) -> str:
        """End the episode if it cannot go on; what happened, empty if nothing did."""
        if self._recording is None:
            return ""
        reason = self._recording.failure or self._disk_problem(self.free_bytes())
        return self.close(reason, now_ns, unpublished) if reason else ""

    def close(self, reason: str, now_ns: int, unpublished: Collection[str]) -> str:
        """End an open episode without an operator, outcome unknown; what happened."""
        if self._recording is None:
            return ""
        ended = self._finish(reason, now_ns, unpublished)
        self.problem = f"{self.folder} was ended, outcome unknown: {ended.error_msg or reason}"
        return self.problem

    def _open(self, instruction: str, notes: str, now_ns: int) -> None:
        episode = next_episode(self._directory)
        folder = episode_folder(self._directory, episode)
        outcome = Outcome.UNKNOWN.text
        label = Label(
            episode, instruction, outcome, 0, notes, now_ns, 0, "", None, self._provenance
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
        self.folder, self.label, self.problem = folder, label, ""
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
        error_code = EndError.WRITE_FAILED if failure else EndError.NONE
        return Ended(error_code, failure, report)

    def _disk_problem(self, free_bytes: int) -> str:
        if free_bytes >= self._min_free_bytes:
            return ""
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
