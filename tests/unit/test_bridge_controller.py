"""The whole bridge without ROS: whatever comes in, what goes out keeps every limit."""

from dataclasses import replace

import numpy as np
import pytest
from gantry import (
    BASE,
    M_PER_RAD,
    PERIOD_NS,
    PERIOD_S,
    Gantry,
    chunk,
    gantry_embodiment,
    step,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from nora_core.control.controller import ArmController
from nora_core.control.kinematics import MinkKinematics
from nora_core.control.loop_monitor import LoopMonitor
from nora_core.control.state_filter import CONFIRMATIONS
from nora_core.control.status import Mode, ModeError
from nora_core.types import ArmState, Reason

T0 = 1_000_000_000_000
EMBODIMENT = gantry_embodiment()
LIMITS = EMBODIMENT.limits
BOX = np.array([EMBODIMENT.workspace.min_m, EMBODIMENT.workspace.max_m])


class Rig:
    """Controller and arm in simulated time; the arm is where it is told to be."""

    def __init__(self, embodiment=EMBODIMENT, kinematics=None, joints_rad=None):
        self.embodiment = embodiment
        self.kinematics = kinematics or Gantry()
        self.controller = ArmController(embodiment, self.kinematics, PERIOD_S)
        start = embodiment.arm.home_rad if joints_rad is None else joints_rad
        self.joints_rad = np.array(start, np.float64)
        self.now_ns = T0
        self.is_reporting = True
        self.targets, self.executed = [], []
        self.stops = []  # indices of the targets right after an e-stop
        self.tick(CONFIRMATIONS)

    def tick(self, num=1):
        for _ in range(num):
            self.now_ns += PERIOD_NS
            if self.is_reporting:
                self.controller.on_state(ArmState(self.joints_rad, 1.0, self.now_ns))
            target = self.controller.tick(self.now_ns)
            if target is not None:
                self.targets.append(target)
                self.joints_rad = target.joints_rad
            if self.controller.executed:
                self.executed.append(self.controller.executed)

    def chunk(self, *actions, age_s=0.0):
        return self.controller.on_chunk(
            chunk(actions, self.now_ns - round(age_s * 1e9)), self.now_ns
        )

    def policy(self):
        assert self.controller.set_mode(Mode.POLICY, self.now_ns) is None

    @property
    def status(self):
        return self.controller.status

    @property
    def position_m(self):
        return self.targets[-1].pose.position_m

    def is_still(self, num=25):
        """Whether the commanded joints do not change from now on."""
        before = self.targets[-1].joints_rad
        self.tick(num)
        return all(np.array_equal(t.joints_rad, before) for t in self.targets[-num:])


def n_step(num_steps):
    return {"execution": "n_step", "execute_steps": num_steps}


def without_scale(**sections):
    """Steps at full size, two of each chunk."""
    first = {"safety": {"first_motion_steps": 0}, "action": n_step(2)}
    return gantry_embodiment(**first | sections)


def moving_rig(embodiment=None):
    """In mode POLICY, half way through a step of 5 cm."""
    rig = Rig(embodiment or without_scale())
    rig.policy()
    rig.chunk(step(x=0.05), step(x=0.05))
    rig.tick(6)
    assert rig.status.is_moving
    return rig


# modes


def test_holds_where_the_arm_is_until_told_otherwise():
    joints_rad = np.array([1.5, 0.2, 0.6, 0.1, 0.2, 0.3])
    rig = Rig(joints_rad=joints_rad)
    rig.chunk(step(x=0.02))
    assert rig.is_still()
    assert np.array_equal(rig.joints_rad, joints_rad)
    assert rig.status.mode is Mode.HOLD
    assert rig.status.hold.reason is Reason.MODE_HOLD


def test_policy_mode_plays_only_chunks_that_come_after_it():
    rig = Rig()
    rig.chunk(step(x=0.02))
    rig.policy()
    assert rig.is_still()
    assert rig.status.hold.reason is Reason.NO_CHUNK
    rig.chunk(step(x=0.02))
    rig.tick()
    assert rig.status.is_moving


def test_first_steps_are_scaled_each_time_policy_mode_begins():
    safety = {"first_motion_scale": 0.5, "first_motion_steps": 2}
    rig = Rig(gantry_embodiment(safety=safety, action=n_step(3)))
    for _ in range(2):
        rig.policy()
        rig.chunk(*[step(y=0.02)] * 3)
        rig.tick(40)
        moved = [executed.delta.translation_m[1] for executed in rig.executed[-3:]]
        assert moved == pytest.approx([0.01, 0.01, 0.02])
        assert rig.status.hold.reason is Reason.CHUNK_EXHAUSTED


def test_executed_steps_carry_their_start_and_the_stamp_of_their_image():
    rig = Rig(without_scale())
    rig.policy()
    stamp_ns = rig.now_ns - 50_000_000
    rig.chunk(step(z=0.01), step(z=0.02), age_s=0.05)
    rig.tick(30)
    first, second = rig.executed
    assert second.start_ns - first.start_ns == 200_000_000
    assert first.observation_stamp_ns == second.observation_stamp_ns == stamp_ns
    assert rig.position_m[2] == pytest.approx(0.14 + 0.03)
    assert rig.status.steps_executed == 2


def test_leaving_policy_mode_brakes_and_the_next_step_starts_from_there():
    rig = moving_rig()
    rig.controller.set_mode(Mode.HOLD, rig.now_ns)
    rig.tick(10)
    x = rig.position_m[0]
    assert 0.28 < x < 0.33
    rig.policy()
    rig.chunk(step(x=0.02))
    rig.tick(30)
    assert rig.position_m[0] == pytest.approx(x + 0.02)


@pytest.mark.parametrize("mode", [2, 7])
def test_unknown_modes_are_refused(mode):
    rejection = Rig().controller.set_mode(mode, T0)
    assert rejection.reason is ModeError.UNKNOWN_MODE
    assert str(mode) in rejection.detail


# e-stop


def test_estop_stands_still_from_the_next_period_and_latches():
    rig = moving_rig()
    before = rig.joints_rad
    rig.controller.estop()
    rig.tick()
    assert np.array_equal(rig.joints_rad, before)
    assert rig.controller.set_mode(Mode.POLICY, rig.now_ns).reason is ModeError.ESTOPPED
    assert rig.controller.home(rig.now_ns).reason is Reason.ESTOP
    rig.chunk(step(x=0.02))
    assert rig.is_still()
    assert rig.status.hold.reason is Reason.ESTOP
    rig.controller.reset_estop()
    assert rig.is_still()
    assert rig.status.mode is Mode.HOLD
    rig.policy()
    rig.chunk(step(x=0.02))
    rig.tick(30)
    assert not np.array_equal(rig.joints_rad, before)


# home


def test_home_from_anywhere_in_the_box_without_leaving_it():
    rig = Rig(joints_rad=[0.6, -1.0, 0.2, 0.4, -0.3, 2.0])
    assert rig.controller.home(rig.now_ns) is None
    rig.tick(400)
    assert rig.joints_rad == pytest.approx(EMBODIMENT.arm.home_rad, abs=1e-6)
    assert rig.status.mode is Mode.HOLD
    assert rig.status.hold.reason is Reason.MODE_HOLD
    check_limits(rig, rotation=False)


def test_home_from_outside_goes_joint_by_joint_but_the_policy_may_not_start_there():
    outside = np.array([0.0, 0.0, -0.2, 0.0, 0.0, 0.0]) / M_PER_RAD
    rig = Rig(joints_rad=outside)
    rig.policy()
    rig.chunk(step(z=0.02))
    assert rig.is_still()
    assert rig.status.hold.reason is Reason.WORKSPACE
    rig.controller.home(rig.now_ns)
    rig.tick(400)
    assert rig.joints_rad == pytest.approx(EMBODIMENT.arm.home_rad, abs=1e-6)
    speed = np.diff([t.joints_rad for t in rig.targets], axis=0) / PERIOD_S
    assert np.abs(speed).max() <= LIMITS.joint_velocity_rad_s + 1e-9
    acceleration = np.diff(speed, axis=0) / PERIOD_S
    assert np.abs(acceleration).max() <= LIMITS.joint_acceleration_rad_s2 * (1 + 1e-6)


@pytest.mark.parametrize("mode", [Mode.HOLD, Mode.POLICY])
def test_a_home_motion_of_the_joints_brakes_before_another_mode(mode):
    rig = Rig(joints_rad=np.array([0.0, 0.0, -0.2, 0.0, 0.0, 0.0]) / M_PER_RAD)
    rig.controller.home(rig.now_ns)
    rig.tick(30)
    rig.controller.set_mode(mode, rig.now_ns)
    rig.tick(30)
    assert rig.is_still()
    speed = np.diff([t.joints_rad for t in rig.targets], axis=0) / PERIOD_S
    acceleration = np.diff(speed, axis=0) / PERIOD_S
    assert np.abs(acceleration).max() <= LIMITS.joint_acceleration_rad_s2 * (1 + 1e-6)


# reasons to hold


def test_nothing_is_commanded_until_the_joints_are_known():
    controller = ArmController(EMBODIMENT, Gantry(), PERIOD_S)
    assert controller.tick(T0) is None
    assert controller.status.hold.reason is Reason.STATE_MISSING
    assert controller.set_mode(Mode.POLICY, T0).reason is ModeError.NO_STATE
    assert controller.home(T0).reason is Reason.STATE_MISSING


def test_stale_joint_state_holds_and_only_a_new_chunk_moves_again():
    rig = moving_rig()
    rig.is_reporting = False
    rig.tick(25)
    assert rig.status.hold.reason is Reason.STATE_STALE
    assert rig.controller.home(rig.now_ns).reason is Reason.STATE_STALE
    assert rig.is_still()
    num_executed = len(rig.executed)
    rig.chunk(step(x=0.02))
    assert rig.is_still()
    rig.is_reporting = True
    assert rig.is_still()
    assert rig.status.hold.reason is Reason.NO_CHUNK
    rig.chunk(step(x=-0.02))
    rig.tick(30)
    check_limits(rig)
    assert len(rig.executed) == num_executed + 1


def test_an_arm_that_is_not_where_it_was_told_is_held_where_it_is():
    rig = moving_rig()
    measured = rig.joints_rad - np.array([0, 0.4, 0, 0, 0, 0])
    for _ in range(CONFIRMATIONS):
        rig.joints_rad = measured
        rig.tick()
    assert np.array_equal(rig.joints_rad, measured)
    assert rig.status.hold.reason is Reason.TRACKING
    assert "shoulder" in rig.status.hold.detail
    assert "0.35" in rig.status.hold.detail
    assert rig.status.mode is Mode.HOLD
    rig.chunk(step(x=0.02))
    assert rig.is_still()
    assert rig.status.hold.reason is Reason.TRACKING


def test_a_measurement_is_compared_with_the_command_of_its_time():
    """A late joint state is no tracking error, however fast the arm moves."""
    embodiment = without_scale(safety={"max_tracking_error_rad": 0.05})
    rig = moving_rig(embodiment)
    before = rig.joints_rad
    rig.is_reporting = False
    rig.tick(10)
    assert np.abs(rig.joints_rad - before).max() > 0.05
    assert rig.status.is_moving


def test_silence_of_the_policy_stops_the_arm_within_the_age_of_its_image():
    """Standing still when the image is max_chunk_age old, however many steps are left."""
    embodiment = without_scale(action=n_step(50))
    rig = Rig(embodiment)
    rig.policy()
    stamp_ns = rig.now_ns
    rig.chunk(*[step(y=0.02)] * 50)
    max_age_ns = round(embodiment.action.max_chunk_age_s * 1e9)
    while rig.now_ns + PERIOD_NS <= stamp_ns + max_age_ns - 200_000_000:
        rig.tick()
        assert rig.status.is_moving
    while rig.now_ns + PERIOD_NS <= stamp_ns + max_age_ns:
        rig.tick()
    assert rig.status.hold.reason is Reason.CHUNK_STALE
    assert rig.is_still()
    check_limits(rig)


def test_a_refused_step_ends_its_chunk():
    rig = Rig(without_scale(workspace={"on_violation": "refuse"}))
    rig.policy()
    rig.chunk(step(z=-0.05), step(z=-0.05), step(z=-0.05), step(z=0.05))
    rig.tick(20)
    rig.chunk(step(z=-0.05), step(z=0.05))
    rig.tick(20)
    assert rig.status.hold.reason is Reason.WORKSPACE
    assert (rig.status.steps_executed, rig.status.steps_refused) == (2, 1)
    rig.chunk(step(z=0.05))
    rig.tick(2)
    assert rig.status.is_moving


def test_every_refusal_is_counted_with_its_last_detail():
    rig = Rig(without_scale())
    rig.policy()
    assert rig.chunk(step(x=np.nan)).reason is Reason.NON_FINITE
    assert rig.chunk(step(yaw=np.inf)).reason is Reason.NON_FINITE
    assert rig.chunk(step(), age_s=2.0).reason is Reason.CHUNK_STALE
    rig.chunk(step(x=0.06), step(x=0.07))
    rig.tick(20)
    assert rig.controller.rejections[Reason.NON_FINITE] == (2, "step 0: yaw is inf")
    count, detail = rig.controller.rejections[Reason.STEP_LIMIT]
    assert (count, "0.07" in detail) == (2, True)
    status = rig.status
    assert (status.chunks_accepted, status.chunks_refused, status.steps_clamped) == (1, 3, 2)
    assert status.last_refusal.reason is Reason.STEP_LIMIT


@pytest.mark.parametrize(
    ("joints_rad", "gripper", "reason"),
    [
        (np.full(6, np.nan), 1.0, Reason.NON_FINITE),
        (np.zeros(6), np.inf, Reason.NON_FINITE),
        (np.zeros(5), 1.0, Reason.WRONG_SHAPE),
    ],
)
def test_bad_measurements_are_refused_and_then_the_state_is_stale(joints_rad, gripper, reason):
    rig = moving_rig()
    rig.is_reporting = False
    for _ in range(20):
        rig.controller.on_state(ArmState(joints_rad, gripper, rig.now_ns))
        rig.tick()
    assert rig.status.hold.reason is Reason.STATE_STALE
    assert rig.controller.rejections[reason][0] == 20


@pytest.mark.parametrize("waist_rad", [2.9, 50.0])
def test_a_glitch_of_the_joint_state_moves_nothing(waist_rad):
    rig = Rig()
    before = rig.targets[-1].joints_rad
    glitch = before + np.array([waist_rad, 0, 0, 0, 0, 0])
    for _ in range(CONFIRMATIONS - 1):
        rig.now_ns += PERIOD_NS
        rig.controller.on_state(ArmState(glitch, 1.0, rig.now_ns))
        target = rig.controller.tick(rig.now_ns)
        assert np.array_equal(target.joints_rad, before)
    assert rig.is_still()
    assert rig.status.hold.reason is Reason.MODE_HOLD
    assert (Reason.JOINT_LIMIT in rig.controller.rejections) == (waist_rad > 10)


def test_one_measurement_is_not_enough_to_command_anything():
    controller = ArmController(EMBODIMENT, Gantry(), PERIOD_S)
    state = ArmState(np.array(EMBODIMENT.arm.home_rad), 1.0, T0)
    controller.on_state(state)
    assert controller.tick(T0) is None
    assert controller.status.hold.reason is Reason.STATE_MISSING


def test_a_driver_that_sets_no_stamp_is_named():
    controller = ArmController(EMBODIMENT, Gantry(), PERIOD_S)
    for _ in range(CONFIRMATIONS):
        controller.on_state(ArmState(np.array(EMBODIMENT.arm.home_rad), 1.0, 0))
    controller.tick(T0)
    assert controller.status.hold.reason is Reason.STATE_STALE
    assert controller.status.hold.detail == (
        "joint state: the stamp is zero: the driver does not set header.stamp"
    )


def test_only_a_hold_that_somebody_should_look_at_is_wrong():
    controller = ArmController(EMBODIMENT, Gantry(), PERIOD_S)
    controller.tick(T0)
    assert controller.status.hold.reason is Reason.STATE_MISSING
    assert not controller.status.is_wrong(active_s=1.0)  # the driver is still starting
    assert controller.status.is_wrong(active_s=4.0)
    rig = Rig()
    assert not rig.status.is_wrong(active_s=4.0)  # mode HOLD
    assert not moving_rig().status.is_wrong(active_s=4.0)
    rig.is_reporting = False
    rig.tick(50)
    assert rig.status.is_wrong(active_s=1.0)  # the joint state is stale


def test_an_older_measurement_does_not_replace_a_newer_one():
    rig = Rig()
    newest = rig.controller.state
    rig.controller.on_state(replace(newest, gripper=0.5, stamp_ns=newest.stamp_ns - PERIOD_NS))
    assert rig.controller.state is newest


def test_an_estop_keeps_the_grip():
    rig = moving_rig()
    rig.chunk(step(gripper=0.0))
    rig.tick(20)
    rig.controller.estop()
    rig.tick(5)
    assert rig.targets[-1].gripper == 0.0


# what cannot start


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workspace": None}, "workspace: the box is missing"),
        ({"arm": None}, "arm: the kinematic model is missing"),
        (
            {"arm": replace(EMBODIMENT.arm, home_rad=(0.0,) * 6)},
            "arm.home_rad: expected the tool in the box",
        ),
        (
            {"arm": replace(EMBODIMENT.arm, home_rad=(11.0,) * 6)},
            "arm.home_rad: expected joints within",
        ),
    ],
)
def test_no_controller_without(change, message):
    with pytest.raises(ValueError, match=message):
        ArmController(replace(EMBODIMENT, **change), Gantry(), PERIOD_S)


