from dataclasses import replace

import numpy as np
import pytest
from gantry import BASE, NAMES, PERIOD_NS, chunk, step
from hypothesis import given
from hypothesis import strategies as st

from nora_core.control import chunk_player
from nora_core.control.chunk_player import ChunkPlayer, Hold, Step, blended
from nora_core.types import Reason

MS = 1_000_000
STEP_NS = 200 * MS
T0 = 5_000_000_000
MAX_AGE_NS = 1000 * MS
ACTION = replace(BASE.action, execution="n_step", execute_steps=3, max_chunk_age_s=1.0)
FIRST_ONLY = replace(ACTION, execution="first_only", execute_steps=1)
BLEND = replace(ACTION, execution="blend")


def blend(steps):
    return blended(steps, BASE.action.gripper_index)


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


def test_late_calls_do_not_add_up():
    player = ChunkPlayer(replace(ACTION, execute_steps=5))
    player.accept(numbered(T0), T0)
    started = play(player, range(T0, T0 + 900 * MS, 30 * MS))
    assert [now_ns - T0 for now_ns, _ in started] == [k * MS for k in (0, 210, 420, 600, 810)]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (FIRST_ONLY, [(0, 0), (300, 100), (700, 200)]),
        (
            replace(ACTION, execute_steps=2),
            [(0, 0), (200, 1), (400, 100), (600, 101), (800, 200), (1000, 201)],
        ),
    ],
)
def test_a_newer_chunk_waits_until_the_one_before_was_played(action, expected):
    """Chunks at 0, 300 and 700 ms; steps as (start in ms, x)."""
    player = ChunkPlayer(action)
    started = []
    for first, start_ms, end_ms in [(0, 0, 300), (100, 300, 700), (200, 700, 1600)]:
        player.accept(numbered(T0 + start_ms * MS, first=first), T0 + start_ms * MS)
        started += play(player, range(T0 + start_ms * MS, T0 + end_ms * MS, PERIOD_NS))
    assert started == [(T0 + start_ms * MS, x) for start_ms, x in expected]


def test_the_newest_of_the_chunks_that_came_meanwhile_is_begun():
    player = ChunkPlayer(ACTION)
    for k in range(6):
        player.accept(numbered(T0 + k * 100 * MS, first=100 * k), T0 + k * 100 * MS)
        last = play(player, range(T0 + k * 100 * MS, T0 + (k + 1) * 100 * MS, PERIOD_NS))
    assert last == []
    assert play(player, [T0 + 3 * STEP_NS]) == [(T0 + 3 * STEP_NS, 500.0)]


def test_a_chunk_that_would_not_last_a_step_gives_way_to_a_waiting_one():
    player = ChunkPlayer(ACTION)
    player.accept(numbered(T0 - 700 * MS), T0)
    player.action_at(T0)
    player.accept(numbered(T0 + 50 * MS, first=100), T0 + 100 * MS)
    assert play(player, [T0 + STEP_NS]) == [(T0 + STEP_NS, 100.0)]


def test_blended_steps_are_weighted_means_and_the_gripper_is_the_newest():
    """Chunks at 0 and 300 ms: the step at 400 ms is of both, that at 600 ms of the newer alone."""
    player = ChunkPlayer(BLEND)
    player.accept(chunk([step(x=1.0, gripper=0.0)] * 5, T0), T0)
    play(player, range(T0, T0 + 300 * MS, PERIOD_NS))
    player.accept(chunk([step(x=2.0)] * 5, T0 + 300 * MS), T0 + 300 * MS)
    both = player.action_at(T0 + 2 * STEP_NS)
    weight = np.exp(0.8)
    assert both.action_A[0] == pytest.approx((1 + weight * 2) / (1 + weight))
    assert both.action_A[6] == 1.0
    assert both.observation_stamp_ns == T0
    alone = player.action_at(T0 + 3 * STEP_NS)
    assert (alone.action_A[0], alone.observation_stamp_ns) == (2.0, T0 + 300 * MS)


