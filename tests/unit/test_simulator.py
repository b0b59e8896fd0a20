"""The simulator: repeatable, on time, true to its commands, clear about bad input."""

from __future__ import annotations

import ctypes.util
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nora_core.control.kinematics import MinkKinematics
from nora_core.embodiment import Embodiment
from nora_core.sim import rendering, simulator
from nora_core.sim.pacing import Pacer
from nora_core.sim.simulator import Simulator
from nora_core.types import Pose

CONFIG = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
EMBODIMENT = Embodiment.load(CONFIG)
INSTRUCTION = "put the red cube on the plate"
ALL_NAMES = (
    *("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"),
    "left_finger",
)


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulator]:
    sim = Simulator(EMBODIMENT, image_hw=(96, 128))
    yield sim
    sim.close()


def home_rad() -> np.ndarray:
    assert EMBODIMENT.arm is not None
    return np.array(EMBODIMENT.arm.home_rad)


def test_same_seed_same_scene_states_and_images(sim: Simulator) -> None:
    def rollout(seed: int) -> tuple[np.ndarray, np.ndarray]:
        sim.reset(seed, INSTRUCTION)
        sim.command(home_rad() + 0.2, 0.0)
        sim.step(0.5)
        positions_m = np.concatenate(list(sim.object_positions.values()))
        return np.concatenate([sim.arm_state().joints_rad, positions_m]), sim.render()

    state, image = rollout(1)
    other_state, other_image = rollout(2)
    same_state, same_image = rollout(1)
    np.testing.assert_array_equal(state, same_state)
    np.testing.assert_array_equal(image, same_image)
    assert (state != other_state).any()
    assert (image != other_image).any()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_things_start_apart_and_within_their_area(sim: Simulator, seed: int) -> None:
    sim.reset(seed, INSTRUCTION)
    positions_m = np.array(list(sim.object_positions.values()))
    assert (positions_m[:, :2] >= simulator.PLACEMENT_MIN_M).all()
    assert (positions_m[:, :2] <= simulator.PLACEMENT_MAX_M).all()
    gaps_m = np.linalg.norm(positions_m[:, None, :2] - positions_m[None, :, :2], axis=-1)
    assert gaps_m[np.triu_indices(len(positions_m), 1)].min() > 2 * 0.02 + 0.045


@pytest.mark.parametrize("seed", range(5))
def test_nothing_moves_by_itself(sim: Simulator, seed: int) -> None:
    sim.reset(seed, INSTRUCTION)
    before = sim.object_positions
    sim.step(3.0)
    for name, position_m in sim.object_positions.items():
        np.testing.assert_allclose(position_m, before[name], atol=1e-3)
    np.testing.assert_allclose(sim.arm_state().joints_rad, home_rad(), atol=1e-3)


def test_time_counts_ticks_and_survives_a_reset(sim: Simulator) -> None:
    start_ns = sim.time_ns
    for _ in range(100):
        sim.step(0.02)
    sim.reset(0, INSTRUCTION)
    sim.step(0.2)
    assert sim.time_ns - start_ns == 2_200_000_000
    assert sim.arm_state().stamp_ns == sim.time_ns


def test_tool_follows_a_policy_step_within_5_mm(sim: Simulator) -> None:
    """At 0.2 m/s, faster than most policy steps, with targets at the 50 Hz of the bridge."""
    assert EMBODIMENT.arm is not None
    kinematics = MinkKinematics(EMBODIMENT.arm)
    sim.reset(0, INSTRUCTION)
    joints_rad = sim.arm_state().joints_rad
    start = kinematics.forward(joints_rad)
    for k in range(1, 31):
        target = Pose(start.position_m + np.array([0.0, 0.004, -0.004]) * k, start.rotation)
        found = kinematics.inverse(target, joints_rad)
        assert found is not None
        joints_rad = found
        sim.command(joints_rad, 1.0)
        sim.step(0.02)
        reached = kinematics.forward(sim.arm_state().joints_rad)
        assert np.linalg.norm(reached.position_m - target.position_m) < 5e-3


def test_joints_keep_to_the_speed_of_the_servos(sim: Simulator) -> None:
    sim.reset(0, INSTRUCTION)
    sim.command(home_rad() + np.array([1.5, 0, 0, 0, 0, 0]), 1.0)
    previous = sim.arm_state().joints_rad
    for _ in range(60):
        sim.step(0.01)
        now = sim.arm_state().joints_rad
        assert np.abs(now - previous).max() / 0.01 < 1.1 * simulator.JOINT_SPEED_RAD_S
        previous = now
    assert now[0] == pytest.approx(1.5, abs=1e-2)


@pytest.mark.parametrize("opening", [0.0, 0.5, 1.0])
def test_gripper_opens_as_commanded(sim: Simulator, opening: float) -> None:
    sim.reset(0, INSTRUCTION)
    sim.command(home_rad(), opening)
    sim.step(1.0)
    assert sim.arm_state().gripper == pytest.approx(opening, abs=0.03)


@pytest.mark.parametrize(
    ("joints_rad", "gripper"),
    [
        (np.full(6, np.nan), 1.0),
        (np.array([0, 0, np.inf, 0, 0, 0]), 1.0),
        (np.zeros(6), np.nan),
        (np.zeros(5), 1.0),
    ],
)
def test_bad_command_is_refused_and_changes_nothing(
    sim: Simulator, joints_rad: np.ndarray, gripper: float
) -> None:
    sim.reset(0, INSTRUCTION)
    with pytest.raises(ValueError, match="command: expected"):
        sim.command(joints_rad, gripper)
    sim.step(0.2)
    np.testing.assert_allclose(sim.arm_state().joints_rad, home_rad(), atol=1e-3)