# whatever comes in


def check_limits(rig, rotation=True):
    """Box, velocity and acceleration per axis, joints, steps; an e-stop alone stops at once."""
    limits, rounding = rig.embodiment.limits, 1 + 1e-6
    position_m = np.array([t.pose.position_m for t in rig.targets])
    assert np.all(position_m >= BOX[0])
    assert np.all(position_m <= BOX[1])
    turns = [
        (b.pose.rotation * a.pose.rotation.inv()).as_rotvec()
        for a, b in zip(rig.targets[:-1], rig.targets[1:], strict=True)
    ]
    is_limited = np.ones(len(rig.targets), bool)
    for k in rig.stops:
        assert np.array_equal(rig.targets[k].joints_rad, rig.targets[k - 1].joints_rad)
        is_limited[k] = False
    for velocity, max_velocity, max_acceleration in (
        (np.diff(position_m, axis=0), limits.velocity_m_s, limits.acceleration_m_s2),
        (np.array(turns), limits.velocity_rad_s, limits.acceleration_rad_s2),
    )[: 2 if rotation else 1]:
        velocity = velocity / PERIOD_S
        acceleration = np.diff(velocity, axis=0)[is_limited[2:]] / PERIOD_S
        assert np.abs(velocity).max(initial=0.0) <= max_velocity * rounding
        assert np.abs(acceleration).max(initial=0.0) <= max_acceleration * rounding
    joints_rad = np.array([t.joints_rad for t in rig.targets])
    speed = np.abs(np.diff(joints_rad, axis=0)).max(initial=0.0) / PERIOD_S
    assert speed <= limits.joint_velocity_rad_s * rounding
    assert np.all(joints_rad >= rig.kinematics.lower_rad - 1e-9)
    assert np.all(joints_rad <= rig.kinematics.upper_rad + 1e-9)
    assert np.all([0.0 <= t.gripper <= 1.0 for t in rig.targets])
    for executed in rig.executed:
        assert np.abs(executed.delta.translation_m).max() <= limits.step_m * rounding
        assert np.abs(executed.delta.rotation_rad).max() <= limits.step_rad * rounding


