"""Executables of the package; Ctrl-C while they import their modules prints nothing."""

import os
import signal

from nora_core.command import INTERRUPTED
from nora_core.processes import end_quietly_when_told


def nora() -> None:
    """Run the `nora` command; `run_command` replaces the signal handler once it is imported."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from nora_bringup.cli import main

    main()


def bridge() -> None:
    """Run `ros2 run nora_bringup bridge`."""
    end_quietly_when_told()
    from nora_bringup.nodes.bridge import main

    main()


def recorder() -> None:
    """Run `ros2 run nora_bringup recorder`."""
    end_quietly_when_told()
    from nora_bringup.nodes.recorder import main

    main()


def sim() -> None:
    """Run `ros2 run nora_bringup sim`."""
    end_quietly_when_told()
    from nora_bringup.nodes.sim import main

    main()
