"""The process graph as data: which nodes run for an embodiment, with which parameters.

`launch/nora.launch.py` turns it into launch actions, `standalone.py` into child processes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file, share


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One process: an installed executable (as in `ros2 run`) and its parameters."""

    package: str
    executable: str
    parameters: dict[str, bool | int | float | str]


@dataclass(frozen=True, slots=True)
class Options:
    """What a user may choose at launch.

    Attributes:
        embodiment: name of a file in `config/embodiments`, or a path to one.
        checkpoint: folder of the policy's checkpoint; empty starts no policy node.
        device: `auto`, `cpu` or `cuda`.
        head: `flow` (action expert) or `fast` (tokens); `auto` is the embodiment's.
        sim: `auto` (simulate when the embodiment's driver is the simulator), `true` or `false`.
        seed: of the object placement and of the policy's sampling noise; negative is random.
        record_dir: folder for the bags of episodes; empty starts no recorder.
        real_time_factor: seconds of the simulation per second; other than 1, every node lives in
            simulated time.
    """

    embodiment: str = "sim_widowx"
    checkpoint: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    head: Literal["auto", "flow", "fast"] = "auto"
    sim: Literal["auto", "true", "false"] = "auto"
    seed: int = -1
    record_dir: str = ""
    real_time_factor: float = 1.0

    @property
    def use_sim_time(self) -> bool:
        """Whether the clock is the simulator's."""
        return self.real_time_factor != 1.0


def fastdds_environment() -> dict[str, str]:
    """Variables that make Fast DDS use the suite's profile (Jazzy reads the first one).

    Without it a third of the best-effort images is lost and discovery sometimes takes 3 s.
    """
    profile = str(share() / "config/fastdds.xml")
    return {
        "FASTRTPS_DEFAULT_PROFILES_FILE": profile,
        "FASTDDS_DEFAULT_PROFILES_FILE": profile,
    }


def node_specs(options: Options) -> tuple[NodeSpec, ...]:
    """The nodes to run; the bridge before the policy, so that someone holds before anyone asks.

    Raises:
        ValueError, FileNotFoundError: the embodiment file is not right, an option is none of its
            values, or the simulator or its time is asked for with another driver.
    """
    path = embodiment_file(options.embodiment)
    embodiment = Embodiment.load(path)
    if options.head not in ("auto", "flow", "fast"):  # a launch argument is any text
        raise ValueError(f"head: expected auto, flow or fast, got {options.head!r}")
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
    is_simulated = embodiment.driver is not None and embodiment.driver.kind == "sim"
    if choice not in ("auto", "true", "false"):  # a launch argument is any text
        raise ValueError(f"sim: expected auto, true or false, got {choice!r}")
    if choice == "true" and not is_simulated:
        raise ValueError(
            f"sim: expected an embodiment whose driver is sim, got {embodiment.name}; "
            "use embodiment:=sim_widowx"
        )
    return is_simulated and choice != "false"
