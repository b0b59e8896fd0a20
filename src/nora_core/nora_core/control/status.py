"""Modes and status of the arm bridge, as the controller reports them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from nora_core.control.safety_gate import Delta, Reason, Refusal


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
    """A policy step that started with this tick, as executed."""

    delta: Delta
    start_ns: int
    observation_stamp_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """As `nora_msgs/msg/CommandStatus`; `observation_stamp_ns` is None when no step is played."""

    mode: Mode
    is_estopped: bool
    hold: Refusal
    last_refusal: Refusal
    chunks_accepted: int
    chunks_refused: int
    steps_executed: int
    steps_clamped: int
    steps_refused: int
    observation_stamp_ns: int | None

    @property
    def is_moving(self) -> bool:
        return self.hold.reason is Reason.NONE
