"""Trials without ROS: protocol, statistics, log, rollouts, and the command as a user runs it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file
from nora_core.sim.cell import Cell
from nora_core.sim.expert import Expert
from nora_core.sim.expert import Scene as ExpertScene
from nora_core.sim.simulator import Simulator
from nora_core.sim.task import parse
from nora_core.trials.log import Log, identity
from nora_core.trials.protocol import Protocol, Scene, instructions, jobs
from nora_core.trials.record import Job, Record, Result, Setup, record_of, result_of, to_line
from nora_core.trials.sheet import write_sheet
from nora_core.trials.statistics import mcnemar, share
from nora_core.types import ActionChunk, Observation, Outcome
from nora_policy.checkpoints import untrained
from nora_training.evaluation.command import Trials, run_trials
from nora_training.evaluation.rollout import observe, open_runner, roll_out

EMBODIMENT = embodiment_file("sim_widowx")
SCENE = Scene(("red cube", "green cylinder", "blue ball"), ("plate", "bowl"))
CUBE = "put the red cube on the plate"
PROTOCOL = """
embodiment: sim_widowx
checkpoints:
  - {name: a, folder: tiny, head: flow, conditions: [normal, shuffled_instruction]}
  - {name: b, folder: tiny, head: fast}
tasks: ["put the {object} on the plate", "put the {object} in the bowl"]
seeds: {start: 100000, count: 2}
seconds: 1.0
video: all
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with a protocol and the tiny checkpoint it names."""
    folder = tmp_path_factory.mktemp("study")
    untrained.write_tiny(folder / "tiny", EMBODIMENT)
    (folder / "study.yaml").write_text(PROTOCOL)
    return folder


def result(outcome=Outcome.FAILURE, reached=False, distractors=0, grasp_s=None):
    return Result(
        outcome=outcome,
        reached=reached,
        distractor_grasps=distractors,
        chunks=10,
        duration_s=8.0,
        grasp_s=grasp_s,
        object_m=0.2,
        tool_m=0.1,
    )


def job(checkpoint="a", seed=0, instruction=CUBE, condition="normal", policy_instruction=None):
    return Job(
        checkpoint=checkpoint,
        folder="folder",
        head="flow",
        condition=condition,
        seed=seed,
        instruction=instruction,
        policy_instruction=policy_instruction or instruction,
    )


# statistics


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_a_wilson_interval_holds_its_share_and_mirrors_with_it(outcomes):
    found = share(outcomes)
    opposite = share([not outcome for outcome in outcomes])
    assert 0.0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1.0
    assert found.low == pytest.approx(1.0 - opposite.high, abs=1e-12)


def test_wilson_intervals_as_in_the_literature():
    # Newcombe, Statistics in Medicine 17 (1998), table I: method 3.
    for count, total, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)]:
        found = share([True] * count + [False] * (total - count))
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert str(share([True] * 8 + [False] * 2)) == "80% [49%, 94%]"


@given(st.integers(1, 2000), st.data())
def test_only_all_and_none_are_printed_as_100_and_0_per_cent(total, data):
    count = data.draw(st.integers(0, total))
    printed = str(share([True] * count + [False] * (total - count)))
    assert printed.startswith("100% ") == (count == total)
    assert printed.endswith(" 100%]") == (count == total)
    assert printed.startswith("0% ") == (count == 0)
    assert ("[0%" in printed) == (count == 0)


def test_shares_have_decimals_only_where_they_need_them():
    for count, total, text in [
        (199, 200, "99.5% [97%, 99.9%]"),
        (1, 300, "0.3% [0.1%, 2%]"),
        (1, 100, "1% [0.2%, 5%]"),
        (1999, 2000, "99.95% [99.7%, 99.99%]"),
    ]:
        assert str(share([True] * count + [False] * (total - count))) == text


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_counts_every_pair_and_is_symmetric(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found, swapped = mcnemar(first, second), mcnemar(second, first)
    assert found.both + found.only_first + found.only_second + found.neither == len(pairs)
    assert found.p_value == pytest.approx(swapped.p_value)
    assert 0.0 < found.p_value <= 1.0
    decided = found.only_first + found.only_second
    if decided:  # twice the smaller tail, at most 1
        tail = binomtest(min(found.only_first, found.only_second), decided, alternative="less")
        assert found.p_value == pytest.approx(min(1.0, 2 * tail.pvalue))


def test_mcnemar_by_hand():
    # 10 scenes tell them apart, 9 to 1: 2 * (1 + 10) / 2^10.
    found = mcnemar([True] * 9 + [False], [False] * 9 + [True])
    assert found.p_value == pytest.approx(22 / 1024)
    with pytest.raises(ValueError, match="pairs"):
        mcnemar([True], [])


# protocol


@given(seed=st.integers(0, 10**6), count=st.integers(1, 8), draw=st.sampled_from(["one", "all"]))
def test_every_checkpoint_gets_the_same_scenes_and_tasks(seed, count, draw):
    text = PROTOCOL.replace("start: 100000, count: 2", f"start: {seed}, count: {count}")
    protocol = read(text + f"draw: {draw}")
    found = jobs(protocol, SCENE)
    assert found == jobs(protocol, SCENE)
    assert len({job.key for job in found}) == len(found)
    assert len(found) == count * (6 if draw == "all" else 1) * 3
    scenes = [
        [(job.seed, job.instruction) for job in found if (job.checkpoint, job.condition) == group]
        for group in [("a", "normal"), ("a", "shuffled_instruction"), ("b", "normal")]
    ]
    assert scenes[0] == scenes[1] == scenes[2]
    for job in found:
        if job.condition == "normal":
            assert job.policy_instruction == job.instruction
        else:  # another object than the one that is judged
            assert job.policy_instruction.split()[2:4] != job.instruction.split()[2:4]


def read(text: str) -> Protocol:
    from nora_core import strict_yaml

    return strict_yaml.build(Protocol, strict_yaml.load_yaml(text))


def test_shipped_protocols_are_about_the_scene():
    simulator = Simulator(Embodiment.load(EMBODIMENT))
    scene = Scene(simulator.objects, simulator.receptacles)
    paths = sorted(embodiment_file("x").parents[1].glob("trials/*.yaml"))
    assert {path.stem for path in paths} >= {"demo", "demo_policy"}
    for path in paths:
        protocol = Protocol.load(path)
        if protocol.embodiment == "sim_widowx":
            found = jobs(protocol, scene)
            assert min(job.seed for job in found) >= 100_000
            assert {job.instruction for job in found} == set(instructions(protocol.tasks, scene))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: b", "name: a", "checkpoints: expected distinct names"),
        ("count: 2", "count: 0", "seeds.expected start >= 0 and count >= 1"),
        ("seconds: 1.0", "seconds: 0", "seconds: expected more than 0"),
        ("head: fast", "head: slow", r"head: expected one of \['flow', 'fast'\]"),
        ("video: all", "video: all\ndelay_s: 0.05", "delay_s: expected a multiple"),
        ("video: all", "video: all\ndelay_s: 0.22", r"delay_s: expected at most 0\.2 s, .*0\.22"),
        ("video: all", "video: all\nreal_time_factor: 0.0", "real_time_factor: expected more"),
        ("video: all", "film: all", "film: unknown key"),
        ("normal, shuffled_instruction", "normal, normal", "conditions: expected distinct"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused(tmp_path, old, new, message):
    path = tmp_path / "bad.yaml"
    path.write_text(PROTOCOL.replace(old, new))
    with pytest.raises(ValueError, match=message):
        Protocol.load(path)


def test_the_limit_of_the_delay_is_that_of_the_simulated_robot(tmp_path):
    path, slower = tmp_path / "study.yaml", tmp_path / "slower.yaml"
    text = EMBODIMENT.read_text().replace("execution: first_only", "execution: n_step")
    slower.write_text(text.replace("execute_steps: 1", "execute_steps: 2"))
    for robot, delay_s in [("sim_widowx", 0.2), (str(slower), 0.4), ("widowx", 1.0)]:
        found = PROTOCOL.replace("sim_widowx", robot) + f"delay_s: {delay_s}"
        path.write_text(found)
        assert Protocol.load(path).delay_s == delay_s


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("name: b", "name: a.", "'a', normal: 'put .*' and 'a.', normal: 'put .*'"),
        (
            '["put',
            '["pick up the red cube", "pick up  the red cube", "put',
            "'pick up the red cube'.*'pick up  the",
        ),
    ],
)
def test_trials_that_would_replace_each_other_are_refused(old, new, names):
    text = PROTOCOL.replace(old, new) + "draw: all"
    with pytest.raises(ValueError, match=f"differ in letters or digits, got .*{names}"):
        jobs(read(text), SCENE)


def test_tasks_must_be_about_the_scene():
    with pytest.raises(ValueError, match="expected a target of the scene, got 'moon'"):
        instructions(("put the {object} on the moon",), SCENE)
    with pytest.raises(ValueError, match="full sentences on a real robot"):
        instructions(("put the {object} on the plate",), None)


# log


def test_a_log_survives_a_kill_in_the_middle_of_a_line(tmp_path):
    first, second = (
        Record(job(seed=0), result()),
        Record(job(seed=1), result(Outcome.SUCCESS, True)),
    )
    log = Log(tmp_path, {"protocol": "x"})
    log.append(first)
    log.append(second)
    assert record_of(to_line(second)) == second
    path = tmp_path / "trials.jsonl"
    whole = path.read_bytes()
    for cut in range(len(to_line(first)), len(whole)):
        path.write_bytes(whole[:cut])
        resumed = Log(tmp_path, {"protocol": "x"})
        assert resumed.records == (first,)
        resumed.append(second)
        assert path.read_bytes() == whole
    with pytest.raises(ValueError, match="run with another protocol, scene; take another --out"):
        Log(tmp_path, {"protocol": "y", "scene": "z"})


def test_a_line_of_an_older_log_is_read():
    old = to_line(Record(job(), result())).replace('"policy_instruction"', '"told"')
    assert record_of(old) == Record(job(), result())


def test_the_log_has_outcomes_by_name_and_refuses_others():
    line = to_line(result(Outcome.PARTIAL))
    assert '"outcome": "partial"' in line
    for word in ("unknown", "won"):
        with pytest.raises(ValueError, match=f"outcome: expected .*, got '?{word}"):
            result_of(line.replace("partial", word))


def test_a_kill_before_the_first_trial_blocks_no_later_run(tmp_path, monkeypatch):
    write = Path.write_text

    def killed(path, text, encoding):
        write(path, text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            Log(tmp_path, {"protocol": "x"})
    Log(tmp_path, {"protocol": "x"})
    with pytest.raises(ValueError, match="run with another protocol"):
        Log(tmp_path, {"protocol": "y"})


def test_identity_notices_every_change_that_matters(study, tmp_path):
    protocol = Protocol.load(study / "study.yaml")
    before = identity(protocol, EMBODIMENT, has_ros=False)
    path = study / "other.yaml"
    path.write_text(PROTOCOL.replace("video: all", "video: none"))
    assert identity(Protocol.load(path), EMBODIMENT, has_ros=False) == before
    path.write_text(PROTOCOL.replace("seconds: 1.0", "seconds: 2.0"))
    assert changed(before, identity(Protocol.load(path), EMBODIMENT, False)) == {"protocol"}
    path.write_text(PROTOCOL.replace("seconds: 1.0", "seconds: 1.0\nreal_time_factor: 0.5"))
    assert identity(Protocol.load(path), EMBODIMENT, has_ros=False) == before
    with_ros = identity(protocol, EMBODIMENT, has_ros=True)
    assert changed(with_ros, identity(Protocol.load(path), EMBODIMENT, True)) == {"run"}
    untrained.write_tiny(tmp_path / "tiny", EMBODIMENT, seed=1)
    other = Protocol.load(study / "study.yaml", {"b": tmp_path / "tiny"})
    assert changed(before, identity(other, EMBODIMENT, has_ros=False)) == {"checkpoint b"}
    with pytest.raises(FileNotFoundError, match="the folder of a checkpoint is missing"):
        identity(Protocol.load(study / "study.yaml", {"b": tmp_path / "x"}), EMBODIMENT, False)
    with pytest.raises(ValueError, match=r"folders: expected checkpoints of .*, got \['c'\]"):
        Protocol.load(study / "study.yaml", {"c": tmp_path})


def changed(before, after):
    return {name for name in before if before[name] != after[name]}


# sheet


def test_the_sheet_says_what_the_records_say(tmp_path):
    records = [Record(job("a", seed), result(Outcome.SUCCESS, True, 0, 2.0)) for seed in range(8)]
    records += [Record(job("a", seed), result(Outcome.PARTIAL, True, 1, 4.0)) for seed in (8, 9)]
    records += [Record(job("b", seed), result(Outcome.FAILURE, False, 0)) for seed in range(10)]
    text = write_sheet(tmp_path, records, "a study")
    assert "| a | normal | 10 | 80% [49%, 94%] | 100% [72%, 100%] | 20% [6%, 51%] |" in text
    assert "| 20% [6%, 51%] | 10 | 2.0 s | 0 |" in text
    assert "| a, normal | b, normal | 10 | 0 | 8 | 0 | 2 | 0.0078 |" in text
    assert (tmp_path / "trials.md").read_text() == text + "\n"
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows] == [record.result.outcome.text for record in records]
    assert (tmp_path / "trials.png").stat().st_size > 10_000


# rollouts


class Follower:
    """Sends the tool the same way with every chunk; keeps what it was shown."""

    def __init__(self, step_A):
        self.step_A = np.array(step_A)
        self.seen: list[Observation] = []

    def reseed(self, seed):
        self.seed = seed

    def infer(self, observation):
        self.seen.append(observation)
        names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
        actions_TA = np.tile(self.step_A, (5, 1))
        return ActionChunk(
            actions_TA=actions_TA,
            step_period_s=0.2,
            stamp_ns=observation.stamp_ns,
            instruction=observation.instruction,
            action_names=names,
            frame="base_link",
        )


@pytest.fixture(scope="module")
def cell():
    cell = Cell(Embodiment.load(EMBODIMENT), (32, 32))
    yield cell
    cell.close()


def setup(seconds=2.0, delay_s=0.1, video="none", video_dir=""):
    return Setup(
        embodiment=str(EMBODIMENT),
        image_size=32,
        delay_s=delay_s,
        seconds=seconds,
        video=video,
        video_dir=str(video_dir),
    )


class ExpertAgent:
    """Looks at the truth instead of the images."""

    def __init__(self, cell):
        self.cell = cell

    def reseed(self, seed):
        pass

    def infer(self, observation):
        cell, simulator = self.cell, self.cell.simulator
        task = parse(observation.instruction, simulator.objects, simulator.receptacles)
        action_A = Expert(task, cell.embodiment.workspace).step(ExpertScene.of(cell))
        return Follower(action_A).infer(observation)


def test_an_expert_succeeds_and_the_trial_ends_when_it_is_sure(cell):
    found = roll_out(cell, ExpertAgent(cell), job(seed=7), setup(seconds=20.0, delay_s=0.0))
    assert (found.outcome, found.reached, found.distractor_grasps) == (Outcome.SUCCESS, True, 0)
    assert found.error == ""
    assert 0.5 < found.grasp_s < found.duration_s < 15.0
    assert found.object_m < 0.075
    other_task = "put the blue ball on the plate"
    other = job(seed=7, condition="shuffled_instruction", policy_instruction=other_task)
    found = roll_out(cell, ExpertAgent(cell), other, setup(seconds=10.0, delay_s=0.0))
    assert (found.outcome, found.reached, found.distractor_grasps) == (Outcome.FAILURE, False, 1)
    assert found.duration_s == pytest.approx(10.0, abs=0.2)


@pytest.mark.parametrize("delay_s", [0.0, 0.06, 0.1])
def test_a_rollout_shows_one_image_per_step_so_long_before_it(cell, delay_s):
    agent = Follower([0.0, 0.0, -0.01, 0.0, 0.0, 0.0, 1.0])
    found = roll_out(cell, agent, job(seed=3), setup(delay_s=delay_s))
    assert (found.outcome, found.error, found.chunks) == (Outcome.FAILURE, "", 10)
    assert agent.seed == 3
    stamps_ns = np.array([observation.stamp_ns for observation in agent.seen])
    assert (np.diff(stamps_ns) == 200_000_000).all()
    executed = cell.controller.executed
    status = cell.controller.status
    assert status.steps_executed == 10
    assert executed is None or executed.stamp_ns - executed.observation_stamp_ns == delay_s * 1e9


def test_a_rollout_is_the_same_every_time(cell):
    step = [0.01, -0.01, -0.01, 0.0, 0.0, 0.05, 0.0]
    runs = [(agent := Follower(step), roll_out(cell, agent, job(seed=5), setup()))]
    roll_out(cell, Follower([0.0, 0.02, 0.0, 0.0, 0.0, 0.0, 1.0]), job(seed=6), setup())
    runs.append((agent := Follower(step), roll_out(cell, agent, job(seed=5), setup())))
    (first, result_a), (second, result_b) = runs
    assert result_a == result_b
    for a, b in zip(first.seen, second.seen, strict=True):
        assert a.stamp_ns == b.stamp_ns
        for image_a, image_b in zip(a.images, b.images, strict=True):
            np.testing.assert_array_equal(image_a, image_b)
    assert (first.seen[0].images[0] != first.seen[-1].images[0]).any()


def test_controls_hide_the_images_or_say_something_else(cell):
    cell.reset(0, CUBE)
    other_task = "put the blue ball on the plate"
    blank = observe(cell, job(condition="blank_image"))
    other = observe(cell, job(condition="shuffled_instruction", policy_instruction=other_task))
    assert not np.any(blank.images)
    assert blank.instruction == CUBE
    assert np.any(other.images)
    assert other.instruction == other_task


def test_an_agent_that_fails_ends_its_trial_with_the_reason(cell):
    found = roll_out(cell, Follower([np.nan] * 7), job(), setup())
    assert found.outcome is Outcome.FAILURE
    assert "NON_FINITE" in found.error
    assert found.chunks == 0


def test_videos_are_kept_as_asked(cell, tmp_path):
    agent = Follower([0.0, 0.0, -0.01, 0.0, 0.0, 0.0, 1.0])
    roll_out(cell, agent, job(), setup(1.0, 0.1, "failures", tmp_path))
    (path,) = tmp_path.iterdir()
    assert path.name == "a_normal_0_put_the_red_cube_on_the_plate.mp4"
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.duration * 1e-6 > 2.0
    assert len(pictures) >= 11
    assert (pictures[0] != pictures[-1]).mean() > 0.01


def test_a_worker_answers_every_trial_the_same_way_each_time(study):
    found = jobs(Protocol.load(study / "study.yaml"), SCENE)
    first, second = ([run(job) for job in found] for run in [open_runner(setup(seconds=0.4))] * 2)
    assert first == second
    assert len(first) == len(found)
    assert {(each.chunks, each.error) for each in first} == {(2, "")}
    assert len({(each.tool_m, each.object_m) for each in first}) > 2
    with pytest.raises(FileNotFoundError, match="folder"):
        open_runner(setup())(job())


# the command, with workers that start at once

FAKE = """from fake_rollout import open_runner
from nora_training.evaluation.command import main
main(open_runner)"""


def start(study, out, *arguments):
    given = [str(study / "study.yaml"), "--out", str(out), "--workers", "2", *arguments]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", FAKE, *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def wait_for_a_trial(started, out):
    log = out / "trials.jsonl"
    deadline = time.monotonic() + 60
    while not (log.is_file() and log.read_text().count("\n")):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return log


def test_trials_go_on_after_a_stop_and_end_the_same(study, tmp_path):
    started = start(study, tmp_path)
    log = wait_for_a_trial(started, tmp_path)
    workers = children(started.pid)
    assert len(workers) >= 2
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does: the workers get it, too
    _, said = started.communicate(timeout=10)
    assert started.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert gone(workers)
    before = log.read_text()
    assert before.count("\n") < 6
    done = start(study, tmp_path)
    sheet, said = done.communicate(timeout=60)
    assert done.returncode == 0, said
    assert log.read_text().startswith(before)
    keys = [record_of(line).job.key for line in log.read_text().splitlines()]
    assert len(set(keys)) == len(keys) == 6
    assert "| a | normal | 2 | 0% [0%, 66%] | 100% [34%, 100%] |" in sheet
    assert (tmp_path / "workers.log").read_text().count("a trial") >= 6


def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def gone(pids, timeout_s=10.0):
    """Whether all the processes end in time, other than as zombies that nobody waits for."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_workers_end_with_a_parent_that_was_killed(study, tmp_path):
    started = start(study, tmp_path)
    wait_for_a_trial(started, tmp_path)
    workers = children(started.pid)
    started.kill()
    started.communicate(timeout=10)
    assert gone(workers)


