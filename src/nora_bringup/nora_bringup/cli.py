"""The `nora` command.

The modules behind its subcommands are imported only when they are needed: together they take
seconds, for which an emergency stop must not wait.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from nora_bringup.client_calls import run_client
from nora_bringup.clients import CLIENTS
from nora_core.command import BAD_INPUT, run_command

if TYPE_CHECKING:
    from nora_bringup.graph import Options

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


def main() -> None:
    """Run a subcommand, see `nora_core.command.run_command` for the exit codes."""
    run_command(_run)


def _run() -> int:
    if set(sys.argv[1:2]) & set(CLIENTS):
        return run_client(_parse(CLIENTS))
    return _run_other()


def _run_other() -> int:
    from nora_bringup.bag_commands import Bags, run_bags
    from nora_bringup.demo import Demo, run_demo
    from nora_bringup.graph import Options
    from nora_bringup.trials.command import Trials, run_trials

    others = {"demo": Demo, "up": Options, "trials": Trials, "bags": Bags}
    command = _parse({**others, **CLIENTS})
    match command:
        case Demo():
            return run_demo(command)
        case Options():
            return _up(command)
        case Trials():
            run_trials(command)
            return 0
        case _:
            return run_bags(command)


def _parse(commands: Mapping[str, type]) -> Any:
    """The options of the subcommand on the command line."""
    named = [Annotated[kind, subcommand(name=name)] for name, kind in commands.items()]
    either: Any = functools.reduce(operator.or_, named)
    config = (OmitSubcommandPrefixes, OmitArgPrefixes)
    return tyro.cli(either, prog="nora", description=DESCRIPTION, config=config)


def _up(options: Options) -> int:
    """Check everything that can be checked, then run the nodes until one ends."""
    from nora_bringup.graph import node_specs
    from nora_bringup.standalone import run_until_ended
    from nora_bringup.start_checks import problems

    if found := problems(options):
        for problem in found:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_INPUT
    return run_until_ended(node_specs(options))


if __name__ == "__main__":
    main()
