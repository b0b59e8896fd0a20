"""The audit: counts, rates, gaps and ages hold for every sequence; each fault turns it red."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nora_core.bags.audit import Audit, Expectation, expectations
from nora_core.embodiment import Embodiment

SIM = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
S = 10**9


def audited(
    received_ns: list[int], end_ns: int, expected: Expectation, ages_ns: list[int] | None = None
):
    audit = Audit({"/a": expected}, 0)
    ages = ages_ns or [0] * len(received_ns)
    for at_ns, age_ns in zip(received_ns, ages, strict=True):
        audit.add("/a", at_ns, at_ns - age_ns)
    return audit.report(end_ns, {}, ())


@given(
    steps_ns=st.lists(st.integers(1, S), min_size=2, max_size=50),
    tail_ns=st.integers(0, S),
    limit_ns=st.integers(1, S),
)
def test_gap_rate_and_count_are_those_of_the_sequence(steps_ns, tail_ns, limit_ns):
    received_ns = [sum(steps_ns[: i + 1]) for i in range(len(steps_ns))]
    end_ns = received_ns[-1] + tail_ns
    report = audited(received_ns, end_ns, Expectation(max_gap_ns=limit_ns))
    (topic,) = report.topics
    assert topic.count == len(steps_ns)
    assert topic.largest_gap_s == pytest.approx(max(*steps_ns, tail_ns) / S)
    mean_ns = sum(steps_ns[1:]) / len(steps_ns[1:])
    assert topic.rate_hz == pytest.approx(S / mean_ns)
    assert report.is_green == (max(*steps_ns, tail_ns) <= limit_ns)
    assert report.duration_s == end_ns / S


@given(st.lists(st.integers(-S, S), min_size=1, max_size=200), st.integers(0, S))
def test_stamps_may_be_stale_or_ahead_in_one_of_a_hundred(ages_ns, limit_ns):
    received_ns = [10 * S * (i + 1) for i in range(len(ages_ns))]
    expected = Expectation(max_age_ns=limit_ns)
    report = audited(received_ns, received_ns[-1], expected, ages_ns)
    num_stale = sum(not -50_000_000 <= age_ns <= limit_ns for age_ns in ages_ns)
    (topic,) = report.topics
    assert topic.num_stale == num_stale
    assert topic.oldest_s == pytest.approx(max(ages_ns) / S)
    assert report.is_green == (num_stale * 100 <= len(ages_ns))


def test_every_fault_is_a_reason():
    expected = {"/camera": Expectation(S // 2, S // 2), "/chunk": Expectation()}
    audit = Audit(expected, 0)
    for at_ns, stamp_ns in ((S // 4, 0), (S, S), (2 * S, S - 1)):
        audit.add("/camera", at_ns, stamp_ns)
    audit.add("/extra", S, None)
    report = audit.report(2 * S, {"/chunk": "nobody publishes it"}, ("the disk is full",))
    assert report.reasons == (
        "the disk is full",
        "/camera: silent for 1.00 s, limit 0.5 s",
        "/camera: 1 of 3 stamps older than 0.5 s at receipt, or more than 0.05 s ahead",
        "/camera: header stamps went back 1 times",
        "/chunk: no message (nobody publishes it)",
    )
    assert not report.is_green
    text = report.markdown("episode_000001")
    assert text.startswith("# episode_000001: RED\n")
    assert "| /extra | 1 | – | 1 | – | 0 |" in text
    assert all(f"- {reason}" in text for reason in report.reasons)


def test_green_says_green():
    report = audited([S // 2], S, Expectation(max_gap_ns=S))
    assert report.markdown("x").startswith("# x: green\n\n1.0 s\n")
    assert math.isnan(report.topics[0].rate_hz)


def test_limits_are_those_of_policy_and_bridge():
    embodiment = Embodiment.load(SIM)
    expected = expectations(embodiment, lambda name: f"/nora/{name}")
    names = (*embodiment.record, *embodiment.record_optional)
    assert list(expected) == [f"/nora/{name}" for name in names]
    assert expected["/nora/camera/image_raw"] == Expectation(400_000_000, 400_000_000)
    assert expected["/nora/joint_states"] == Expectation(250_000_000, 250_000_000)
    assert expected["/nora/policy/action_chunk"] == Expectation(None, S, False)
    assert expected["/nora/instruction"] == Expectation(is_required=False)
    assert expected["/nora/bridge/status"] == Expectation()


@pytest.mark.parametrize("name", ["sim_widowx", "widowx", "galaxea_a1"])
def test_an_episode_without_a_policy_is_green(name):
    embodiment = Embodiment.load(SIM.with_name(f"{name}.yaml"))
    audit = Audit(expectations(embodiment, str), 0)
    for topic in embodiment.record:
        audit.add(topic, S // 10, S // 10)
    report = audit.report(S // 5, dict.fromkeys(embodiment.record_optional, "nobody"), ())
    assert report.reasons == ()
    assert [t.count for t in report.topics] == [1] * len(embodiment.record) + [0, 0, 0]


def test_an_optional_topic_keeps_to_its_limits_once_it_is_there():
    report = audited([S], S, Expectation(max_age_ns=S, is_required=False), [2 * S])
    assert not report.is_green


@pytest.mark.parametrize("kind", ["joint_states", "anything/else"])
def test_joint_states_must_not_pause_for_longer_than_the_bridge_would_wait(kind):
    embodiment = Embodiment.load(SIM)
    driver = replace(embodiment.driver, state_topic=kind)
    changed = replace(embodiment, driver=driver, record=(kind,))
    assert expectations(changed, str)[kind] == Expectation(250_000_000, 250_000_000)
