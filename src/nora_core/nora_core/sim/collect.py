"""The `nora-collect` command: demonstrations in simulation, one bag each, without ROS."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from nora_core.bags.definitions import Definitions, message_folders
from nora_core.bags.label import Label, Provenance, episode_folder
from nora_core.bags.provenance import provenance
from nora_core.command import run_command
from nora_core.embodiment import Embodiment
from nora_core.files import write_json
from nora_core.paths import embodiment_file
from nora_core.processes import dies_with_parent
from nora_core.sim.cell import Cell
from nora_core.sim.cell_bag import CellBag, open_label
from nora_core.sim.demonstration import Course, Demonstration
from nora_core.sim.expert import Tasks, draw_task
from nora_core.sim.task import parse
from nora_core.strict_yaml import build

DESCRIPTION = "Record demonstrations of a scripted expert; finished episodes are kept."
DEMO, SETTINGS, LOCK = "demo.json", "demos.json", ".lock"
UNFINISHED = ".unfinished"  # folder of the episodes that are being made
SCENE, COURSE, TASK = 0, 1, 2  # random number streams of an episode
# Each process renders and computes with one thread: there is one process per core.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything besides the code that determines the content of the bags."""

    seed: int
    tasks: Tasks
    tasks_per_scene: int
    image_size: int
    noise: bool
    embodiment_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """Summary of one episode; `demo.json` in its folder."""

    object: str
    relation: str
    target: str
    outcome: str
    distractor_grasps: int
    num_steps: int
    num_nudges: int
    image_age_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Demos:
    """Record demonstrations of a scripted expert; finished episodes are kept.

    Attributes:
        episodes: total number of bags.
        out: folder of the bags.
        seed: of the first episode, then counted up.
        workers: number of processes.
        tasks: put: on the plate or in the bowl; all: also near another object.
        tasks_per_scene: number of consecutive episodes that share a scene, each about another
            object. With one task per scene, the scene alone determines the object, and a policy
            may ignore the instruction.
        image_size: side of the images, px.
        noise: perturb the arm in some episodes.
        embodiment: name of a file in config/embodiments, or a path ending in .yaml; its robot is
            simulated.
    """

    episodes: int
    out: Path
    seed: int = 0
    workers: int = os.cpu_count() or 1
    tasks: Tasks = "put"
    tasks_per_scene: int = 1
    image_size: int = 224
    noise: bool = True
    embodiment: str = "sim_widowx"

    def __post_init__(self) -> None:
        for name in ("episodes", "workers", "tasks_per_scene", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")

    def prepare(self) -> list[int]:
        """Write the settings and remove unfinished episodes; the episodes that are missing.

        Raises:
            ValueError: `out` has demonstrations with other settings.
            FileNotFoundError: there is no such embodiment.
        """
        file = self.out / SETTINGS
        settings = self._settings()
        self.out.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            there = build(Settings, json.loads(file.read_text(encoding="utf-8")))
            if there != settings:
                raise ValueError(f"{self.out}: its demonstrations have {there}, not {settings}")
        else:
            write_json(file, dataclasses.asdict(settings))
        if (unfinished := self.out / UNFINISHED).exists():
            shutil.rmtree(unfinished)
        return [i for i in range(self.episodes) if not episode_folder(self.out, i).exists()]

    def run(self, episodes: list[int]) -> Iterator[Demo]:
        """Make these episodes; summaries in the order in which they end."""
        path = embodiment_file(self.embodiment)
        origin = provenance(path, Embodiment.load(path).name, "")
        work = partial(make, self, origin)
        os.environ.update(ONE_THREAD)
        context = get_context("spawn")  # OpenGL does not survive a fork
        num_workers = min(self.workers, len(episodes))
        with ProcessPoolExecutor(num_workers, context, _begin, (dies_with_parent(),)) as pool:
            waiting = [pool.submit(work, episode) for episode in episodes]
            try:
                for future in as_completed(waiting):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def load(self) -> list[Demo]:
        """Summaries of all episodes."""
        folders = (episode_folder(self.out, i) for i in range(self.episodes))
        texts = [(folder / DEMO).read_text(encoding="utf-8") for folder in folders]
        return [build(Demo, json.loads(text)) for text in texts]

    def _settings(self) -> Settings:
        origin = provenance(embodiment_file(self.embodiment), "", "")
        return Settings(
            seed=self.seed,
            tasks=self.tasks,
            tasks_per_scene=self.tasks_per_scene,
            image_size=self.image_size,
            noise=self.noise,
            embodiment_sha256=origin.embodiment_sha256,
        )


def make(demos: Demos, origin: Provenance, episode: int) -> Demo:
    """Make one episode in a hidden folder, which is renamed when it is complete."""
    folder = episode_folder(demos.out, episode)
    unfinished = demos.out / UNFINISHED / folder.name
    path = embodiment_file(demos.embodiment)
    embodiment, cell, definitions = _workplace(path, demos.image_size)
    seed = demos.seed + episode
    number = seed % demos.tasks_per_scene
    scene = seed - number
    moved = np.random.default_rng((scene, SCENE)).permutation(cell.simulator.objects)
    instruction = draw_task(
        np.random.default_rng((seed, TASK)),
        cell.simulator,
        demos.tasks,
        str(moved[number % len(moved)]),
    )
    course = Course.draw(np.random.default_rng((seed, COURSE)), cell, embodiment, demos.noise)
    cell.reset(scene, instruction, course.start_rad)
    bag = CellBag(
        unfinished,
        cell,
        embodiment=embodiment,
        definitions=definitions,
        label=open_label(episode, instruction, origin),
    )
    demonstration = Demonstration(cell, embodiment, course, bag)
    demonstration.run()
    label = bag.close(f"scripted expert in simulation, scene seed {scene}")
    demo = _summary(label, cell, demonstration, course)
    write_json(unfinished / DEMO, dataclasses.asdict(demo))
    unfinished.rename(folder)
    return demo


def _begin(die: Callable[[], None]) -> None:
    """Start a worker: it ends with its parent, and ignores Ctrl-C itself."""
    die()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@cache
def _workplace(path: Path, image_size: int) -> tuple[Embodiment, Cell, Definitions]:
    """Everything that a worker makes once."""
    embodiment = Embodiment.load(path)
    cell = Cell(embodiment, (image_size, image_size))
    return embodiment, cell, Definitions(message_folders())


def _summary(label: Label, cell: Cell, demonstration: Demonstration, course: Course) -> Demo:
    simulator = cell.simulator
    task = parse(label.instruction, simulator.objects, simulator.receptacles)
    return Demo(
        object=task.object,
        relation=task.relation,
        target=task.target or "",
        outcome=label.outcome,
        distractor_grasps=label.distractor_grasps,
        num_steps=len(demonstration.actions),
        num_nudges=demonstration.num_nudges,
        image_age_s=course.age_s,
    )


def table(demos: list[Demo]) -> str:
    """Success by task and object."""
    groups: dict[tuple[str, ...], list[Demo]] = defaultdict(list)
    for demo in demos:
        place = demo.target if demo.relation == "on" else "another object"
        groups[demo.relation, place, demo.object].append(demo)
    lines = [
        "| task | episodes | success | distractor grasps | steps | nudges |",
        "|" + "---|" * 6,
    ]
    rows = [(_task_name(*group), groups[group]) for group in sorted(groups)]
    for name, group in [*rows, ("all", demos)]:
        share = sum(demo.outcome == "success" for demo in group) / len(group)
        grasps = sum(demo.distractor_grasps for demo in group)
        steps = np.mean([demo.num_steps for demo in group])
        nudges = np.mean([demo.num_nudges for demo in group])
        lines.append(
            f"| {name} | {len(group)} | {share:.1%} | {grasps} | {steps:.1f} | {nudges:.1f} |"
        )
    return "\n".join(lines)


def _task_name(relation: str, target: str, moved: str) -> str:
    preposition = "in" if target == "bowl" and relation == "on" else relation
    article = "" if target.startswith("another") else "the "
    return f"{moved} {preposition} {article}{target}"


def collect(demos: Demos) -> None:
    """Make the missing episodes and print the table of all.

    Raises:
        ValueError, OSError: the folder is in use, or has demonstrations with other settings.
    """
    with sole_user(demos.out):
        episodes = demos.prepare()
        start_s = time.monotonic()
        if episodes:
            made = demos.run(episodes)
            list(tqdm(made, total=len(episodes), unit="episode", disable=None))
        took_s = time.monotonic() - start_s
        print(table(demos.load()))
    rate = f", {len(episodes) / took_s:.2f} episodes/s" if episodes else ""
    kept = demos.episodes - len(episodes)
    print(f"{demos.out}: {len(episodes)} new, {kept} there already{rate}")


@contextlib.contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which the kernel releases when the process ends.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another nora-collect is at work in this folder; wait for it, or take "
                "another --out"
            ) from None
        yield


def main() -> None:
    """Entry point of `nora-collect`; exit codes as in `run_command`."""
    run_command(
        lambda: collect(tyro.cli(Demos, prog="nora-collect", description=DESCRIPTION)),
        "stopped; the same command goes on from here",
    )


if __name__ == "__main__":
    main()
