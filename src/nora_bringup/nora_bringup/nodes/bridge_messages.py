"""The bridge's messages, from its types."""

from __future__ import annotations

import math

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import Vector3
from nora_msgs.msg import CommandStatus, EndEffectorDelta

from nora_core.control.safety_gate import Reason
from nora_core.control.status import Executed, Status
from nora_core.ros import convert

# Nothing is wrong with a bridge that holds for one of these reasons.
CALM = {Reason.NONE, Reason.MODE_HOLD, Reason.NO_CHUNK, Reason.CHUNK_EXHAUSTED}


def status_to_msg(status: Status, now_ns: int, frame_id: str) -> CommandStatus:
    return CommandStatus(
        header=convert.header(now_ns, frame_id),
        mode=int(status.mode),
        estopped=status.is_estopped,
        is_moving=status.is_moving,
        hold_reason=int(status.hold.reason),
        hold_detail=status.hold.detail,
        last_refusal=int(status.last_refusal.reason),
        last_refusal_detail=status.last_refusal.detail,
        chunks_accepted=status.chunks_accepted,
        chunks_refused=status.chunks_refused,
        steps_executed=status.steps_executed,
        steps_clamped=status.steps_clamped,
        steps_refused=status.steps_refused,
        observation_age=observation_age_s(status, now_ns),
    )


def observation_age_s(status: Status, now_ns: int) -> float:
    stamp_ns = status.observation_stamp_ns
    return math.nan if stamp_ns is None else (now_ns - stamp_ns) * 1e-9


def command_to_msg(executed: Executed, frame_id: str) -> EndEffectorDelta:
    return EndEffectorDelta(
        header=convert.header(executed.start_ns, frame_id),
        translation=_vector(executed.delta.translation_m.tolist()),
        rotation=_vector(executed.delta.rotation_rad.tolist()),
        gripper=executed.delta.gripper,
        observation_stamp=convert.to_time(executed.observation_stamp_ns),
    )


def diagnostic(
    name: str,
    status: Status,
    refusals: dict[Reason, tuple[int, str]],
    values: dict[str, float],
) -> DiagnosticStatus:
    """Health of the bridge: mode, every rule that ever refused, and the given numbers."""
    level = DiagnosticStatus.OK if status.hold.reason in CALM else DiagnosticStatus.WARN
    if status.is_estopped:
        level = DiagnosticStatus.ERROR
    entries = {"mode": status.mode.name, **{key: f"{values[key]:.4g}" for key in values}}
    for reason, (count, detail) in sorted(refusals.items()):
        entries[f"refused {reason.name}"] = f"{count}, last: {detail}"
    return DiagnosticStatus(
        level=level,
        name=name,
        message=status.hold.detail or "moving",
        values=[KeyValue(key=key, value=value) for key, value in entries.items()],
    )


def _vector(values: list[float]) -> Vector3:
    x, y, z = values
    return Vector3(x=x, y=y, z=z)
