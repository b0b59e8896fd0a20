"""The process graph as data: which nodes run for an embodiment, with which parameters.

`launch/nora.launch.py` turns it into launch actions, `standalone.py` into child processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file, share

Device = Literal["auto", "cpu", "cuda"]
Head = Literal["auto", "flow", "fast"]
Switch = Literal["auto", "true", "false"]
CHOICES = {"device": get_args(Device), "head": get_args(Head), "sim": get_args(Switch)}


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One process: an installed executable (as in `ros2 run`) and its parameters."""

    package: str
    executable: str
    parameters: dict[str, bool | int | float | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Run the nodes of a robot until Ctrl-C, as `ros2 launch` would.

    Attributes:
        embodiment: name of a file in config/embodiments, or a path ending in .yaml.
        checkpoint: folder of the policy's checkpoint; empty: no policy node.
        device: where the policy runs.
        head: flow (action expert) or fast (tokens); auto: the embodiment's.
        sim: run the simulator; auto: if it is the embodiment's driver.
        seed: of the object placement (negative: 0) and of the sampling noise (negative: random).
        record_dir: folder for the bags of episodes; empty: no recorder.
        real_time_factor: simulated seconds per second; if it is not 1, every node uses the
            simulator's clock.
    """

    embodiment: str = "sim_widowx"
    checkpoint: str = ""
    device: Device = "auto"
    head: Head = "auto"
    sim: Switch = "auto"
    seed: int = -1
    record_dir: str = ""
    real_time_factor: float = 1.0

    @property
    def use_sim_time(self) -> bool:
        """Whether the clock is the simulator's."""
        return self.real_time_factor != 1.0


def fastdds_environment() -> dict[str, str]:
    """Variables that make Fast DDS use the suite's profile (Jazzy reads the first one).

    Without it, a third of the best-effort images is lost and discovery sometimes takes 3 s.
    """
    profile = str(share() / "config/fastdds.xml")
    return {
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
    }


def options_from_text(values: Mapping[str, str]) -> Options:
    """Options from launch arguments. Raises `ValueError` that names the argument."""
    numbers: dict[str, int | float] = {}
    for name, kind in (("seed", int), ("real_time_factor", float)):
        try:
            numbers[name] = kind(values[name])
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"{name}: expected {what}, got {values[name]!r}") from None
    return Options(**{**values, **numbers})  # type: ignore[arg-type]


def node_specs(options: Options) -> tuple[NodeSpec, ...]:
    """The nodes to run; the bridge, which holds the arm, comes before the policy.

    Raises:
        ValueError, FileNotFoundError: the embodiment file is wrong, an option has a value that
            it cannot have, or a real robot is asked to simulate.
    """
    path = embodiment_file(options.embodiment)
    embodiment = Embodiment.load(path)
    for name, choices in CHOICES.items():  # a launch argument can be any text
        if getattr(options, name) not in choices:
            raise ValueError(
                f"{name}: expected {', '.join(choices[:-1])} or {choices[-1]}, "
                f"got {getattr(options, name)!r}"
            )
    has_simulator = _has_simulator(options.sim, embodiment)
    _require_possible(options.real_time_factor, has_simulator)
    common: dict[str, bool | int | float | str] = {"embodiment_file": str(path)}
    specs = []
    if has_simulator:
        simulated = {**common, "seed": max(options.seed, 0)}
        if options.use_sim_time:
            simulated |= {"publish_clock": True, "real_time_factor": options.real_time_factor}
        specs.append(NodeSpec("nora_bringup", "sim", simulated))
    if options.use_sim_time:
        common["use_sim_time"] = True
    specs.append(NodeSpec("nora_bringup", "bridge", common))
    driven_by = {}
    if options.checkpoint:
        driven_by = {"checkpoint": str(Path(options.checkpoint).resolve())}
    if options.record_dir:
        record_dir = str(Path(options.record_dir).resolve())
        recorder = {**common, **driven_by, "record_dir": record_dir}
        specs.append(NodeSpec("nora_bringup", "recorder", recorder))
    if options.checkpoint:
        policy = {
            **common,
            **driven_by,
            "device": options.device,
            "head": options.head,
            "seed": options.seed,
        }
        specs.append(NodeSpec("nora_policy", "policy", policy))
    return tuple(specs)


def _require_possible(real_time_factor: float, has_simulator: bool) -> None:
    if not (math.isfinite(real_time_factor) and real_time_factor > 0):
        raise ValueError(f"real_time_factor: expected more than 0, got {real_time_factor}")
    if real_time_factor != 1.0 and not has_simulator:
        raise ValueError(
            f"real_time_factor: expected 1 without a simulator, got {real_time_factor}"
        )


def _has_simulator(choice: str, embodiment: Embodiment) -> bool:
    if choice == "true" and not embodiment.is_simulated:
        raise ValueError(
            f"sim: expected an embodiment whose driver is sim, got {embodiment.name}; "
            "use embodiment:=sim_widowx"
        )
    return embodiment.is_simulated and choice != "false"
