"""Thin clients of the nodes, for machines without the `ros2` command.

Exit codes: 0 done, 1 refused by a node (its message is printed), 2 bad input or no answer.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

DONE, REFUSED, NO_ANSWER = 0, 1, 2


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


def run_client(command: Command | Recording) -> int:
    """Run one command; its exit code.

    Raises:
        ValueError: bad input, before anything is sent.
    """
    if isinstance(command, Recording):
        command = command.command
    _require_sensible(command)
    from nora_bringup.client_calls import Client  # these import rclpy
    from nora_bringup.client_node import client_node

    with client_node("cli") as node:
        try:
            return Client(node).run(command)
        except TimeoutError as error:
            print(f"error: {error}", file=sys.stderr)
            return NO_ANSWER


def _require_sensible(command: Command) -> None:
    if not command.timeout > 0:
        raise ValueError(f"timeout: expected more than 0, got {command.timeout}")
    if isinstance(command, Say | Home) and not command.seconds > 0:
        raise ValueError(f"seconds: expected more than 0, got {command.seconds}")
    if isinstance(command, Say) and not (command.text.strip() or command.topic):
        raise ValueError("text: the instruction is empty; with --topic, that stops the policy")
    if isinstance(command, Start) and not command.instruction.strip():
        raise ValueError("instruction: it is empty")
    if isinstance(command, Stop) and command.distractor_grasps < 0:
        raise ValueError(f"distractor-grasps: expected 0 or more, got {command.distractor_grasps}")
