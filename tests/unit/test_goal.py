"""When following an instruction ends."""

import pytest

from nora_core.types import GoalError, Outcome
from nora_policy.goal import NO_IMAGE_LIMIT_S, Goal, goal_problem

SECOND = 1_000_000_000


def goal(timeout_s: float = 30.0) -> Goal:
    return Goal("put the cube on the plate", timeout_s, start_ns=100 * SECOND)


def test_goes_on_while_images_come_and_time_is_left():
    running = goal()
    for second in range(100, 130):
        running.on_image(second * SECOND)
        assert running.ending(second * SECOND, "") is None


def test_ends_with_success_as_soon_as_it_is_judged_done():
    done = goal()
    done.on_outcome(done.instruction, Outcome.PARTIAL, 101 * SECOND)
    assert done.ending(101 * SECOND, "") is None
    done.on_outcome(done.instruction, Outcome.SUCCESS, 102 * SECOND)
    ending = done.ending(102 * SECOND, "")
    assert (ending.error, ending.outcome) == (GoalError.NONE, Outcome.SUCCESS)


@pytest.mark.parametrize(
    ("instruction", "judged_ns"),
    [("another instruction", 101 * SECOND), ("put the cube on the plate", 99 * SECOND)],
)
def test_judgements_of_other_tasks_and_earlier_trials_do_not_count(instruction, judged_ns):
    running = goal()
    running.on_outcome(instruction, Outcome.SUCCESS, judged_ns)
    assert running.ending(101 * SECOND, "") is None


def test_timeout_keeps_what_was_reached():
    late = goal(timeout_s=2.0)
    late.on_outcome(late.instruction, Outcome.PARTIAL, 101 * SECOND)
    late.on_image(103 * SECOND)
    ending = late.ending(103 * SECOND, "")
    assert (ending.error, ending.outcome) == (GoalError.TIMEOUT, Outcome.PARTIAL)
    assert "2 s" in ending.message


def test_no_image_ends_with_the_reason():
    blind = goal()
    just_before = 100 * SECOND + int(NO_IMAGE_LIMIT_S * SECOND)
    assert blind.ending(just_before, "camera front: no image yet") is None
    ending = blind.ending(just_before + 1, "camera front: no image yet")
    assert ending.error == GoalError.NO_IMAGE
    assert "camera front: no image yet" in ending.message


def test_inference_failure_ends_with_its_message():
    failed = goal()
    failed.on_failure("velocity is not finite")
    ending = failed.ending(101 * SECOND, "")
    assert (ending.error, ending.message) == (
        GoalError.INFERENCE_FAILED,
        "velocity is not finite",
    )


@pytest.mark.parametrize(
    ("instruction", "timeout_s", "problem"),
    [
        ("go", 1.0, None),
        (" ", 1.0, "instruction: expected some words"),
        ("go", 0.0, "timeout: expected a positive number"),
        ("go", float("nan"), "timeout: expected a positive number"),
        ("go", float("inf"), "timeout: expected a positive number"),
    ],
)
def test_goal_problem(instruction, timeout_s, problem):
    found = goal_problem(instruction, timeout_s)
    assert found is None if problem is None else found.startswith(problem)
