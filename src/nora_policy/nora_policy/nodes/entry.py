"""Executable of the package: what has to happen before torch is imported."""

from nora_core.processes import end_quietly_when_told
from nora_policy.cpu_threads import sleep_at_barriers


def policy() -> None:
    """Run `ros2 run nora_policy policy`."""
    end_quietly_when_told()
    sleep_at_barriers()
    from nora_policy.nodes.policy import main

    main()
