"""Modes and status of the arm bridge, as the controller reports them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

from nora_core.control.safety_gate import Delta
from nora_core.types import Reason, Rejection

NORMAL = frozenset({Reason.MODE_HOLD, Reason.NO_CHUNK, Reason.CHUNK_EXHAUSTED})
STATE_GRACE_S = 3.0


class Mode(IntEnum):
    """Equal to the MODE_ constants of `nora_msgs/msg/CommandStatus`."""

    HOLD = 0
    POLICY = 1
    HOMING = 2


class ModeError(IntEnum):
    """Equal to the response constants of `nora_msgs/srv/SetMode`."""

    NONE = 0
    NOT_ACTIVE = 1
    UNKNOWN_MODE = 2
    ESTOPPED = 3
    NO_STATE = 4


@dataclass(frozen=True, slots=True)
class Executed:
    """A policy step that started with the last tick, as executed."""

    delta: Delta
    start_ns: int
    observation_stamp_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the bridge reports as `nora_msgs/msg/CommandStatus`.

    `hold` is None while the arm moves, `last_refusal` until something was refused, and
    `observation_stamp_ns` while no step is played.
    """

    mode: Mode
    is_estopped: bool
    hold: Rejection[Reason] | None
    last_refusal: Rejection[Reason] | None
    chunks_accepted: int
    chunks_refused: int
    steps_executed: int
    steps_clamped: int
    steps_refused: int
    observation_stamp_ns: int | None

    @property
    def is_moving(self) -> bool:
        return self.hold is None

    def observation_age_s(self, now_ns: int) -> float:
        """Age of the image behind the step being played; NaN without one."""
        stamp_ns = self.observation_stamp_ns
        return math.nan if stamp_ns is None else (now_ns - stamp_ns) * 1e-9

    def message_fields(self, now_ns: int) -> dict[str, bool | int | float | str]:
        """All fields of a `CommandStatus` but its header, for the ROS node and for bags."""
        return {
            "mode": int(self.mode),
            "estopped": self.is_estopped,
            "is_moving": self.is_moving,
            "hold_reason": int(self.hold.reason if self.hold else Reason.NONE),
            "hold_detail": self.hold.detail if self.hold else "",
            "last_refusal": int(self.last_refusal.reason if self.last_refusal else Reason.NONE),
            "last_refusal_detail": self.last_refusal.detail if self.last_refusal else "",
            "chunks_accepted": self.chunks_accepted,
            "chunks_refused": self.chunks_refused,
            "steps_executed": self.steps_executed,
            "steps_clamped": self.steps_clamped,
            "steps_refused": self.steps_refused,
            "observation_age": self.observation_age_s(now_ns),
        }

    def is_wrong(self, active_s: float) -> bool:
        """Whether somebody should look, `active_s` after the bridge was activated.

        At every start it takes the arm's driver a moment until joint states come.
        """
        if self.hold is None or self.hold.reason in NORMAL:
            return False
        return self.hold.reason is not Reason.STATE_MISSING or active_s > STATE_GRACE_S
