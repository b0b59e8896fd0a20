from dataclasses import replace

import numpy as np
import pytest
from gantry import BASE, NAMES, PERIOD_NS, chunk, step
from hypothesis import given
from hypothesis import strategies as st

from nora_policy.chunk_player import ChunkPlayer, Hold, Step
from nora_policy.safety import Reason

MS = 1_000_000
STEP_NS = 200 * MS
T0 = 5_000_000_000
ACTION = replace(BASE.action, execute_steps=3, max_chunk_age_s=1.0)


def numbered(stamp_ns, num_steps=5, first=0):
    """A chunk whose steps can be told apart by their x."""
    return chunk([step(x=float(first + k)) for k in range(num_steps)], stamp_ns)


def play(player, times_ns):
    """(time, x) of every step that started."""
    started = []
    for now_ns in times_ns:
        got = player.action_at(now_ns)
        if isinstance(got, Step) and got.is_new:
            started.append((now_ns, got.action_A[0]))
    return started


def hold_reason(player, now_ns):
    got = player.action_at(now_ns)
    assert isinstance(got, Hold)
    assert got.why.detail
    return got.why.reason


def test_steps_start_one_period_apart_and_at_most_execute_steps_of_them():
    player = ChunkPlayer(ACTION)
    assert hold_reason(player, T0) is Reason.NO_CHUNK
    assert player.accept(numbered(T0), T0) is None
    started = play(player, range(T0, T0 + 900 * MS, PERIOD_NS))
    assert started == [(T0 + k * STEP_NS, float(k)) for k in range(3)]
    assert hold_reason(player, T0 + 900 * MS) is Reason.CHUNK_EXHAUSTED


def test_a_newer_chunk_takes_over_at_the_next_boundary_from_its_first_step():
    player = ChunkPlayer(ACTION)
    player.accept(numbered(T0), T0)
    first = play(player, range(T0, T0 + 300 * MS, PERIOD_NS))
    player.accept(numbered(T0 + 250 * MS, first=100), T0 + 300 * MS)
    second = play(player, range(T0 + 300 * MS, T0 + 700 * MS, PERIOD_NS))
    assert [x for _, x in first] == [0.0, 1.0]
    assert second == [(T0 + 2 * STEP_NS, 100.0), (T0 + 3 * STEP_NS, 101.0)]


def test_after_a_hold_a_fresh_chunk_starts_at_once():
    player = ChunkPlayer(ACTION)
    player.accept(numbered(T0, num_steps=1), T0)
    play(player, range(T0, T0 + 330 * MS, PERIOD_NS))
    assert hold_reason(player, T0 + 330 * MS) is Reason.CHUNK_EXHAUSTED
    player.accept(numbered(T0 + 300 * MS), T0 + 331 * MS)
    assert play(player, [T0 + 331 * MS]) == [(T0 + 331 * MS, 0.0)]


def test_a_chunk_goes_stale_in_the_middle_of_a_step():
    player = ChunkPlayer(ACTION, reserve_s=0.1)
    player.accept(numbered(T0), T0 + 750 * MS)
    assert isinstance(player.action_at(T0 + 750 * MS), Step)
    assert isinstance(player.action_at(T0 + 900 * MS), Step)
    assert hold_reason(player, T0 + 901 * MS) is Reason.CHUNK_STALE
    assert hold_reason(player, T0 + 20_000 * MS) is Reason.CHUNK_STALE


def test_a_waiting_chunk_goes_stale_too():
    player = ChunkPlayer(ACTION)
    player.accept(numbered(T0), T0)
    assert hold_reason(player, T0 + 1001 * MS) is Reason.CHUNK_STALE


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (numbered(T0, num_steps=0), Reason.WRONG_SHAPE),
        (chunk(np.zeros((2, 6)), T0), Reason.WRONG_SHAPE),
        (chunk(np.zeros(7), T0), Reason.WRONG_SHAPE),
        (chunk(np.zeros((2, 7)), T0, action_names=NAMES[::-1]), Reason.MISMATCH),
        (chunk(np.zeros((2, 6)), T0, action_names=NAMES[:6]), Reason.MISMATCH),
        (chunk(np.zeros((2, 7)), T0, step_period_s=0.1), Reason.MISMATCH),
        (chunk(np.zeros((2, 7)), T0, step_period_s=np.nan), Reason.MISMATCH),
        (chunk([step(), step(z=np.nan)], T0), Reason.NON_FINITE),
        (chunk([step(gripper=-np.inf)], T0), Reason.NON_FINITE),
        (numbered(T0 - 1001 * MS), Reason.CHUNK_STALE),
        (numbered(T0 + 101 * MS), Reason.OUT_OF_ORDER),
    ],
)
def test_bad_chunks_are_refused_with_the_rule_and_change_nothing(bad, reason):
    player = ChunkPlayer(ACTION)
    refusal = player.accept(bad, T0)
    assert refusal is not None
    assert refusal.reason is reason
    assert refusal.detail
    assert hold_reason(player, T0) is Reason.NO_CHUNK
    assert player.accept(numbered(T0), T0) is None


@pytest.mark.parametrize("later_ns", [0, -1, -300 * MS])
def test_a_chunk_must_be_newer_than_the_last_one(later_ns):
    player = ChunkPlayer(ACTION)
    player.accept(numbered(T0), T0)
    refusal = player.accept(numbered(T0 + later_ns), T0 + 10 * MS)
    assert refusal is not None
    assert refusal.reason is Reason.OUT_OF_ORDER


def test_dropped_chunks_stay_dropped_but_cleared_ones_may_come_again():
    player = ChunkPlayer(ACTION)
    player.accept(numbered(T0), T0)
    refusal = player.accept(numbered(T0), T0)
    player.drop(refusal)
    assert hold_reason(player, T0) is Reason.OUT_OF_ORDER
    assert player.accept(numbered(T0), T0) is not None
    player.clear()
    assert player.accept(numbered(T0), T0) is None


def test_order_starts_anew_when_the_clock_jumps_back():
    player = ChunkPlayer(ACTION)
    player.accept(numbered(T0), T0)
    player.action_at(T0)
    early = T0 // 2
    assert isinstance(player.action_at(early), Hold)
    assert player.accept(numbered(early), early) is None
    assert isinstance(player.action_at(early), Step)


def test_the_arm_must_have_time_to_stop():
    with pytest.raises(ValueError, match=r"action.max_chunk_age_s: expected more than the 1 s"):
        ChunkPlayer(ACTION, reserve_s=1.0)


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(0, 1500), st.integers(1, 8)), max_size=30)
)
def test_never_skips_never_bunches_never_plays_old_images(events):
    """Chunks of any age and size at any time, calls of any regularity."""
    player = ChunkPlayer(ACTION)
    now_ns, number, last = T0, 0, None
    for wait_ms, age_ms, num_steps in events:
        number += 1
        actions = [step(x=float(number), y=float(k)) for k in range(num_steps)]
        player.accept(chunk(actions, now_ns - age_ms * MS), now_ns)
        for _ in range(0, wait_ms, 20):
            now_ns += min(wait_ms, 20) * MS
            got = player.action_at(now_ns)
            if isinstance(got, Hold):
                continue
            assert now_ns - got.observation_stamp_ns <= 1000 * MS
            if not got.is_new:
                continue
            played, index = got.action_A[:2]
            assert index < ACTION.execute_steps
            if last is None or played != last[1]:
                assert index == 0
            else:
                assert index == last[2] + 1
                assert now_ns - last[0] >= 0.75 * STEP_NS
            last = (now_ns, played, index)
