"""Options of the client commands of `nora`, for machines without the `ros2` command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """Give the policy an instruction, wait until it ends and show its progress.

    Ctrl-C cancels it.

    Attributes:
        text: the instruction, for example "put the red cube on the plate".
        seconds: time limit.
        topic: publish it on the topic `instruction` instead and return at once; it then holds
            until the next one, and an empty text stops the policy.
        timeout: seconds to wait for the policy node.
    """

    text: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEXT")]
    seconds: float = 30.0
    topic: tyro.conf.FlagCreatePairsOff[bool] = False
    timeout: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """Set the mode of the bridge: hold the pose, or follow the policy.

    Attributes:
        mode: the new mode.
        timeout: seconds to wait for the bridge.
    """

    mode: tyro.conf.Positional[Literal["hold", "policy"]]
    timeout: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Move the arm to its home pose; returns when it is there.

    Attributes:
        seconds: time limit of the motion.
        timeout: seconds to wait for the bridge.
    """

    seconds: float = 60.0
    timeout: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estop:
    """Stop the arm; it stays stopped until `nora reset`.

    Attributes:
        timeout: seconds to wait for the bridge.
    """

    timeout: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Release the emergency stop; the arm holds its pose.

    Attributes:
        timeout: seconds to wait for the bridge.
    """

    timeout: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start to record an episode.

    Attributes:
        instruction: the task.
        notes: free text for the label.
        timeout: seconds to wait for the recorder.
    """

    instruction: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TEXT")]
    notes: str = ""
    timeout: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the episode, label and audit it.

    Attributes:
        outcome: how the task ended.
        distractor_grasps: number of grasps of another object.
        notes: appended to the notes of the start.
        discard: delete the episode instead.
        timeout: seconds to wait for the recorder, which finishes the bag first.
    """

    outcome: Literal["unknown", "success", "partial", "failure"] = "unknown"
    distractor_grasps: int = 0
    notes: str = ""
    discard: tyro.conf.FlagCreatePairsOff[bool] = False
    timeout: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Print the state of bridge and recorder in one line.

    Attributes:
        watch: print a line every second until Ctrl-C.
        timeout: seconds to wait for the bridge.
    """

    watch: tyro.conf.FlagCreatePairsOff[bool] = False
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class Recording:
    """Start and end the recording of an episode."""

    command: (
        Annotated[Start, tyro.conf.subcommand(name="start")]
        | Annotated[Stop, tyro.conf.subcommand(name="stop")]
    )


Command = Say | Mode | Home | Estop | Reset | Start | Stop | Status
CLIENTS: dict[str, type] = {
    "status": Status,
    "mode": Mode,
    "say": Say,
    "home": Home,
    "estop": Estop,
    "reset": Reset,
    "record": Recording,
}
