"""One YAML file per robot, read strictly into frozen dataclasses (numpy layer).

An unknown or missing key, a wrong type or a value out of range is a `ValueError` that names the
file, the key, what was expected and what was found. Units are in the field names.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nora_core import strict_yaml

GRIPPER_JOINT = "left_finger"  # its name among the joints of a driver


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A camera the policy sees.

    Its images are rotated clockwise by `rotation_deg`, then cropped to `crop` (top, left, height,
    width in px).
    """

    name: str
    topic: str
    encoding: Literal["rgb8", "bgr8"]
    max_age_s: float
    rotation_deg: Literal[0, 90, 180, 270] = 0
    crop: tuple[int, int, int, int] | None = None

    def __post_init__(self) -> None:
        _require_positive(self, "max_age_s")
        if self.crop is not None and (min(self.crop) < 0 or 0 in self.crop[2:]):
            raise ValueError(
                f"crop: expected top, left >= 0 and height, width > 0, got {self.crop}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """The action space, and how chunks are executed: at most `execute_steps` of each.

    `first_only`: the first step, then a newer chunk must be there; `n_step`: that many steps open
    loop, then the newest chunk; `blend`: the mean of the newest chunk and those before it.
    """

    names: tuple[str, ...]
    frame: str
    step_period_s: float
    statistics_key: str
    head: Literal["flow", "fast"]
    execution: Literal["first_only", "n_step", "blend"]
    execute_steps: int
    max_chunk_age_s: float

    def __post_init__(self) -> None:
        expected = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
        if self.names != expected:
            raise ValueError(f"names: expected {list(expected)}, got {list(self.names)}")
        _require_positive(self, "step_period_s", "execute_steps", "max_chunk_age_s")
        if self.execution == "first_only" and self.execute_steps != 1:
            raise ValueError(
                f"execute_steps: expected 1 with execution first_only, got {self.execute_steps}"
            )

    @property
    def gripper_index(self) -> int:
        """Which entry of a step is the gripper opening."""
        return self.names.index("gripper")


@dataclass(frozen=True, slots=True)
class Workspace:
    """Box that commanded tool positions never leave, base frame, m."""

    min_m: tuple[float, float, float]
    max_m: tuple[float, float, float]
    on_violation: Literal["clamp", "refuse"]

    def __post_init__(self) -> None:
        if not all(lo < hi for lo, hi in zip(self.min_m, self.max_m, strict=True)):
            raise ValueError(
                f"max_m: expected each entry above min_m {self.min_m}, got {self.max_m}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits per axis: of one policy step, and of the commanded target in time."""

    step_m: float
    step_rad: float
    velocity_m_s: float
    velocity_rad_s: float
    acceleration_m_s2: float
    acceleration_rad_s2: float
    joint_velocity_rad_s: float
    joint_acceleration_rad_s2: float

    def __post_init__(self) -> None:
        _require_positive(self, *(f.name for f in dataclasses.fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Kinematic model: an MJCF file of `nora_core/arms`, its joints and tool site."""

    model: str
    tool_site: str
    joint_names: tuple[str, ...]
    home_rad: tuple[float, ...]
    home_gripper: float

    def __post_init__(self) -> None:
        if len(self.home_rad) != len(self.joint_names):
            raise ValueError(
                f"home_rad: expected {len(self.joint_names)} values, got {len(self.home_rad)}"
            )
        if not 0.0 <= self.home_gripper <= 1.0:
            raise ValueError(f"home_gripper: expected 0 ... 1, got {self.home_gripper}")


@dataclass(frozen=True, slots=True)
class Gripper:
    """The driver's values of the closed (0) and the open (1) gripper, in `unit`."""

    closed: float
    open: float
    unit: str

    def __post_init__(self) -> None:
        if self.closed == self.open:
            raise ValueError(
                f"open: expected a value other than closed ({self.closed}), got {self.open}"
            )

    def to_driver(self, opening: float) -> float:
        """Opening, 0 closed ... 1 open, to the driver's value."""
        return self.closed + opening * (self.open - self.closed)

    def from_driver(self, value: float) -> float:
        """The driver's value to an opening."""
        return (value - self.closed) / (self.open - self.closed)


@dataclass(frozen=True, slots=True)
class DriverConfig:
    """Kind of the robot's driver, and the robot's own topics."""

    kind: Literal["sim"]
    command_topic: str
    state_topic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Safety:
    """When the bridge stops on its own, and how carefully it starts.

    The first `first_motion_steps` policy steps after entering POLICY mode are scaled by
    `first_motion_scale`. A measured joint further than `max_tracking_error_rad` from its command
    holds the arm where it is.
    """

    max_state_age_s: float
    max_tracking_error_rad: float
    first_motion_scale: float
    first_motion_steps: int

    def __post_init__(self) -> None:
        _require_positive(self, "max_state_age_s", "max_tracking_error_rad", "first_motion_scale")
        if self.first_motion_scale > 1.0:
            raise ValueError(
                f"first_motion_scale: expected 0 < x <= 1, got {self.first_motion_scale}"
            )
        if self.first_motion_steps < 0:
            raise ValueError(f"first_motion_steps: expected >= 0, got {self.first_motion_steps}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embodiment:
    """Everything that differs between two robots. `workspace: null` loads but never moves.

    `record`: topics that every episode must have; `record_optional`: recorded if they are there.
    """

    name: str
    cameras: tuple[Camera, ...]
    action: Action
    workspace: Workspace | None
    limits: Limits
    gripper: Gripper
    safety: Safety
    arm: Arm | None = None
    driver: DriverConfig | None = None
    record: tuple[str, ...] = ()
    record_optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ValueError("cameras: at least one is required")
        names = [camera.name for camera in self.cameras]
        if len(set(names)) != len(names):
            raise ValueError(f"cameras: expected distinct names, got {names}")
        if twice := sorted(set(self.record) & set(self.record_optional)):
            raise ValueError(f"record_optional: expected topics not in record, got {twice}")

    @property
    def is_simulated(self) -> bool:
        """Whether the arm is the simulator's."""
        return self.driver is not None and self.driver.kind == "sim"

    @classmethod
    def load(cls, path: Path) -> Embodiment:
        """Read `path`; raises `ValueError` or `FileNotFoundError` (naming what is there)."""
        if not path.is_file():
            available = sorted(p.stem for p in path.parent.glob("*.yaml"))
            raise FileNotFoundError(f"{path}: no such embodiment file, available: {available}")
        try:
            return strict_yaml.build(cls, strict_yaml.load_yaml(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def training_mismatches(expected: Embodiment, got: Embodiment) -> list[str]:
    """One line for everything that differs and that a network is trained for."""
    a, b = _trained(expected), _trained(got)
    return [f"{name}: expected {a[name]}, got {b[name]}" for name in a if a[name] != b[name]]


def _trained(embodiment: Embodiment) -> dict[str, object]:
    action = embodiment.action
    names = ("names", "frame", "step_period_s", "statistics_key")
    return {
        **{f"action.{name}": getattr(action, name) for name in names},
        "cameras": [camera.name for camera in embodiment.cameras],
    }


def _require_positive(obj: object, *names: str) -> None:
    for name in names:
        value = getattr(obj, name)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}: expected a positive finite number, got {value}")
