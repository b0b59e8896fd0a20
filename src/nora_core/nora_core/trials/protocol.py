"""Which trials to run: one strict YAML file, see `config/trials/`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file
from nora_core.sim.simulator import Simulator
from nora_core.sim.task import parse
from nora_core.strict_yaml import build, load_yaml
from nora_core.trials.record import Condition, Head, Job, Videos

DELAY_UNIT_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatePolicy:
    """A checkpoint under test; `folder` is relative to the protocol's file.

    Conditions other than `normal` are controls: the policy gets black images, or another
    instruction than the one that is judged.
    """

    name: str
    folder: str
    head: Head
    conditions: tuple[Condition, ...] = ("normal",)

    def __post_init__(self) -> None:
        if not self.conditions or len(set(self.conditions)) != len(self.conditions):
            raise ValueError(f"conditions: expected distinct ones, got {list(self.conditions)}")


@dataclass(frozen=True, slots=True)
class Seeds:
    """Seeds of the scenes and of the sampling noise: `start`, `start` + 1, ..."""

    start: int
    count: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.count < 1:
            raise ValueError(f"expected start >= 0 and count >= 1, got {self.start}, {self.count}")


@dataclass(frozen=True, slots=True)
class Scene:
    """Names of the objects and receptacles of a scene."""

    objects: tuple[str, ...]
    receptacles: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The trials of a study.

    Attributes:
        embodiment: name or path of its file.
        checkpoints: the policies under test.
        tasks: instructions; {object} and {receptacle} stand for each one of the scene.
        seeds: of the scenes.
        seconds: time limit of a trial.
        draw: whether each seed gets one of the tasks or all.
        image_size: side of the rendered images, px (without ROS).
        delay_s: age of an image at the start of the step (without ROS).
        real_time_factor: simulated seconds per second (with ROS). On a slow computer, a slower
            simulation keeps the images as fresh as they were in training.
        video: which trials leave a video.
        judge: who judges the trials (with ROS).
        bags: whether each trial is recorded (with ROS).
    """

    embodiment: str
    checkpoints: tuple[CandidatePolicy, ...]
    tasks: tuple[str, ...]
    seeds: Seeds
    seconds: float
    draw: Literal["one", "all"] = "one"
    image_size: int = 256
    delay_s: float = 0.1
    real_time_factor: float = 1.0
    video: Videos = "failures"
    judge: Literal["simulator", "operator"] = "simulator"
    bags: bool = False

    def __post_init__(self) -> None:
        names = [candidate.name for candidate in self.checkpoints]
        if not names or len(set(names)) != len(names) or not all(names):
            raise ValueError(f"checkpoints: expected distinct names, got {names}")
        if not self.tasks or not all(task.strip() for task in self.tasks):
            raise ValueError(f"tasks: expected instructions, got {list(self.tasks)}")
        if self.seconds <= 0:
            raise ValueError(f"seconds: expected more than 0, got {self.seconds}")
        if self.image_size < 1:
            raise ValueError(f"image_size: expected at least 1, got {self.image_size}")
        if not (math.isfinite(self.real_time_factor) and self.real_time_factor > 0):
            raise ValueError(
                f"real_time_factor: expected more than 0, got {self.real_time_factor}"
            )
        units = self.delay_s / DELAY_UNIT_S
        if self.delay_s < 0 or abs(units - round(units)) > 1e-6:
            raise ValueError(
                f"delay_s: expected a multiple of {DELAY_UNIT_S} s, got {self.delay_s}"
            )

    @classmethod
    def load(cls, path: Path, folders: dict[str, Path] | None = None) -> Protocol:
        """Read `path` and make the folders absolute; `folders`, by name, replace the file's.

        Raises:
            ValueError, FileNotFoundError: names the file, the key, what was expected and found.
        """
        if not path.is_file():
            available = sorted(p.stem for p in path.parent.glob("*.yaml"))
            raise FileNotFoundError(f"{path}: no such protocol, available: {available}")
        try:
            read = build(cls, load_yaml(path.read_text(encoding="utf-8")))
            _require_short_delay(read)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        given = folders or {}
        names = [candidate.name for candidate in read.checkpoints]
        if unknown := sorted(set(given) - set(names)):
            raise ValueError(f"folders: expected checkpoints of {path}, {names}, got {unknown}")
        candidates = tuple(
            dataclasses.replace(c, folder=str((given.get(c.name) or _beside(path, c)).resolve()))
            for c in read.checkpoints
        )
        return dataclasses.replace(read, checkpoints=candidates)


