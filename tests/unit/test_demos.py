"""Demonstrations: the expert does its tasks, and bags hold exactly what it meant to do."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nora_core.bags.audit import expectations
from nora_core.bags.check import check
from nora_core.bags.label import Label, Provenance
from nora_core.embodiment import Embodiment
from nora_core.sim.cell import Cell
from nora_core.sim.collect import UNFINISHED, Demo, Demos, main, make, sole_user, table
from nora_core.sim.demonstration import UNLABELLED, Course, Demonstration
from nora_core.sim.expert import OPEN, STEP_M, Expert, Scene, draw_task
from nora_core.sim.task import Task, parse
from nora_core.types import Outcome
from nora_training.data.alignment import moving
from nora_training.data.bag_reader import Bag
from nora_training.data.episodes import observations, read_episode

CONFIG = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
EMBODIMENT = Embodiment.load(CONFIG)
SHIPPED = CONFIG.parents[2] / "checkpoints/sim_widowx/config.json"
HORIZON = json.loads(SHIPPED.read_text())["horizon"]
ORIGIN = Provenance(
    embodiment="sim_widowx", embodiment_sha256="0" * 64, checkpoint="", git_revision="test"
)
BOX = EMBODIMENT.workspace
SIZE = 48


@pytest.fixture(scope="module")
def cell():
    made = Cell(EMBODIMENT, (SIZE, SIZE))
    yield made
    made.close()


def demonstrate(cell, seed, tasks, noise):
    """An unrecorded demonstration: nothing is rendered."""
    rng = np.random.default_rng(seed)
    instruction = draw_task(rng, cell.simulator, tasks)
    course = Course.draw(rng, cell, EMBODIMENT, noise)
    cell.reset(seed, instruction, course.start_rad)
    demonstration = Demonstration(cell, EMBODIMENT, course, None)
    demonstration.run()
    return demonstration


# the expert


@pytest.mark.parametrize(("tasks", "noise"), [("put", False), ("all", True)])
def test_the_expert_does_its_tasks(cell, tasks, noise):
    states = []
    for seed in range(500, 504):
        demonstrate(cell, seed, tasks, noise)
        states.append(cell.task_state)
    assert all(state.success for state in states)
    assert sum(state.distractor for state in states) == 0


def test_letting_go_begins_a_whole_chunk(cell):
    """Only whole chunks have tokens: a shorter end would hide the release from that head."""
    for seed in range(500, 503):
        actions_NA = np.array(demonstrate(cell, seed, "put", noise=False).actions)
        last_closed = np.flatnonzero(actions_NA[:, 6] < 0.5)[-1]
        after_NA = actions_NA[last_closed + 1 :]
        after_NA = after_NA[moving(after_NA) | (np.arange(len(after_NA)) == 0)]
        assert len(after_NA) >= HORIZON


def test_the_expert_fetches_again_what_was_taken_from_it(cell):
    """The bridge opens the hand half way; the expert, which has no memory, starts over."""
    cell.reset(7, "put the red cube on the plate", None)
    course = Course.draw(np.random.default_rng(0), cell, EMBODIMENT, noise=False)
    demonstration = Demonstration(cell, EMBODIMENT, course, None)
    step, num_lost = demonstration._expert.step, 0

    class Fumbler:
        is_done = demonstration._expert.is_done

        def step(self, scene):
            nonlocal num_lost
            action_A = step(scene)
            if not num_lost and scene.positions_m["red cube"][2] > 0.06:
                num_lost, action_A[-1] = 1, OPEN
            return action_A

    demonstration._expert = Fumbler()
    demonstration.run()
    assert num_lost == 1
    assert cell.task_state.success


coordinates = st.tuples(st.floats(0.1, 0.42), st.floats(-0.22, 0.22), st.floats(0.02, 0.25))


@given(tool=coordinates, cube=coordinates, opening=st.floats(0.0, 1.0), relation=st.booleans())
def test_every_step_is_short_and_stays_inside(tool, cube, opening, relation):
    task = Task("red cube", "on" if relation else "near", "plate")
    positions_m = {"red cube": np.array(cube), "ball": np.array([0.3, 0.1, 0.02])}
    positions_m["plate"] = np.array([0.3, -0.1, 0.0])
    radii_m = dict.fromkeys(positions_m, 0.03)
    scene = Scene(
        commanded_m=np.array(tool),
        measured_m=np.array(tool),
        opening=opening,
        positions_m=positions_m,
        radii_m=radii_m,
    )
    action_A = Expert(task, BOX).step(scene)
    assert np.linalg.norm(action_A[:3]) <= STEP_M + 1e-9
    assert not action_A[3:6].any()
    assert action_A[6] in (0.0, 1.0)
    end_m = np.array(tool) + action_A[:3]
    assert np.all(end_m >= np.array(BOX.min_m) - 1e-9)
    assert np.all(end_m <= np.array(BOX.max_m) + 1e-9)


def test_a_task_without_a_target_is_refused():
    with pytest.raises(ValueError, match="task: expected a target"):
        Expert(Task("red cube", "lifted", None), BOX)


@given(seed=st.integers(0, 2**32), tasks=st.sampled_from(["put", "all"]))
def test_every_instruction_can_be_judged(cell, seed, tasks):
    simulator = cell.simulator
    text = draw_task(np.random.default_rng(seed), simulator, tasks)
    task = parse(text, simulator.objects, simulator.receptacles)
    assert task.relation == "on" or tasks == "all"


# the bags


def demos(out, **options):
    return Demos(**{"episodes": 2, "out": out, "image_size": SIZE, "workers": 1, **options})


@pytest.fixture(scope="module")
def nudged(tmp_path_factory):
    """A bag whose episode was nudged, and its folder."""
    wanted = demos(tmp_path_factory.mktemp("demos"))
    wanted.prepare()
    for episode in range(9):
        if make(wanted, ORIGIN, episode).num_nudges > 3:
            return wanted, wanted.out / f"episode_{episode:06d}"
    raise AssertionError("no nudges in nine episodes")


def test_every_sample_is_what_the_expert_meant(nudged):
    wanted, folder = nudged
    again = Cell(EMBODIMENT, (SIZE, SIZE))
    label = Label.load(folder)
    seed = wanted.seed + label.episode
    course = Course.draw(np.random.default_rng((seed, 1)), again, EMBODIMENT, noise=True)
    again.reset(seed, label.instruction, course.start_rad)
    meant = Demonstration(again, EMBODIMENT, course, None)
    meant.run()
    again.close()
    with Bag.open(folder) as bag:
        episode = read_episode(bag, EMBODIMENT)
        seen = list(observations(bag, episode, EMBODIMENT))
        read = bag.read({UNLABELLED: "nora_msgs/msg/EndEffectorDelta"})
    assert episode.outcome is Outcome.SUCCESS
    assert episode.source == "command"
    assert meant.num_nudges > 3
    assert len(read[UNLABELLED]) == meant.num_nudges + EMBODIMENT.safety.first_motion_steps
    actions_NA = np.array(meant.actions)
    assert episode.actions_NA == pytest.approx(actions_NA, abs=1e-9)
    ages_s = (episode.stamps_N - [observation.stamp_ns for observation in seen]) * 1e-9
    assert ages_s == pytest.approx(course.age_s)


def test_a_bag_is_green_and_labelled(nudged):
    _, folder = nudged
    resolve = "/nora/{}".format
    report = check(folder, expectations(EMBODIMENT, resolve))
    assert report.is_green, report.reasons
    label = Label.load(folder)
    assert (label.outcome, label.is_green, label.ended) == ("success", True, "operator")


def digests(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).digest() for p in paths}


def test_the_same_seed_gives_the_same_bytes_in_any_order(tmp_path):
    for name, order in (("a", (0, 1)), ("b", (1,))):
        for episode in order:
            make(demos(tmp_path / name, seed=40), ORIGIN, episode)
    first, second = (digests(tmp_path / name / "episode_000001") for name in "ab")
    assert first == second
    assert len(first) == 5  # bag, metadata, label, audit, demo


def test_what_is_there_is_kept_and_what_was_cut_off_made_again(tmp_path):
    wanted = demos(tmp_path, episodes=3)
    assert wanted.prepare() == [0, 1, 2]
    make(wanted, ORIGIN, 1)
    before = digests(tmp_path / "episode_000001")
    unfinished = tmp_path / UNFINISHED / "episode_000000"
    unfinished.mkdir(parents=True)
    (unfinished / "episode_000000.mcap").write_bytes(b"\x89MCAP")
    assert wanted.prepare() == [0, 2]
    assert not unfinished.exists()
    assert digests(tmp_path / "episode_000001") == before
    with pytest.raises(ValueError, match="its demonstrations have Settings"):
        demos(tmp_path, episodes=3, seed=1).prepare()


def test_the_command_goes_on_after_it_was_killed(tmp_path):
    command = [sys.executable, "-m", "nora_core.sim.collect", "--episodes", "3", "--workers", "1"]
    command += ["--image-size", "32", "--out", str(tmp_path)]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE)
    wait_until(lambda: any(tmp_path.glob("episode_*")))
    killed.kill()
    killed.communicate()  # returns when the workers have let go of it, too
    num_kept = len(list(tmp_path.glob("episode_*")))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{3 - num_kept} new, {num_kept} there already" in done.stdout
    assert not (tmp_path / UNFINISHED).exists() or not any((tmp_path / UNFINISHED).iterdir())
    outcomes = [json.loads(p.read_text())["outcome"] for p in tmp_path.glob("*/demo.json")]
    assert f"| all | 3 | {outcomes.count('success') / 3:.1%} |" in done.stdout


def wait_until(is_true, timeout_s=200.0):
    end_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_only_one_command_works_in_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nora-collect", "--episodes", "2", "--out", str(tmp_path)])
    with sole_user(tmp_path), pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert (
        error == f"error: {tmp_path}: another nora-collect is at work in this folder; wait for "
        "it, or take another --out\n"
    )
    with sole_user(tmp_path):  # the lock is free again
        pass


def test_the_table_is_in_plain_words():
    facts = {"outcome": "success", "distractor_grasps": 0, "num_steps": 9, "num_nudges": 0}
    made = [
        Demo(object="red cube", relation=relation, target=target, image_age_s=0.1, **facts)
        for relation, target in (("on", "bowl"), ("on", "plate"), ("near", "bowl"))
    ]
    tasks = [line.split(" | ")[0] for line in table(made).splitlines()[2:-1]]
    assert tasks == [
        "| red cube near another object",
        "| red cube in the bowl",
        "| red cube on the plate",
    ]


def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys):
    demos(tmp_path, image_size=SIZE).prepare()
    monkeypatch.setattr(sys, "argv", ["nora-collect", "--episodes", "2", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.startswith("error: ")


def test_an_option_that_makes_no_sense_is_named(tmp_path):
    for name, value in (("episodes", 0), ("workers", 0), ("image_size", 0), ("seed", -1)):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            demos(tmp_path, **{name: value})
