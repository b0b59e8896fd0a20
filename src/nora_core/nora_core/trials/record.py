"""Records of trials: the job given to a worker, its result, and their lines in the log."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from nora_core.strict_yaml import build
from nora_core.types import Outcome

Condition = Literal["normal", "blank_image", "shuffled_instruction"]
Head = Literal["flow", "fast"]
Videos = Literal["all", "failures", "none"]
RENAMED = {"told": "policy_instruction"}  # keys of jobs in older logs


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Settings shared by all trials of a run.

    Attributes:
        embodiment: path of its file.
        image_size: side of the rendered images, px.
        delay_s: age of an image when the step that follows from it begins.
        seconds: time limit of a trial.
        video: which trials leave a video.
        video_dir: folder of the videos.
    """

    embodiment: str
    image_size: int
    delay_s: float
    seconds: float
    video: Videos
    video_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial: the judge follows `instruction`, the policy gets `policy_instruction`."""

    checkpoint: str
    folder: str
    head: Head
    condition: Condition
    seed: int
    instruction: str
    policy_instruction: str

    @property
    def key(self) -> str:
        """Unique among the trials of a protocol; also a file name."""
        words = f"{self.checkpoint} {self.condition} {self.seed} {self.instruction}"
        return re.sub(r"[^\w-]+", "_", words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a trial.

    Attributes:
        outcome: success, partial or failure.
        reached: whether the tool touched the named object or came close; None: not known.
        distractor_grasps: grasps of another object.
        chunks: number of chunks that the policy sent.
        duration_s: from the start to the end.
        grasp_s: from the start to the first grasp of the named object.
        object_m: horizontal distance of the named object to its target at the end.
        tool_m: horizontal distance of the named object to the tool at the end.
        error: why the trial was cut short, if it was; the outcome is that of this moment.
    """

    outcome: Outcome
    reached: bool | None
    distractor_grasps: int
    chunks: int
    duration_s: float
    grasp_s: float | None = None
    object_m: float | None = None
    tool_m: float | None = None
    error: str = ""

    def __post_init__(self) -> None:
        if self.outcome is Outcome.UNKNOWN:
            raise ValueError("outcome: expected success, partial or failure, got unknown")


@dataclass(frozen=True, slots=True)
class Record:
    """A finished trial."""

    job: Job
    result: Result


def to_dict(value: Setup | Job | Result | Record) -> dict[str, Any]:
    """The fields as JSON and CSV have them, enumerations by name."""
    return dataclasses.asdict(value, dict_factory=_as_text)


def to_line(value: Setup | Job | Result | Record) -> str:
    """Return one line of JSON, with its newline."""
    return json.dumps(to_dict(value)) + "\n"


def result_of(line: str) -> Result:
    """Parse a result; raise `ValueError`, like `record_of`, if the line is invalid."""
    return build(Result, _with_outcome(json.loads(line)))


def record_of(line: str) -> Record:
    data = json.loads(line)
    found = {"job": _with_new_names(data["job"]), "result": _with_outcome(data["result"])}
    return build(Record, {**data, **found})


def _as_text(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: v.name.lower() if isinstance(v, Enum) else v for name, v in items}


def _with_outcome(result: dict[str, Any]) -> dict[str, Any]:
    words = {outcome.text: outcome for outcome in Outcome}
    if result.get("outcome") not in words:
        raise ValueError(f"outcome: expected one of {list(words)}, got {result.get('outcome')!r}")
    return {**result, "outcome": words[result["outcome"]]}


def _with_new_names(job: dict[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(name, name): value for name, value in job.items()}
