"""One trial as it is asked for and as it ended: what goes to a worker, and into the log."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Literal

from nora_core.strict_yaml import build

Condition = Literal["normal", "blank_image", "shuffled_instruction"]
Head = Literal["flow", "fast"]
Outcome = Literal["success", "partial", "failure"]
Videos = Literal["all", "failures", "none"]


@dataclass(frozen=True, slots=True)
class Setup:
    """What all trials of a run have in common.

    `embodiment`: its file. `image_size`: of the rendered images, px. `delay_s`: age of the images
    when the step begins that follows from them. `seconds`: limit of a trial. `video_dir`: where
    the videos that `video` asks for are written.
    """

    embodiment: str
    image_size: int
    delay_s: float
    seconds: float
    video: Videos
    video_dir: str


@dataclass(frozen=True, slots=True)
class Job:
    """One trial: `instruction` is judged, `told` is what the policy hears."""

    checkpoint: str
    folder: str
    head: Head
    condition: Condition
    seed: int
    instruction: str
    told: str

    @property
    def key(self) -> str:
        """Unlike that of any other trial of the protocol; also a file name."""
        words = f"{self.checkpoint} {self.condition} {self.seed} {self.instruction}"
        return re.sub(r"[^\w-]+", "_", words)


@dataclass(frozen=True, slots=True)
class Result:
    """How a trial ended.

    `reached`: the named object was touched, or nearly so; None where nobody can tell.
    `grasp_s`: from the start to the first grasp of the named object. `object_m` and `tool_m`:
    horizontal distance at the end of the named object to its target, and to the tool.
    `error`: why it was cut short, if it was; it then counts as it stood.
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


@dataclass(frozen=True, slots=True)
class Record:
    """A finished trial."""

    job: Job
    result: Result


def to_line(value: Setup | Job | Result | Record) -> str:
    """One line of JSON, with its end."""
    return json.dumps(dataclasses.asdict(value)) + "\n"


def setup_of(line: str) -> Setup:
    return build(Setup, json.loads(line))


def job_of(line: str) -> Job:
    return build(Job, json.loads(line))


def result_of(line: str) -> Result:
    return build(Result, json.loads(line))


def record_of(line: str) -> Record:
    return build(Record, json.loads(line))