SIZES = st.sampled_from([0.0, 1e-12, 1e-4, 0.01, 0.05, 0.3, 1e6, 1e300])
VALUES = st.tuples(SIZES, st.sampled_from([-1.0, 1.0, 0.37])).map(np.prod)
ODD_VALUES = st.one_of(VALUES, VALUES, VALUES, st.sampled_from([np.nan, np.inf, -np.inf]))
ACTIONS = st.lists(st.lists(VALUES, min_size=7, max_size=7), min_size=1, max_size=4)
ODD_ACTIONS = st.integers(6, 8).flatmap(
    lambda width: st.lists(st.lists(ODD_VALUES, min_size=width, max_size=width), max_size=3)
)
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 15),
        st.one_of(
            st.tuples(st.just("chunk"), ACTIONS, st.floats(0.0, 0.9)),
            st.tuples(st.just("chunk"), ACTIONS, st.floats(0.0, 0.3)),
            st.tuples(st.just("chunk"), ACTIONS, st.floats(-1.0, 2.0)),
            st.tuples(st.just("chunk"), ODD_ACTIONS, st.floats(-1.0, 2.0)),
            st.tuples(st.sampled_from(["hold", "policy", "policy", "home", "estop", "reset"])),
            st.tuples(st.just("reporting"), st.booleans()),
        ),
    ),
    min_size=1,
    max_size=25,
)


