"""Executable of the package: quiet on Ctrl-C while torch is being imported."""

from nora_core.ros.signals import end_quietly_when_told


def policy() -> None:
    """Run `ros2 run nora_policy policy`."""
    end_quietly_when_told()
    from nora_policy.nodes.policy import main

    main()
