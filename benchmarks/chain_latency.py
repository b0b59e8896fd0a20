"""Latency of the whole chain, camera stamp to command, over real ROS 2, against the model alone.

The demo's graph (simulator, bridge, policy as processes, a tiny checkpoint), where the camera
stamp precedes rendering; and the policy node alone with a camera that only publishes, where what
is left beside the model is ROS: transport, conversion, threads.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import rclpy
import tyro
from machine import processor
from nora_msgs.msg import ActionChunk
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import String
from tqdm import tqdm

from nora_bringup.graph import NodeSpec, Options, node_specs
from nora_bringup.standalone import start_graph
from nora_bringup.trials.client import TrialClient, trial_client
from nora_bringup.trials.telemetry import Trial
from nora_core.embodiment import Embodiment
from nora_core.paths import embodiment_file
from nora_core.ros import convert
from nora_core.ros.qos import LATCHED, NEWEST
from nora_core.topics import NAMESPACE

INSTRUCTION = "put the red cube on the plate"
CAMERA_PERIOD_S = 0.1
START_LIMIT_S = 60.0
OVERHEAD_LIMIT_MS = 15.0

Milliseconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Settings:
    """Measure for `seconds` after a warm-up of `warm_up_seconds`; `out` also gets the table."""

    seconds: float = 30.0
    warm_up_seconds: float = 5.0
    device: Literal["cpu", "cuda"] = "cpu"
    out: Path | None = None


def measure_graph(settings: Settings, specs: tuple[NodeSpec, ...], logs: Path) -> Trial:
    with start_graph(specs, logs) as graph:

        def check() -> None:
            if ended := graph.ended():
                raise RuntimeError(ended)

        embodiment = Embodiment.load(embodiment_file("sim_widowx"))
        with trial_client(embodiment, check) as client:
            client.wait_until_ready()
            _run(client, settings.warm_up_seconds)
            return _run(client, settings.seconds)


def _run(client: TrialClient, seconds: float) -> Trial:
    client.prepare(INSTRUCTION, seed=0)
    with tqdm(total=seconds, desc="graph", leave=False, disable=None) as bar:

        def on_progress(elapsed_s: float) -> None:
            bar.update(elapsed_s - bar.n)

        return client.run(INSTRUCTION, 0, timeout_s=seconds, on_progress=on_progress)


def measure_policy(settings: Settings, policy: NodeSpec, logs: Path) -> Milliseconds:
    """(N, 2) of camera stamp to receipt of the chunk, and of the time inside the model."""
    camera = Embodiment.load(embodiment_file("sim_widowx")).cameras[0]
    rows: list[tuple[float, float]] = []
    rclpy.init()
    node = rclpy.create_node("camera", namespace=NAMESPACE)
    images = node.create_publisher(Image, camera.topic, NEWEST)
    instructions = node.create_publisher(String, "instruction", LATCHED)
    rgb_HW3 = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)

    def now_ns() -> int:
        return int(node.get_clock().now().nanoseconds)

    def on_timer() -> None:
        images.publish(convert.image_to_msg(rgb_HW3, now_ns(), camera.name))

    def on_chunk(msg: ActionChunk) -> None:
        age_s = (now_ns() - convert.to_ns(msg.header.stamp)) * 1e-9
        rows.append((age_s * 1e3, msg.inference_time * 1e3))

    node.create_timer(CAMERA_PERIOD_S, on_timer)
    node.create_subscription(ActionChunk, "policy/action_chunk", on_chunk, 1)
    warm_up = round(settings.warm_up_seconds / CAMERA_PERIOD_S)
    wanted = warm_up + round(settings.seconds / CAMERA_PERIOD_S)
    deadline = time.monotonic() + START_LIMIT_S + 2 * wanted * CAMERA_PERIOD_S
    with start_graph((policy,), logs) as graph:
        while instructions.get_subscription_count() == 0:
            rclpy.spin_once(node, timeout_sec=CAMERA_PERIOD_S)
        instructions.publish(String(data=INSTRUCTION))
        while len(rows) < wanted:
            rclpy.spin_once(node, timeout_sec=CAMERA_PERIOD_S)
            if (ended := graph.ended()) or time.monotonic() > deadline:
                raise RuntimeError(ended or f"{len(rows)} of {wanted} chunks came in time")
    node.destroy_node()
    rclpy.try_shutdown()
    return np.array(rows[warm_up:])


def table(trial: Trial, alone_N2: Milliseconds) -> str:
    rows: dict[str, Sequence[float] | Milliseconds] = {
        "graph: camera stamp to image at a receiver (rendering, transport)": trial.image_age_s,
        "graph: model": trial.inference_s,
        "graph: camera stamp to chunk at a receiver": trial.chunk_age_s,
        "graph: camera stamp to command (waits for the step boundary)": trial.observation_age_s,
        "policy node alone: model": alone_N2[:, 1] / 1e3,
        "policy node alone: camera stamp to chunk at a receiver": alone_N2[:, 0] / 1e3,
        "policy node alone: ROS overhead": (alone_N2[:, 0] - alone_N2[:, 1]) / 1e3,
    }
    lines = ["| | p50 ms | p95 ms | n |", "|---|---|---|---|"]
    for name, seconds in rows.items():
        p50, p95 = np.percentile(seconds, (50, 95)) * 1e3
        lines.append(f"| {name} | {p50:.1f} | {p95:.1f} | {len(seconds)} |")
    overhead = float(np.percentile(alone_N2[:, 0] - alone_N2[:, 1], 95))
    verdict = "within" if overhead <= OVERHEAD_LIMIT_MS else "ABOVE"
    lines.append("")
    lines.append(f"ROS overhead p95 {overhead:.1f} ms is {verdict} {OVERHEAD_LIMIT_MS:.0f} ms;")
    lines.append(f"{trial.chunk_rate_hz:.1f} chunks/s; {os.cpu_count()} x {processor()}.")
    return "\n".join(lines)


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = [
            sys.executable,
            "-m",
            "nora_policy.checkpoints.untrained",
            "--out",
            str(folder / "tiny"),
        ]
        embodiment = ["--embodiment", str(embodiment_file("sim_widowx"))]
        subprocess.run([*tiny, *embodiment], check=True, stdout=subprocess.DEVNULL)
        options = Options(checkpoint=str(folder / "tiny"), device=settings.device, seed=0)
        specs = node_specs(options)
        alone_N2 = measure_policy(settings, specs[-1], folder)
        text = table(measure_graph(settings, specs, folder), alone_N2)
    print(text)
    if settings.out is not None:
        settings.out.write_text(f"# Chain latency\n\n{text}\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