@settings(deadline=None)
@given(
    events=EVENTS,
    seeds=st.tuples(*[st.floats(0.0, 1.0)] * 6),
    reach_m=st.sampled_from([0.30, 0.36, 10.0]),
    on_violation=st.sampled_from(["clamp", "refuse"]),
    joint_velocity=st.sampled_from([0.4, 1.75]),
)
def test_whatever_comes_targets_keep_every_limit(
    events, seeds, reach_m, on_violation, joint_velocity
):
    """Any chunks, gaps, mode changes, e-stops and silences, from anywhere in the box."""
    # The joint-space part of homing has limits of its own, here too low to break those of poses.
    limits = {"joint_velocity_rad_s": joint_velocity, "joint_acceleration_rad_s2": 4.0}
    embodiment = gantry_embodiment(
        limits=limits, workspace={"on_violation": on_violation}, action=n_step(3)
    )
    start_m = BOX[0] + np.array(seeds[:3]) * (BOX[1] - BOX[0])
    start = np.concatenate([start_m / M_PER_RAD, np.array(seeds[3:]) * 2 - 1])
    rig = Rig(embodiment, Gantry(reach_m), start)
    rig.policy()
    for wait, event in events:
        happen(rig, *event)
        rig.tick(wait)
    rig.tick(10)
    has_homed = ("home",) in [event for _, event in events]
    check_limits(rig, rotation=not has_homed)