def scene_of(embodiment: str) -> Scene | None:
    """Contents of the simulated scene of an embodiment (name or file); None: a real robot."""
    loaded = Embodiment.load(embodiment_file(embodiment))
    if not loaded.is_simulated:
        return None
    simulator = Simulator(loaded)
    return Scene(simulator.objects, simulator.receptacles)


def _require_short_delay(protocol: Protocol) -> None:
    """Refuse a delay that is longer than the time between two images."""
    embodiment = Embodiment.load(embodiment_file(protocol.embodiment))
    action = embodiment.action
    num_steps = action.execute_steps if action.execution == "n_step" else 1
    limit_s = num_steps * action.step_period_s
    if embodiment.is_simulated and protocol.delay_s > limit_s + 1e-6:
        raise ValueError(
            f"delay_s: expected at most {limit_s:g} s, the time between two images of "
            f"{protocol.embodiment}, got {protocol.delay_s}"
        )


def _beside(path: Path, candidate: CandidatePolicy) -> Path:
    return path.resolve().parent / candidate.folder


def jobs(protocol: Protocol, scene: Scene | None) -> tuple[Job, ...]:
    """All trials, seed by seed; `scene` is None at a real robot.

    Raises:
        ValueError: a task is not about the scene, or two trials have the same key.
    """
    tasks = instructions(protocol.tasks, scene)
    first = protocol.seeds.start
    found = []
    for seed in range(first, first + protocol.seeds.count):
        rng = np.random.default_rng(seed)
        drawn = tasks if protocol.draw == "all" else (str(rng.choice(tasks)),)
        for instruction in drawn:
            other = str(rng.choice(_others(instruction, tasks, scene)))
            for c in protocol.checkpoints:
                for condition in c.conditions:
                    found.append(
                        Job(
                            checkpoint=c.name,
                            folder=c.folder,
                            head=c.head,
                            condition=condition,
                            seed=seed,
                            instruction=instruction,
                            policy_instruction=(
                                other if condition == "shuffled_instruction" else instruction
                            ),
                        )
                    )
    _require_distinct_keys(found)
    return tuple(found)


def _require_distinct_keys(found: list[Job]) -> None:
    first: dict[str, Job] = {}
    for job in found:
        if (other := first.setdefault(job.key, job)) is not job:
            both = [f"{j.checkpoint!r}, {j.condition}: {j.instruction!r}" for j in (other, job)]
            raise ValueError(
                "checkpoints, tasks: expected names and sentences that differ in letters or "
                f"digits, got {both[0]} and {both[1]}"
            )


def instructions(templates: tuple[str, ...], scene: Scene | None) -> tuple[str, ...]:
    """Each template with each object and receptacle, without repetitions.

    Raises:
        ValueError: there is no scene to take names from, or it does not know the sentence.
    """
    if scene is None:
        if unfilled := [template for template in templates if "{" in template]:
            raise ValueError(f"tasks: expected full sentences on a real robot, got {unfilled}")
        return templates
    sentences = (
        template.replace("{object}", name).replace("{receptacle}", place)
        for template in templates
        for name, place in itertools.product(scene.objects, scene.receptacles)
    )
    unique = tuple(dict.fromkeys(sentences))
    for sentence in unique:
        parse(sentence, scene.objects, scene.receptacles)
    return unique


def _others(instruction: str, tasks: tuple[str, ...], scene: Scene | None) -> list[str]:
    """Tasks about another object, if there are any, so that following one of them is obvious."""
    others = [task for task in tasks if task != instruction] or [instruction]
    if scene is None:
        return others
    names = (scene.objects, scene.receptacles)
    named = parse(instruction, *names).object
    return [task for task in others if parse(task, *names).object != named] or others