def test_command_by_name_takes_any_order_and_the_unit_of_the_driver(sim: Simulator) -> None:
    assert EMBODIMENT.arm is not None
    sim.reset(0, INSTRUCTION)
    goal = home_rad() + 0.1
    values = dict(zip(EMBODIMENT.arm.joint_names, goal.tolist(), strict=True))
    values["left_finger"] = 0.026  # m: half open
    names = sorted(values)
    sim.command_by_name(names, [values[name] for name in names])
    sim.step(1.0)
    np.testing.assert_allclose(sim.arm_state().joints_rad, goal, atol=1e-3)
    assert sim.arm_state().gripper == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("names", "num_positions"),
    [
        (ALL_NAMES[:-1], 6),
        (("waist", *ALL_NAMES[:-1]), 7),
        (("hip", *ALL_NAMES[1:]), 7),
        (ALL_NAMES, 6),
        ((), 0),
    ],
)
def test_misnamed_command_is_refused(
    sim: Simulator, names: tuple[str, ...], num_positions: int
) -> None:
    with pytest.raises(ValueError, match="command: expected one position for each"):
        sim.command_by_name(names, [0.0] * num_positions)


@pytest.mark.parametrize("duration_s", [0.0, -0.1, 0.001, 0.015, float("nan"), float("inf")])
def test_odd_duration_is_refused(sim: Simulator, duration_s: float) -> None:
    with pytest.raises(ValueError, match="step: expected a multiple"):
        sim.step(duration_s)


def test_bad_instruction_leaves_the_scene(sim: Simulator) -> None:
    sim.reset(3, INSTRUCTION)
    before = sim.object_positions
    with pytest.raises(ValueError, match="available"):
        sim.reset(4, "put the moon on the plate")
    np.testing.assert_array_equal(before["plate"], sim.object_positions["plate"])
    assert sim.task_state.instruction == INSTRUCTION


def test_every_object_shows_in_the_picture(sim: Simulator) -> None:
    """Pure colours, ten pixels across at 96 lines at least somewhere in every scene."""
    for seed in range(5):
        sim.reset(seed, INSTRUCTION)
        image = sim.render().astype(int)
        assert image.shape == (96, 128, 3)
        for channel in range(3):
            others = np.delete(image, channel, axis=2).max(axis=2)
            assert (image[..., channel] > 2 * others).sum() > 25, (seed, channel)


def test_unknown_camera_says_what_there_is(sim: Simulator) -> None:
    with pytest.raises(ValueError, match=r"available.*primary"):
        sim.render("ceiling")


def test_another_arm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"arm.model: expected wx250s.xml.*got None"):
        Simulator(dataclasses.replace(EMBODIMENT, arm=None))


@pytest.mark.parametrize("choice", rendering.BACKENDS)
def test_backend_chosen_by_hand_is_respected(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setenv("MUJOCO_GL", choice.upper())
    assert rendering.select_backend() == choice


def test_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(ValueError, match=r"MUJOCO_GL: expected one of .*got 'vulkan'"):
        rendering.select_backend()


def test_machine_without_any_backend_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_has_egl_device", lambda: False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(OSError, match=r"apt-get install libegl1.*libosmesa6"):
        rendering.select_backend()


@pytest.mark.skipif(ctypes.util.find_library("OSMesa") is None, reason="libosmesa6 is not here")
def test_osmesa_draws_the_scene() -> None:
    code = (
        "from pathlib import Path\n"
        "from nora_core.sim.simulator import Simulator\n"
        "from nora_core.embodiment import Embodiment\n"
        f"print(Simulator(Embodiment.load(Path({str(CONFIG)!r}))).render().mean())\n"
    )
    env = {**os.environ, "MUJOCO_GL": "osmesa", "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("PYOPENGL_PLATFORM", None)  # mujoco sets it for its children when it takes EGL
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert 60 < float(done.stdout) < 200


def test_a_renderer_left_open_ends_in_silence() -> None:
    code = (
        "import tempfile\n"
        "folder = tempfile.TemporaryDirectory()\n"  # finalizers are at work before mujoco's
        "from pathlib import Path\n"
        "from nora_core.sim.simulator import Simulator\n"
        "from nora_core.embodiment import Embodiment\n"
        f"kept = Simulator(Embodiment.load(Path({str(CONFIG)!r})))\n"
        "kept.render()\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@given(
    gaps_ns=st.lists(st.integers(0, 100_000_000), max_size=50),
    factor=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_pacer_keeps_up_or_says_what_it_dropped(gaps_ns: list[int], factor: float) -> None:
    period_ns, now_ns, done, dropped = 20_000_000, 5, 0, 0
    pacer = Pacer(period_ns, factor, max_periods=3)
    assert pacer.due(now_ns) == (0, 0)
    for gap_ns in gaps_ns:
        now_ns += gap_ns
        due, lost = pacer.due(now_ns)
        assert due <= 3
        assert lost == 0 or due == 3
        done, dropped = done + due, dropped + lost
        owed_ns = (now_ns - 5) * factor - (done + dropped) * period_ns
        assert -len(gaps_ns) <= owed_ns < period_ns + len(gaps_ns)  # rounding of each gap
