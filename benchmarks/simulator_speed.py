"""How fast the simulator runs at 5 Hz control with one 224x224 image per step.

python benchmarks/simulator_speed.py [num_steps]
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
from machine import processor

from nora_core.control.kinematics import MinkKinematics
from nora_core.embodiment import Embodiment
from nora_core.sim.rendering import select_backend
from nora_core.sim.simulator import Simulator
from nora_core.types import Float64, Pose

CONFIG = Path(__file__).parents[1] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
IMAGE_HW = (224, 224)
WARM_UP_STEPS = 20
STEPS_PER_EPISODE = 60
BRIDGE_PERIOD_S = 0.02  # one inverse kinematics and one command per period, as the bridge does
PARTS = ("kinematics", "physics", "render")


def measure(num_steps: int) -> Float64:
    """Seconds spent per control step, (num_steps, 3): kinematics, physics with judge, render."""
    embodiment = Embodiment.load(CONFIG)
    assert embodiment.arm is not None
    period_s = embodiment.action.step_period_s
    kinematics = MinkKinematics(embodiment.arm)
    sim = Simulator(embodiment, IMAGE_HW)
    rng = np.random.default_rng(0)
    seconds = np.zeros((num_steps, len(PARTS)))
    center_m = kinematics.forward(np.array(embodiment.arm.home_rad)).position_m
    for i in range(num_steps):
        if i % STEPS_PER_EPISODE == 0:
            sim.reset(i, "put the red cube on the plate")
            joints_rad = sim.arm_state().joints_rad
            pose = kinematics.forward(joints_rad)
        delta_m = rng.uniform(-0.02, 0.02, 3) + 0.2 * (center_m - pose.position_m)
        num_periods = round(period_s / BRIDGE_PERIOD_S)
        for _ in range(num_periods):
            start = time.perf_counter()
            pose = Pose(pose.position_m + delta_m / num_periods, pose.rotation)
            found = kinematics.inverse(pose, joints_rad)
            joints_rad = joints_rad if found is None else found
            solved = time.perf_counter()
            sim.command(joints_rad, float(i % 10 < 5))
            sim.step(BRIDGE_PERIOD_S)
            seconds[i, :2] += solved - start, time.perf_counter() - solved
        start = time.perf_counter()
        sim.render()
        seconds[i, 2] = time.perf_counter() - start
    sim.close()
    return seconds[WARM_UP_STEPS:] / period_s


def main() -> None:
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    load = measure(num_steps)  # seconds of work per second simulated
    total = load.sum(axis=1)
    slow, fast = np.percentile(1 / total, [5, 50])
    height, width = IMAGE_HW
    print(f"machine    {os.cpu_count()} x {processor()}")
    print(
        f"backend    {select_backend()}, {height}x{width}, no shadows, {len(load)} steps of 5 Hz"
    )
    print(f"speed      p50 {fast:.1f} x real time, slowest 5 % below {slow:.1f} x")
    print(f"{'part':<11}{'p50 ms':>8}{'p95 ms':>8}{'share':>8}   per control step")
    for name, values in zip(PARTS, load.T, strict=True):
        p50, p95 = np.percentile(values, [50, 95]) * 200
        print(f"{name:<11}{p50:8.2f}{p95:8.2f}{values.sum() / total.sum():8.0%}")


if __name__ == "__main__":
    main()