def test_an_image_that_grows_too_old_within_the_step_is_left_out_of_the_blend():
    player = ChunkPlayer(BLEND)
    player.accept(numbered(T0 - 601 * MS), T0)
    player.action_at(T0)
    player.accept(numbered(T0, first=100), T0 + 100 * MS)
    got = player.action_at(T0 + STEP_NS)
    assert (got.action_A[0], got.observation_stamp_ns) == (100.0, T0)


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
    assert player.action_at(T0 + 901 * MS).why.detail == "no new chunk for 0.2 s"
    assert hold_reason(player, T0 + 20_000 * MS) is Reason.CHUNK_STALE
    assert player.action_at(T0 + 20_000 * MS).why.detail == "no new chunk for 19 s"


def test_a_hold_says_that_the_clock_was_set_back():
    player = ChunkPlayer(ACTION)
    player.accept(numbered(T0), T0)
    player.action_at(T0)
    assert player.action_at(T0 - 2000 * MS).why.detail == (
        "the clock was set back since the last chunk"
    )


def test_a_chunk_without_a_stamp_is_refused_with_the_cause():
    detail = ChunkPlayer(ACTION).accept(numbered(0), T0).detail
    assert detail == "image: the stamp is zero: the driver does not set header.stamp"


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


@pytest.mark.parametrize("cut", [T0 - 960 * MS, None], ids=["stale", "dropped"])
def test_a_step_that_is_cut_short_keeps_its_time(cut):
    """Else old chunks, or refusals, would make steps follow each other faster than trained."""
    player = ChunkPlayer(FIRST_ONLY)
    player.accept(numbered(cut or T0), T0)
    player.action_at(T0)
    if not cut:
        player.drop(chunk_player.NOTHING_YET)
    player.accept(numbered(T0 + 50 * MS, first=100), T0 + 60 * MS)
    expected = Reason.CHUNK_STALE if cut else Reason.NO_CHUNK
    assert hold_reason(player, T0 + STEP_NS - 1) is expected
    assert play(player, [T0 + STEP_NS]) == [(T0 + STEP_NS, 100.0)]


# whatever comes

VALUES = st.floats(-1e300, 1e300)


@given(st.lists(st.lists(VALUES, min_size=7, max_size=7), min_size=1, max_size=6))
def test_a_blend_stays_in_the_hull_and_takes_the_newest_gripper(steps):
    got = blend([np.array(each) for each in steps])
    assert np.all(got >= np.min(steps, axis=0))
    assert np.all(got <= np.max(steps, axis=0))
    assert got[6] == steps[-1][6]


@given(st.lists(VALUES, min_size=7, max_size=7), st.integers(1, 9))
def test_equal_steps_blend_to_themselves(same, num):
    assert blend([np.array(same)] * num).tolist() == same


@given(st.integers(2, 9))
def test_newer_steps_weigh_more(num):
    weights = [blend(list(row[:, None] * np.ones(7)))[0] for row in np.eye(num)]
    assert np.sum(weights) == pytest.approx(1.0)
    assert np.diff(np.log(weights)) == pytest.approx(0.8)


STRATEGIES = st.one_of(
    st.just(FIRST_ONLY),
    st.builds(
        lambda execution, num: replace(ACTION, execution=execution, execute_steps=num),
        st.sampled_from(["n_step", "blend"]),
        st.integers(1, 6),
    ),
)
EVENTS = st.lists(
    st.tuples(
        st.integers(1, 500),  # ms until the next one
        st.one_of(st.integers(0, 250), st.integers(0, 1500)),  # age of the image, ms
        st.integers(1, 8),  # steps of the chunk
        st.sampled_from([20, 20, 7, 90]),  # ms between calls
        st.sampled_from([False] * 9 + [True]),  # drop before
    ),
    max_size=30,
)


