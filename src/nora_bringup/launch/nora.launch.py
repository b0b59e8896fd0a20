"""ros2 launch nora_bringup nora.launch.py embodiment:=sim_widowx checkpoint:=FOLDER."""

import dataclasses

from launch.actions import (
    DeclareLaunchArgument,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchContext, LaunchDescription
from nora_bringup.graph import Options, fastdds_environment, node_specs, options_from_text
from nora_bringup.start_checks import require_startable
from nora_core.topics import NAMESPACE

DESCRIPTIONS = {
    "embodiment": "Robot: name of a file in config/embodiments, or a path ending in .yaml",
    "checkpoint": "Folder of the policy's checkpoint; empty: no policy node",
    "device": "Where the policy runs: auto, cpu or cuda",
    "head": "Head of the policy: auto (the embodiment's), flow or fast (tokens)",
    "sim": "Run the simulator: auto (if it is the embodiment's driver), true or false",
    "seed": "Seed of object placement (negative: 0) and of sampling noise (negative: random)",
    "record_dir": "Folder for the bags of episodes; empty: no recorder",
    "real_time_factor": "Simulated seconds per second; if not 1, all nodes use its /clock",
}


def start_nodes(context: LaunchContext) -> list[Node]:
    """One process per node of the graph; when one ends, all end."""
    values = {name: LaunchConfiguration(name).perform(context) for name in DESCRIPTIONS}
    options = options_from_text(values)
    require_startable(options)
    return [
        Node(
            package=spec.package,
            executable=spec.executable,
            name=spec.executable,
            namespace=NAMESPACE,
            parameters=[spec.parameters],
            output="screen",
            on_exit=Shutdown(reason=f"{spec.executable} ended"),
        )
        for spec in node_specs(options)
    ]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments with the defaults of `Options` and start the graph."""
    defaults = dataclasses.asdict(Options())
    return LaunchDescription(
        [
            *(SetEnvironmentVariable(*item) for item in fastdds_environment().items()),
            *(
                DeclareLaunchArgument(name, default_value=str(defaults[name]), description=text)
                for name, text in DESCRIPTIONS.items()
            ),
            OpaqueFunction(function=start_nodes),
        ]
    )