def test_a_worker_that_is_killed_is_one_line_and_exit_code_2(study, tmp_path):
    folder = tmp_path / "killer"
    untrained.write_tiny(folder, EMBODIMENT)
    (folder / "killed").touch()
    out = tmp_path / "out"
    done = start(study, out, "--folders", "a", str(folder), "b", str(folder))
    _, said = done.communicate(timeout=60)
    assert done.returncode == 2
    log = out / "workers.log"
    assert said.splitlines()[-1] == f"error: a worker process ended unexpectedly; see {log}"
    assert "Traceback" not in said


def test_a_worker_that_cannot_go_on_is_one_line_and_exit_code_2(study, tmp_path):
    (tmp_path / "broken").mkdir()
    broken = ("--folders", "a", str(tmp_path / "broken"), "b", str(tmp_path / "broken"))
    done = start(study, tmp_path / "out", *broken)
    _, said = done.communicate(timeout=60)
    assert done.returncode == 2
    assert said.splitlines()[-1] == f"error: {tmp_path / 'broken'}: no weights"
    assert "Traceback" not in said


def test_bags_that_nobody_will_record_are_mentioned(study, tmp_path):
    text = PROTOCOL.replace("folder: tiny", f"folder: {study / 'tiny'}")
    for bags, number in (("true", 1), ("false", 0)):
        (tmp_path / "study.yaml").write_text(f"{text}bags: {bags}\n")
        done = start(tmp_path, tmp_path / bags)
        _, said = done.communicate(timeout=60)
        assert done.returncode == 0, said
        assert said.count("bags: recorded only by `nora trials`; this run writes none\n") == number


def test_bad_input_is_refused_before_anything_starts(study, tmp_path):
    path = str(study / "study.yaml")
    with pytest.raises(ValueError, match="workers: must be 0 or more"):
        run_trials(Trials(protocol=path, out=tmp_path, workers=-1))
    with pytest.raises(FileNotFoundError, match="the folder of a checkpoint is missing"):
        run_trials(Trials(protocol=path, out=tmp_path, folders={"b": tmp_path / "none"}))
    with pytest.raises(FileNotFoundError, match=r"no such protocol, available: .*demo"):
        run_trials(Trials(protocol="nothing", out=tmp_path))
    assert not list(tmp_path.iterdir())
