"""Executables of the package; Ctrl-C while they import MuJoCo and rclpy prints nothing."""

from nora_core.processes import end_quietly_when_told


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
