"""The operator of a real robot, over real pipes and terminals; blind order and names."""

from __future__ import annotations

import os
import pty
import select
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nora_bringup.trials.operator import Keys, Operator, Verdict
from nora_core.trials.blind import blind_names, blind_order
from nora_core.trials.record import Job
from nora_core.types import Outcome


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def operator(keys, writer, said=None):
    """Presses Enter as soon as it is asked for."""

    def say(text):
        if said is not None:
            said.append(text)
        if "Enter starts it" in text:
            os.write(writer, b"\n")

    return Operator(keys, say)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (b"s", Verdict(Outcome.SUCCESS, 0)),
        (b"P", Verdict(Outcome.PARTIAL, 0)),
        (b"ddf", Verdict(Outcome.FAILURE, 2)),
        (b"x \nds", Verdict(Outcome.SUCCESS, 1)),
        (b"dr", Verdict(None, 1)),
    ],
)
def test_one_key_is_the_verdict(pipe, keys, expected):
    reader, writer = pipe
    said = []
    asked = operator(Keys(reader), writer, said)
    asked.begin("trial 1 of 2, policy A", "scene 5")
    asked.start()
    os.write(writer, keys)
    assert "policy A" in said[0]
    assert "scene 5" in said[0]
    assert asked.verdict() == expected


def test_keys_during_the_trial_end_it_and_none_do_not(pipe):
    reader, writer = pipe
    asked = operator(Keys(reader), writer)
    asked.begin("trial 1 of 2", "")
    asked.start()
    assert not asked.has_decided()
    os.write(writer, b"d")
    assert not asked.has_decided()
    os.write(writer, b"p")
    assert asked.has_decided()
    assert asked.verdict() == Verdict(Outcome.PARTIAL, 1)
    asked.begin("trial 2 of 2", "")
    asked.start()
    os.write(writer, b"f")
    assert asked.verdict() == Verdict(Outcome.FAILURE, 0)  # nothing is left of the trial before


@pytest.mark.parametrize("open_both", [os.pipe, lambda: pty.openpty()[::-1]], ids=["pipe", "tty"])
def test_only_an_enter_pressed_after_the_question_starts_a_trial(open_both):
    reader, writer = open_both()
    with Keys(reader) as keys:
        os.write(writer, b"s\n \n")  # by habit, or while the arm was going home
        assert select.select([reader], [], [], 5.0)[0]
        operator(keys, writer).begin("trial 2 of 2", "")
        assert keys.pressed() is None  # the one that it waited for was the last one
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("open_both", [os.pipe, lambda: pty.openpty()[::-1]], ids=["pipe", "tty"])
def test_a_key_pressed_while_the_arm_goes_home_is_no_verdict(open_both):
    reader, writer = open_both()
    with Keys(reader) as keys:
        asked = operator(keys, writer)
        asked.begin("trial 1 of 1", "")
        os.write(writer, b"ds")  # the arm is on its way home
        assert select.select([reader], [], [], 5.0)[0]
        asked.start()
        assert not asked.has_decided()
        os.write(writer, b"f")
        assert asked.verdict() == Verdict(Outcome.FAILURE, 0)
    os.close(reader)
    os.close(writer)


def test_the_end_of_the_input_is_no_verdict():
    reader, writer = os.pipe()
    asked = operator(Keys(reader), writer)
    asked.begin("trial 1 of 1", "")
    os.close(writer)
    with pytest.raises(RuntimeError, match="operator: the input ended while a key was expected"):
        asked.verdict()
    os.close(reader)


def test_a_terminal_needs_no_enter_and_is_left_as_it_was():
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    with Keys(theirs) as keys:
        assert keys.pressed() is None
        os.write(ours, b"s")
        assert keys.wait() == "s"
        assert termios.tcgetattr(theirs)[3] & termios.ISIG  # Ctrl-C works
        assert termios.tcgetattr(theirs) != before
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def jobs(names, num_scenes):
    return tuple(
        Job(
            checkpoint=name,
            folder=name,
            head="flow",
            condition="normal",
            seed=seed,
            instruction="lift the red cube",
            policy_instruction="lift the red cube",
        )
        for seed in range(num_scenes)
        for name in names
    )


NAMES = st.lists(st.text(min_size=1), min_size=1, max_size=30, unique=True)


@given(NAMES, st.integers(1, 8))
def test_blind_order_keeps_scenes_together_and_loses_no_trial(names, num_scenes):
    before = jobs(names, num_scenes)
    after = blind_order(before)
    assert sorted(job.key for job in after) == sorted(job.key for job in before)
    assert [job.seed for job in after] == [job.seed for job in before]
    assert after == blind_order(before)


def test_either_policy_comes_first_about_as_often():
    first = [job.checkpoint for job in blind_order(jobs(["a", "b"], 200))[::2]]
    assert 70 < first.count("a") < 130


@given(NAMES, st.integers(0, 2**31))
def test_blind_names_are_distinct_and_say_nothing_but_their_letter(names, seed):
    letters = blind_names(names, seed)
    assert list(letters) == names
    assert len(set(letters.values())) == len(names)
    assert letters == blind_names(names, seed)
