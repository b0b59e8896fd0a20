"""The named types of the data chain, camera frame to action chunk (numpy layer).

Times are integer nanoseconds of the node clock (`*_ns`), lengths metres, angles radians.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Float64 = NDArray[np.float64]
ZERO_STAMP = "the stamp is zero: the driver does not set header.stamp"
ReasonT = TypeVar("ReasonT", bound=IntEnum)


@dataclass(frozen=True, slots=True)
class Rejection(Generic[ReasonT]):
    """A rule said no in normal operation: which one, and the value and the limit in words.

    Functions return `Rejection | None`; None means that the rule said yes.
    """

    reason: ReasonT
    detail: str


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera image, shape (H, W, 3) uint8 RGB, with the stamp of its capture."""

    rgb_HW3: NDArray[np.uint8]
    stamp_ns: int

    def __post_init__(self) -> None:
        rgb = self.rgb_HW3
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
            raise ValueError(
                f"frame: expected uint8 of shape (H, W, 3), got {rgb.dtype} of shape {rgb.shape}"
            )


@dataclass(frozen=True, slots=True)
class Observation:
    """What the policy sees: one image per camera, in the embodiment's order, and the instruction.

    `stamp_ns` is the stamp of the oldest image.
    """

    images: tuple[NDArray[np.uint8], ...]
    instruction: str
    stamp_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionChunk:
    """Relative end-effector steps in physical units.

    `actions_TA`: (T, A) float64; for A = 7: x y z [m] and roll pitch yaw [rad, extrinsic x-y-z]
    about the base axes, added to the previous commanded target, then the absolute gripper
    opening (0 closed ... 1 open). `stamp_ns` is the stamp of the image it was inferred from,
    `frame` the name of the base frame, `num_tokens` what the token head wrote for it.
    """

    actions_TA: Float64
    step_period_s: float
    stamp_ns: int
    instruction: str
    action_names: tuple[str, ...]
    frame: str
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Pose:
    """Pose of the tool in the robot base frame: position (3,) in m and orientation."""

    position_m: Float64
    rotation: Rotation


@dataclass(frozen=True, slots=True)
class ArmState:
    """Measured joints (J,) in rad, gripper opening (0 closed ... 1 open), stamp of measurement."""

    joints_rad: Float64
    gripper: float
    stamp_ns: int


class Reason(IntEnum):
    """Equal to the REASON_ constants of `nora_msgs/msg/CommandStatus`."""

    NONE = 0
    MODE_HOLD = 1
    ESTOP = 2
    NO_CHUNK = 3
    CHUNK_EXHAUSTED = 4
    CHUNK_STALE = 5
    STATE_MISSING = 6
    STATE_STALE = 7
    NON_FINITE = 8
    WRONG_SHAPE = 9
    OUT_OF_ORDER = 10
    WORKSPACE = 11
    STEP_LIMIT = 12
    IK = 13
    JOINT_LIMIT = 14
    TRACKING = 15
    MISMATCH = 16


class Outcome(IntEnum):
    """Equal to the constants of `nora_msgs/msg/TaskOutcome`; files hold `text`."""

    UNKNOWN = 0
    SUCCESS = 1
    PARTIAL = 2
    FAILURE = 3

    @property
    def text(self) -> str:
        """The name in lower case."""
        return self.name.lower()


class GoalError(IntEnum):
    """Equal to the result constants of `nora_msgs/action/ExecuteInstruction`."""

    NONE = 0
    TIMEOUT = 1
    CANCELLED = 2
    PREEMPTED = 3
    NOT_ACTIVE = 4
    INVALID_GOAL = 5
    NO_IMAGE = 6
    INFERENCE_FAILED = 7
