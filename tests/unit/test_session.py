"""What the policy node infers, publishes and answers, without a node, a model or a clock."""

import numpy as np
import pytest

from nora_core.embodiment import Camera
from nora_core.observation import NoObservation
from nora_core.types import ActionChunk, Frame, GoalError, Outcome
from nora_policy.session import NO_IMAGE_LIMIT_S, PolicySession

SECOND = 1_000_000_000
TASK = "put the cube on the plate"
START_NS = 100 * SECOND
RGB = np.zeros((4, 6, 3), np.uint8)


def make_session(*names: str) -> PolicySession:
    cameras = names or ("front",)
    return PolicySession(
        tuple(
            Camera(name=name, topic=f"{name}/image", encoding="rgb8", max_age_s=0.5)
            for name in cameras
        )
    )


def following(timeout_s: float = 30.0) -> PolicySession:
    session = make_session()
    assert session.begin(f" {TASK} ", timeout_s, START_NS) is None
    return session


def see(session: PolicySession, now_ns: int, camera: str = "front", age_ns: int = 0):
    return session.on_image(camera, Frame(RGB, now_ns - age_ns), now_ns)


def chunk(instruction: str) -> ActionChunk:
    return ActionChunk(
        actions_TA=np.zeros((1, 7)),
        step_period_s=0.2,
        stamp_ns=START_NS,
        instruction=instruction,
        action_names=("x",) * 7,
        frame="base",
    )


def record(session: PolicySession, inference_s: float, age_s: float) -> None:
    session.stats.record(
        inference_s=inference_s, observation_age_s=age_s, num_tokens=0, now_ns=START_NS
    )


# what to infer, and when


def test_nothing_is_inferred_without_an_instruction():
    session = make_session()
    assert see(session, START_NS) is None
    assert session.no_observation(START_NS).reason is NoObservation.NO_INSTRUCTION
    session.instruct("go ")
    assert see(session, START_NS + 1).instruction == "go"
    assert session.no_observation(START_NS + 1) is None
    session.instruct("")
    assert see(session, START_NS + 2) is None


def test_all_cameras_are_answered_together_and_once():
    session = make_session("front", "wrist")
    session.instruct("go")
    assert see(session, START_NS, "front") is None
    assert session.no_observation(START_NS).detail.startswith("camera wrist: no image yet")
    first = see(session, START_NS + 10, "wrist")
    assert (len(first.images), first.stamp_ns) == (2, START_NS)
    assert see(session, START_NS + 20, "wrist") is None  # the front image was answered
    assert see(session, START_NS + 30, "front").stamp_ns == START_NS + 20


def test_images_count_again_after_the_clock_was_set_back():
    session = make_session()
    session.instruct("go")
    assert see(session, START_NS) is not None
    assert see(session, START_NS - 50 * SECOND) is not None


def test_stale_images_are_not_inferred():
    session = make_session()
    session.instruct("go")
    assert see(session, START_NS, age_ns=SECOND) is None
    assert session.no_observation(START_NS).reason is NoObservation.IMAGE_STALE


def test_a_chunk_of_an_instruction_that_was_changed_is_dropped():
    session = following()
    assert session.is_wanted(chunk(TASK))
    session.instruct("go")
    assert not session.is_wanted(chunk(TASK))
    assert session.is_wanted(chunk("go"))
    session.end()
    assert not session.is_wanted(chunk("go"))


# how goals end


def test_goes_on_while_images_come_and_time_is_left():
    session = following()
    for second in range(100, 130):
        see(session, second * SECOND)
        assert session.ending(second * SECOND) is None
    session.end()
    assert not session.has_goal
    assert session.instruction == ""
    assert session.ending(200 * SECOND) is None


def test_ends_with_success_as_soon_as_it_is_judged_done():
    session = following()
    session.on_outcome(TASK, Outcome.PARTIAL, 101 * SECOND)
    assert session.ending(101 * SECOND) is None
    session.on_outcome(TASK, Outcome.SUCCESS, 102 * SECOND)
    ending = session.ending(102 * SECOND)
    assert (ending.error, ending.outcome) == (GoalError.NONE, Outcome.SUCCESS)


@pytest.mark.parametrize(
    ("instruction", "judged_ns"), [("another instruction", 101 * SECOND), (TASK, 99 * SECOND)]
)
def test_judgements_of_other_tasks_and_earlier_trials_do_not_count(instruction, judged_ns):
    session = following()
    session.on_outcome(instruction, Outcome.SUCCESS, judged_ns)
    assert session.ending(101 * SECOND) is None


def test_timeout_and_cancelling_keep_what_was_reached():
    session = following(timeout_s=2.0)
    session.on_outcome(TASK, Outcome.PARTIAL, 101 * SECOND)
    see(session, 103 * SECOND)
    ending = session.ending(103 * SECOND)
    assert (ending.error, ending.outcome) == (GoalError.TIMEOUT, Outcome.PARTIAL)
    assert "2 s" in ending.message
    cancelled = session.cancelled()
    assert (cancelled.error, cancelled.outcome) == (GoalError.CANCELLED, Outcome.PARTIAL)


def test_no_image_ends_with_the_reason():
    session = following()
    just_before = START_NS + int(NO_IMAGE_LIMIT_S * SECOND)
    assert session.ending(just_before) is None
    ending = session.ending(just_before + 1)
    assert ending.error == GoalError.NO_IMAGE
    assert "camera front: no image yet" in ending.message


def test_inference_failure_ends_with_its_message_and_is_counted():
    session = following()
    session.on_failure("velocity is not finite")
    ending = session.ending(101 * SECOND)
    assert (ending.error, ending.message) == (
        GoalError.INFERENCE_FAILED,
        "velocity is not finite",
    )
    assert session.stats.failures == 1
    session.begin("another", 1.0, 101 * SECOND)
    assert session.ending(101 * SECOND) is None


def test_a_new_goal_or_message_preempts_the_goal_before():
    session = following()
    ending = session.begin("another", 5.0, 101 * SECOND)
    assert (ending.error, ending.message) == (GoalError.PREEMPTED, "replaced by 'another'")
    assert session.instruction == "another"
    ending = session.instruct("")
    assert ending.error == GoalError.PREEMPTED
    assert not session.has_goal
    assert session.instruct("go") is None


def test_feedback_counts_the_chunks_of_this_goal():
    session = make_session()
    record(session, 0.1, 0.2)
    session.begin(TASK, 5.0, START_NS)
    assert session.feedback.chunks == 0
    record(session, 0.3, 0.4)
    assert session.feedback.chunks == 1
    assert (session.feedback.inference_s, session.feedback.observation_age_s) == (0.3, 0.4)


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
def test_a_goal_that_makes_no_sense_is_rejected(instruction, timeout_s, problem):
    rejection = make_session().problem(instruction, timeout_s)
    if problem is None:
        assert rejection is None
    else:
        assert rejection.reason is GoalError.INVALID_GOAL
        assert rejection.detail.startswith(problem)
