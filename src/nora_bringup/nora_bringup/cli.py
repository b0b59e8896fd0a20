"""The `nora` command."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import FrameType

import tyro

from nora_bringup.bag_commands import Check, Repair, check_bags, repair_bags
from nora_bringup.demo import Demo, run_demo
from nora_bringup.graph import Options, node_specs
from nora_bringup.standalone import run_until_ended
from nora_bringup.trials.command import Trials, run_trials


def main() -> None:
    """Run a subcommand; bad input is one line and exit code 2, Ctrl-C is a clean end."""
    # Both, because a shell that starts a job in the background has it ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            {"demo": _demo, "up": _up, "bags": _bags, "trials": _trials},
            description="NORA for ROS 2",
        )
    except KeyboardInterrupt:
        print("\nstopped")
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(command)


def _demo(demo: tyro.conf.OmitArgPrefixes[Demo]) -> int:
    """A policy in closed loop in simulation: a trial sheet, a video and plots."""
    return run_demo(demo)


def _up(options: tyro.conf.OmitArgPrefixes[Options]) -> int:
    """Run the nodes of an embodiment until Ctrl-C, as `ros2 launch` would."""
    return run_until_ended(node_specs(options))


def _bags(command: tyro.conf.OmitSubcommandPrefixes[Repair | Check]) -> int:
    """Audit recorded bags, or rescue those that were cut off."""
    match command:
        case Repair():
            return repair_bags(command)
        case Check():
            return check_bags(command)


def _trials(trials: tyro.conf.OmitArgPrefixes[Trials]) -> int:
    """The trials of a protocol through the running nodes, and their sheet."""
    run_trials(trials)
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
