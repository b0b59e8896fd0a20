"""Executables of the package: quiet on Ctrl-C while MuJoCo and rclpy are being imported."""

from nora_policy.nodes.signals import end_quietly_when_told


def bridge() -> None:
    """Run `ros2 run nora_bringup bridge`."""
    end_quietly_when_told()
    from nora_bringup.bridge.node import main

    main()


def recorder() -> None:
    """Run `ros2 run nora_bringup recorder`."""
    end_quietly_when_told()
    from nora_bringup.recorder.node import main

    main()


def sim() -> None:
    """Run `ros2 run nora_bringup sim`."""
    end_quietly_when_told()
    from nora_bringup.sim_node import main

    main()
