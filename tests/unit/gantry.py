"""A fake arm with kinematics that can be checked by hand, and a fake of its servos."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from nora_core.embodiment import Embodiment
from nora_core.types import ActionChunk, Pose

CONFIG = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments"
PERIOD_S = 0.02
PERIOD_NS = 20_000_000
M_PER_RAD = 0.2
BASE = Embodiment.load(CONFIG / "sim_widowx.yaml")
NAMES = BASE.action.names


class Gantry:
    """Three rack-and-pinion axes (x y z) carrying a roll-pitch-yaw wrist (extrinsic x-y-z).

    Poses further than `reach_m` from the base have no joints.
    """

    def __init__(self, reach_m: float = 10.0) -> None:
        self.reach_m = reach_m
        self.lower_rad = np.full(6, -10.0)
        self.upper_rad = np.full(6, 10.0)

    def forward(self, joints_rad):
        rotation = Rotation.from_euler("xyz", joints_rad[3:])
        return Pose(joints_rad[:3] * M_PER_RAD, rotation)

    def inverse(self, target, seed_rad):
        if np.linalg.norm(target.position_m) > self.reach_m:
            return None
        rpy = target.rotation.as_euler("xyz")
        rpy += 2 * np.pi * np.round((seed_rad[3:] - rpy) / (2 * np.pi))
        return np.concatenate([target.position_m / M_PER_RAD, rpy])


def gantry_embodiment(**sections) -> Embodiment:
    """sim_widowx with the gantry's home; `section=dict(field=value)` changes more."""
    home = (1.4, 0.0, 0.7, 0.0, 0.0, 0.0)  # 0.28, 0, 0.14 m
    embodiment = replace(BASE, arm=replace(BASE.arm, home_rad=home))
    changed = {key: replace(getattr(embodiment, key), **sections[key]) for key in sections}
    return replace(embodiment, **changed)


def chunk(actions_TA, stamp_ns, **fields) -> ActionChunk:
    values = {"step_period_s": 0.2, "instruction": "go", "action_names": NAMES} | {
        "frame": BASE.action.frame,
        **fields,
    }
    return ActionChunk(actions_TA=np.array(actions_TA, np.float64), stamp_ns=stamp_ns, **values)


def step(gripper=1.0, **axes) -> list[float]:
    """One action by axis name, the others zero."""
    return [axes.get(name, 0.0) for name in NAMES[:6]] + [gripper]
