"""Latency of the whole chain, camera stamp to command, over real ROS 2, against the model alone.

Runs simulator, policy and bridge as processes with a tiny checkpoint and prints a Markdown table.
ROS overhead = camera stamp to receipt of the chunk, minus the time inside the model.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from nora_bringup.graph import Options, embodiment_file, node_specs
from nora_bringup.standalone import start_graph
from nora_bringup.trial import Trial, TrialClient, trial_client
from nora_policy.embodiment import Embodiment

INSTRUCTION = "put the red cube on the plate"
OVERHEAD_LIMIT_MS = 15.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Measure for `seconds` after a warm-up of `warm_up_seconds`; `out` also gets the table."""

    seconds: float = 30.0
    warm_up_seconds: float = 5.0
    device: str = "cpu"
    out: Path | None = None


def measure(settings: Settings, folder: Path) -> Trial:
    path = embodiment_file("sim_widowx")
    tiny = [sys.executable, "-m", "nora_policy.models.tiny", "--out", str(folder / "checkpoint")]
    subprocess.run([*tiny, "--embodiment", str(path)], check=True, stdout=subprocess.DEVNULL)
    options = Options("sim_widowx", str(folder / "checkpoint"), settings.device, seed=0)
    with start_graph(node_specs(options), folder) as graph:

        def check() -> None:
            if ended := graph.ended():
                raise RuntimeError(ended)

        with trial_client(Embodiment.load(path), check) as client:
            client.wait_until_ready()
            _run(client, settings.warm_up_seconds)
            return _run(client, settings.seconds)


def _run(client: TrialClient, seconds: float) -> Trial:
    client.prepare(INSTRUCTION, seed=0)
    with tqdm(total=seconds, desc="measuring", leave=False, disable=None) as bar:

        def on_progress(elapsed_s: float) -> None:
            bar.update(elapsed_s - bar.n)

        return client.run(INSTRUCTION, 0, seconds, on_progress)


def table(trial: Trial) -> str:
    model = np.array(trial.inference_s) * 1e3
    chunk = np.array(trial.chunk_age_s) * 1e3
    command = np.array(trial.observation_age_s) * 1e3
    rows = {
        "model alone (snapshot to chunk)": model,
        "camera stamp to chunk at the receiver": chunk,
        "ROS overhead (the line above minus the model)": chunk - model,
        "camera stamp to command (waits for the step boundary)": command,
    }
    lines = ["| | p50 ms | p95 ms | n |", "|---|---|---|---|"]
    for name, values in rows.items():
        p50, p95 = np.percentile(values, (50, 95))
        lines.append(f"| {name} | {p50:.1f} | {p95:.1f} | {len(values)} |")
    overhead = float(np.percentile(chunk - model, 95))
    verdict = "within" if overhead <= OVERHEAD_LIMIT_MS else "ABOVE"
    lines.append("")
    lines.append(f"ROS overhead p95 {overhead:.1f} ms is {verdict} {OVERHEAD_LIMIT_MS:.0f} ms;")
    lines.append(f"{trial.chunk_rate_hz:.1f} chunks/s; {os.cpu_count()} x {processor()}.")
    return "\n".join(lines)


def processor() -> str:
    """Model name of the CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main(settings: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = table(measure(settings, Path(folder)))
    print(text)
    if settings.out is not None:
        settings.out.write_text(f"# Chain latency\n\n{text}\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
