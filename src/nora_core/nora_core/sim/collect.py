"""The `nora-demos` command: demonstrations in simulation, one bag each, on all cores, no ROS."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
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
from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file
from nora_core.processes import dies_with_parent
from nora_core.sim.cell import Cell
from nora_core.sim.cell_bag import CellBag, open_label
from nora_core.sim.demonstration import Course, Demonstration
from nora_core.sim.expert import Tasks, draw_task
from nora_core.sim.task import parse
from nora_core.strict_yaml import build

DEMO, SETTINGS = "demo.json", "demos.json"
HALF = ".half"  # folders of episodes that are not finished
SCENE, COURSE, TASK = 0, 1, 2  # streams of random numbers of an episode
# Each process draws and computes with one thread: there is one process per core.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1"}
BAD_INPUT, INTERRUPTED = 2, 130


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the content of the bags, besides the code."""

    seed: int
    tasks: Tasks
    tasks_per_scene: int
    image_size: int
    noise: bool
    embodiment_sha256: str


@dataclass(frozen=True, slots=True)
class Demo:
    """What became of one episode; `demo.json` in its folder."""

    object: str
    relation: str
    target: str
    outcome: str
    distractor_grasps: int
    num_steps: int
    num_nudges: int
    image_age_s: float


@dataclass(frozen=True, slots=True)
class Demos:
    """Record demonstrations of a scripted expert; what is there already is kept.

    Attributes:
        episodes: bags there shall be.
        out: folder of the bags.
        seed: of the first episode; the next ones count on.
        workers: processes.
        tasks: put: on the plate or in the bowl; all: also near something.
        tasks_per_scene: episodes in a row that share a scene, each about another object as far as
            there are some: without that, what a scene looks like tells which object is meant, and
            a policy may learn the scenes instead of the instructions.
        image_size: side of the images, px.
        noise: nudge the arm off its way in some episodes.
        embodiment: name of a simulated robot in `config/embodiments`, or a path to its file.
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
        """Set `out` up, clear away what was cut off; the episodes that are still to be made.

        Raises:
            ValueError: `out` holds demonstrations made with other settings.
            FileNotFoundError: there is no such embodiment.
        """
        file = self.out / SETTINGS
        settings = self._settings()
        self.out.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            there = build(Settings, json.loads(file.read_text(encoding="utf-8")))
            if there != settings:
                raise ValueError(f"{self.out}: expected {settings}, got {there}")
        else:
            text = json.dumps(dataclasses.asdict(settings), indent=1) + "\n"
            file.write_text(text, encoding="utf-8")
        if (half := self.out / HALF).exists():
            shutil.rmtree(half)
        return [i for i in range(self.episodes) if not episode_folder(self.out, i).exists()]

    def run(self, episodes: list[int]) -> Iterator[Demo]:
        """Make these episodes, in any order."""
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
        """Of every episode that is there."""
        folders = (episode_folder(self.out, i) for i in range(self.episodes))
        texts = [(folder / DEMO).read_text(encoding="utf-8") for folder in folders]
        return [build(Demo, json.loads(text)) for text in texts]

    def _settings(self) -> Settings:
        origin = provenance(embodiment_file(self.embodiment), "", "")
        return Settings(
            self.seed,
            self.tasks,
            self.tasks_per_scene,
            self.image_size,
            self.noise,
            origin.embodiment_sha256,
        )


def make(demos: Demos, origin: Provenance, episode: int) -> Demo:
    """One episode, in a hidden place first; it gets its folder when it is complete."""
    folder = episode_folder(demos.out, episode)
    half = demos.out / HALF / folder.name
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
    bag = CellBag(half, cell, embodiment, definitions, open_label(episode, instruction, origin))
    demonstration = Demonstration(cell, embodiment, course, bag)
    demonstration.run()
    label = bag.close(f"scripted expert in simulation, scene seed {scene}")
    demo = _summary(label, cell, demonstration, course)
    text = json.dumps(dataclasses.asdict(demo), indent=1) + "\n"
    (half / DEMO).write_text(text, encoding="utf-8")
    half.rename(folder)
    return demo


def _begin(die: Callable[[], None]) -> None:
    """A process that ends with its parent; a Ctrl-C reaches it only through that."""
    die()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@cache
def _workplace(path: Path, image_size: int) -> tuple[Embodiment, Cell, Definitions]:
    """What a process makes once."""
    embodiment = Embodiment.load(path)
    cell = Cell(embodiment, (image_size, image_size))
    return embodiment, cell, Definitions(message_folders())


def _summary(label: Label, cell: Cell, demonstration: Demonstration, course: Course) -> Demo:
    simulator = cell.simulator
    task = parse(label.instruction, simulator.objects, simulator.receptacles)
    return Demo(
        task.object,
        task.relation,
        task.target or "",
        label.outcome,
        label.distractor_grasps,
        len(demonstration.actions),
        demonstration.num_nudges,
        course.age_s,
    )


def table(demos: list[Demo]) -> str:
    """Success by task and object."""
    groups: dict[tuple[str, ...], list[Demo]] = defaultdict(list)
    for demo in demos:
        place = demo.target if demo.relation == "on" else "something"
        groups[demo.relation, place, demo.object].append(demo)
    lines = [
        "| task | episodes | success | distractor grasps | steps | nudges |",
        "|" + "---|" * 6,
    ]
    rows = [(f"{o} {r} {p}", groups[r, p, o]) for r, p, o in sorted(groups)]
    for name, group in [*rows, ("all", demos)]:
        share = sum(demo.outcome == "success" for demo in group) / len(group)
        grasps = sum(demo.distractor_grasps for demo in group)
        steps = np.mean([demo.num_steps for demo in group])
        nudges = np.mean([demo.num_nudges for demo in group])
        lines.append(
            f"| {name} | {len(group)} | {share:.1%} | {grasps} | {steps:.1f} | {nudges:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Exit code 0: all is there; 2: bad input; 130: interrupted."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        demos = tyro.cli(Demos, description=__doc__)
        episodes = demos.prepare()
        start_s = time.monotonic()
        if episodes:
            made = demos.run(episodes)
            list(tqdm(made, total=len(episodes), unit="episode", disable=None))
        took_s = time.monotonic() - start_s
        print(table(demos.load()))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    rate = f", {len(episodes) / took_s:.2f} episodes/s" if episodes else ""
    kept = demos.episodes - len(episodes)
    print(f"{demos.out}: {len(episodes)} new, {kept} there already{rate}")


if __name__ == "__main__":
    main()