class Log:
    """What was played: per started step its time, its contributions and the stamps of those."""

    def __init__(self, action):
        self.action, self.player = action, ChunkPlayer(action)
        self.chunks = {}  # number to (stamp, steps)
        self.played = {}  # number to indices
        self.starts_ns = []
        self.is_dropped = set()

    def drop(self):
        self.player.drop(chunk_player.NOTHING_YET)
        self.is_dropped |= set(self.chunks)

    def accept(self, number, stamp_ns, num_steps, now_ns):
        actions = [step(x=float(number), y=float(k)) for k in range(num_steps)]
        if self.player.accept(chunk(actions, stamp_ns), now_ns) is None:
            self.chunks[number] = stamp_ns, min(num_steps, self.action.execute_steps)

    def call(self, now_ns, contributions):
        """`contributions` is what `blended` will be called with, if it is."""
        contributions.clear()
        got = self.player.action_at(now_ns)
        if isinstance(got, Step):
            assert now_ns - got.observation_stamp_ns <= MAX_AGE_NS
        elif not self.starts_ns or now_ns - self.starts_ns[-1] >= STEP_NS:
            playable = {n for n in self.unfinished | self.waiting if self.lasts(n, now_ns)}
            assert not playable
        assert bool(contributions) == (isinstance(got, Step) and got.is_new)
        if contributions:
            pairs = [(int(each[0]), int(each[1])) for each in contributions]
            assert np.array_equal(got.action_A, blend(contributions))
            assert got.observation_stamp_ns == min(self.chunks[n][0] for n, _ in pairs)
            self.check_choice(dict(pairs), now_ns)
            self.starts_ns.append(now_ns)
            for number, index in pairs:
                self.played.setdefault(number, []).append(index)

    @property
    def unfinished(self):
        begun = {n for n in self.played if len(self.played[n]) < self.chunks[n][1]}
        return begun - self.is_dropped

    @property
    def waiting(self):
        return {max(self.chunks, default=-1)} & set(self.chunks) - set(
            self.played
        ) - self.is_dropped

    def lasts(self, number, until_ns):
        return until_ns - self.chunks[number][0] <= MAX_AGE_NS

    def check_choice(self, chosen, now_ns):
        """Of the chunks that last this step in any case none is passed over, none is old."""
        lasting = {n for n in self.unfinished if self.lasts(n, now_ns + STEP_NS)}
        assert list(chosen) == sorted(chosen)
        assert set(chosen) <= self.unfinished | self.waiting
        if self.action.execution == "blend":
            assert lasting | {n for n in self.waiting if self.lasts(n, now_ns)} <= set(chosen)
        else:
            assert len(chosen) == 1
            assert lasting <= set(chosen)


@given(STRATEGIES, EVENTS)
def test_whatever_comes_steps_are_played_in_order_and_in_time(action, events):
    """Chunks of any age and size at any time, drops, calls of any regularity."""
    log, now_ns, contributions = Log(action), T0, []

    def spy(steps, gripper_index):
        assert gripper_index == BASE.action.gripper_index
        contributions.extend(steps)
        return blend(steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_player, "blended", spy)
        for number, (wait_ms, age_ms, num_steps, call_ms, is_dropped) in enumerate(events):
            if is_dropped:
                log.drop()
            log.accept(number, now_ns - age_ms * MS, num_steps, now_ns)
            for _ in range(0, wait_ms, call_ms):
                now_ns += min(wait_ms, call_ms) * MS
                log.call(now_ns, contributions)
    for number, indices in log.played.items():
        assert indices == list(range(len(indices)))
        assert len(indices) <= log.chunks[number][1]
    # Late by a quarter of a step at most, which the following ones make up for but never more.
    lead_ns = np.array(log.starts_ns, np.int64) - np.arange(len(log.starts_ns)) * STEP_NS
    assert np.all(lead_ns >= np.maximum.accumulate(lead_ns) - STEP_NS // 4)