def happen(rig, what, *arguments):
    controller = rig.controller
    match what:
        case "chunk":
            actions, age_s = arguments
            rig.chunk(*actions, age_s=age_s)
        case "hold" | "policy":
            controller.set_mode(Mode[what.upper()], rig.now_ns)
        case "home":
            controller.home(rig.now_ns)
        case "estop":
            controller.estop()
            rig.stops.append(len(rig.targets))
        case "reset":
            controller.reset_estop()
        case "reporting":
            (rig.is_reporting,) = arguments


STRATEGIES = [
    {"execution": "first_only", "execute_steps": 1},
    {"execution": "n_step", "execute_steps": 3},
    {"execution": "blend", "execute_steps": 5},
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda each: each["execution"])
@settings(deadline=None, max_examples=30)
@given(
    signs=st.lists(st.tuples(*[st.sampled_from([-1.0, 0.3, 1.0])] * 6), min_size=3, max_size=12),
    waits=st.lists(st.integers(1, 13), min_size=12, max_size=12),
    ages=st.lists(st.floats(0.0, 0.7), min_size=12, max_size=12),
)
def test_the_target_is_continuous_where_contradictory_chunks_meet(strategy, signs, waits, ages):
    """Full steps, which take longer than their period, one way and then any other."""
    rig = Rig(without_scale(action=strategy))
    rig.policy()
    for sign_6, wait, age_s in zip(signs, waits, ages, strict=False):
        size_6 = np.repeat([LIMITS.step_m, LIMITS.step_rad], 3)
        rig.chunk(*[[*(sign_6 * size_6), 1.0]] * 5, age_s=age_s)
        rig.tick(wait)
    assert rig.executed
    check_limits(rig)


