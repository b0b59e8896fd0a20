"""The `nora` command."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated, Any, cast

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from nora_bringup.bag_commands import Check, Repair, check_bags, repair_bags
from nora_bringup.clients import Estop, Home, Mode, Reset, Say, Start, Status, Stop, run_client
from nora_bringup.demo import Demo, run_demo
from nora_bringup.graph import Options, node_specs
from nora_bringup.standalone import run_until_ended
from nora_bringup.start_checks import problems
from nora_bringup.trials.command import Trials, run_trials
from nora_core.command import BAD_INPUT, run_command

DESCRIPTION = """NORA for ROS 2.

$ nora demo                                   a policy works through ten simulated scenes
$ nora up --checkpoint FOLDER                 run the nodes of a robot until Ctrl-C
$ nora status                                 what bridge and recorder do, in one line
$ nora mode policy                            let the policy move the arm; `hold` stops it
$ nora say "put the red cube on the plate"    give it an instruction
$ nora home                                   move the arm home
$ nora estop, nora reset                      emergency stop, and its release
$ nora record start "TEXT"                    start to record an episode
$ nora record stop --outcome success          end it, with its label
$ nora trials PROTOCOL --out FOLDER           the trials of a protocol, and their sheet
$ nora bags check FOLDER                      audit recorded bags
$ nora bags repair FOLDER                     rescue bags that were cut off"""


@dataclass(frozen=True, slots=True)
class Bags:
    """Audit recorded bags, or rescue those that were cut off."""

    command: (
        Annotated[Check, subcommand(name="check")] | Annotated[Repair, subcommand(name="repair")]
    )


@dataclass(frozen=True, slots=True)
class Recording:
    """Start and end the recording of an episode."""

    command: Annotated[Start, subcommand(name="start")] | Annotated[Stop, subcommand(name="stop")]


Command = (
    Annotated[Demo, subcommand(name="demo")]
    | Annotated[Options, subcommand(name="up")]
    | Annotated[Status, subcommand(name="status")]
    | Annotated[Mode, subcommand(name="mode")]
    | Annotated[Say, subcommand(name="say")]
    | Annotated[Home, subcommand(name="home")]
    | Annotated[Estop, subcommand(name="estop")]
    | Annotated[Reset, subcommand(name="reset")]
    | Annotated[Recording, subcommand(name="record")]
    | Annotated[Trials, subcommand(name="trials")]
    | Annotated[Bags, subcommand(name="bags")]
)


def main() -> None:
    """Run a subcommand, see `nora_core.command.run_command` for the exit codes."""
    run_command(_run)


def _run() -> int:
    command: Any = tyro.cli(
        cast("type[Any]", Command),
        prog="nora",
        description=DESCRIPTION,
        config=(OmitSubcommandPrefixes, OmitArgPrefixes),
    )
    if isinstance(command, Bags | Recording):
        command = command.command
    match command:
        case Demo():
            return run_demo(command)
        case Options():
            return _up(command)
        case Trials():
            run_trials(command)
            return 0
        case Check():
            return check_bags(command)
        case Repair():
            return repair_bags(command)
        case _:
            return run_client(command)


def _up(options: Options) -> int:
    """Run the nodes of an embodiment until Ctrl-C, as `ros2 launch` would."""
    if found := problems(options):
        for problem in found:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_INPUT
    return run_until_ended(node_specs(options))


if __name__ == "__main__":
    main()