def jerky_motion(strategy, rng):
    """Sum of |acceleration| of the target over 60 steps, m/s^2 per axis, a chunk every step."""
    rig = Rig(without_scale(action=strategy))
    rig.policy()
    for _ in range(60):
        rig.chunk(*[step(y=0.002 + y, z=z) for y, z in rng.normal(size=(5, 2)) * 0.01])
        rig.tick(10)
    assert rig.status.steps_executed == 60
    assert rig.status.steps_clamped == 0
    check_limits(rig)
    position_m = np.array([t.pose.position_m for t in rig.targets])
    return np.abs(np.diff(position_m, n=2, axis=0)).sum(axis=0) / PERIOD_S**2


@pytest.mark.parametrize("seed", range(3))
def test_blending_calms_jittering_predictions(seed):
    first_only, _, blend = STRATEGIES
    rough = jerky_motion(first_only, np.random.default_rng(seed))
    calm = jerky_motion(blend, np.random.default_rng(seed))
    assert np.all(calm[1:] < 0.9 * rough[1:])


def test_the_real_arm_under_a_random_policy_keeps_every_limit():
    rig = Rig(BASE, MinkKinematics(BASE.arm))
    rng = np.random.default_rng(0)
    rig.policy()
    for _ in range(30):
        size = np.array([0.02] * 3 + [0.08] * 3 + [1.0])
        rig.chunk(*(rng.normal(size=(5, 7)) * size))
        rig.tick(20)
    assert rig.status.steps_executed > 20
    position_m = np.array([t.pose.position_m for t in rig.targets])
    assert np.ptp(position_m, axis=0).min() > 0.05
    for target in rig.targets[::10]:
        reached_m = rig.kinematics.forward(target.joints_rad).position_m
        assert reached_m == pytest.approx(target.pose.position_m, abs=1e-3)
    check_limits(rig)


def test_the_loop_monitor_counts_late_periods():
    monitor = LoopMonitor(PERIOD_S)
    for start_ms, work_ms in ((0, 3), (20, 5), (40, 4), (75, 1)):
        monitor.record(start_ms * 1_000_000, work_ms * 1_000_000)
    expected = {"worst jitter (ms)": 15.0, "worst work (ms)": 5.0, "overruns": 1.0}
    assert monitor.summary() == pytest.approx(expected)
    monitor.record(95 * 1_000_000, 2_000_000)
    expected = {"worst jitter (ms)": 0.0, "worst work (ms)": 2.0, "overruns": 1.0}
    assert monitor.summary() == pytest.approx(expected)
