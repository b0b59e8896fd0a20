"""`nora demo`: a simulated WidowX-250s follows instructions in closed loop over ROS 2."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nora_msgs.action import ExecuteInstruction
from tqdm import tqdm

from nora_bringup.graph import Options, embodiment_file, node_specs
from nora_bringup.standalone import start_graph
from nora_bringup.trial import Trial, TrialClient, trial_client
from nora_policy.embodiment import Embodiment

INSTRUCTIONS = (
    "put the red cube on the plate",
    "put the green cylinder on the plate",
    "put the blue ball on the plate",
)
GOAL_ENDINGS = (ExecuteInstruction.Result.NONE, ExecuteInstruction.Result.TIMEOUT)


@dataclass(frozen=True, slots=True)
class Demo:
    """Run the closed loop in simulation and write a video, a plot and a table.

    Attributes:
        checkpoint: folder of a policy; by default a tiny one with random weights is made.
        device: auto, cpu or cuda.
        head: flow, fast, or auto: as the embodiment says.
        instructions: one trial each.
        trial_seconds: time limit of a trial.
        seed: of the first trial's object placement; the next ones count on.
        out: folder for what the demo writes.
    """

    checkpoint: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    head: Literal["auto", "flow", "fast"] = "auto"
    instructions: tuple[str, ...] = INSTRUCTIONS
    trial_seconds: float = 12.0
    seed: int = 0
    out: Path = Path("out/demo")


def run_demo(demo: Demo) -> int:
    """Run the trials; 0 when every trial ran to its end, whether or not the task was done.

    Raises:
        ValueError, OSError: an option makes no sense.
        RuntimeError: a node ended or did not answer.
    """
    _require_sensible(demo)
    logs = demo.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    path = embodiment_file("sim_widowx")
    embodiment = Embodiment.load(path)
    checkpoint = demo.checkpoint or _make_untrained_checkpoint(demo.out / "checkpoint", path)
    options = Options("sim_widowx", str(checkpoint), demo.device, demo.head, seed=demo.seed)
    specs = node_specs(options)
    print(f"starting {', '.join(spec.executable for spec in specs)}; logs in {logs}/")
    with start_graph(specs, logs) as graph:

        def check() -> None:
            if ended := graph.ended():
                raise RuntimeError(f"{ended}: {_last_line(logs / f'{ended.split()[0]}.log')}")

        with trial_client(embodiment, check) as client:
            client.wait_until_ready()
            print("ready: camera -> policy -> bridge -> simulated arm")
            trials = [
                _run_trial(client, instruction, demo.seed + number, demo.trial_seconds)
                for number, instruction in enumerate(demo.instructions)
            ]
    _write_report(demo.out, trials)
    if demo.checkpoint is None:
        print("The weights are random: the arm moves, but it has learned nothing.")
    return 0 if all(trial.error_code in GOAL_ENDINGS for trial in trials) else 1


def _require_sensible(demo: Demo) -> None:
    # Not in the constructor, whose errors the command-line parser cuts short.
    if not demo.instructions:
        raise ValueError("instructions: expected at least one, got none")
    if not demo.trial_seconds > 0:
        raise ValueError(f"trial-seconds: expected more than 0, got {demo.trial_seconds}")
    if demo.seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {demo.seed}")
    if demo.checkpoint is not None and not demo.checkpoint.is_dir():
        raise ValueError(f"checkpoint: expected a folder, got {demo.checkpoint}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else f"nothing in {log}"


def _make_untrained_checkpoint(folder: Path, embodiment: Path) -> Path:
    """In a process of its own: this one never imports torch. Made again for a changed robot."""
    copy = folder / "embodiment.yaml"
    is_there = (folder / "card.json").is_file() and (folder / "fast").is_dir()
    if not is_there or copy.read_text() != embodiment.read_text():
        print(f"no checkpoint given: making a tiny one in {folder}/", flush=True)
        module = [sys.executable, "-m", "nora_policy.models.tiny"]
        arguments = ["--out", str(folder), "--embodiment", str(embodiment)]
        subprocess.run([*module, *arguments], check=True, start_new_session=True)
    return folder


def _run_trial(client: TrialClient, instruction: str, seed: int, timeout_s: float) -> Trial:
    print(f"{instruction} (scene {seed})")
    client.prepare(instruction, seed)
    bar_format = "  {bar:40} {n:.1f}/{total:.0f} s"
    with tqdm(total=timeout_s, bar_format=bar_format, leave=False, disable=None) as bar:

        def on_progress(elapsed_s: float) -> None:
            bar.update(min(elapsed_s, timeout_s) - bar.n)

        trial = client.run(instruction, seed, timeout_s, on_progress)
    print(
        f"  {trial.outcome_name} after {trial.duration_s:.1f} s, {len(trial.inference_s)} chunks"
    )
    return trial


def _write_report(out: Path, trials: list[Trial]) -> None:
    from nora_bringup import report  # OpenCV, PyAV and matplotlib only when they are needed

    for trial in trials:
        if trial.error_code not in GOAL_ENDINGS:
            print(f"{trial.instruction}: {trial.error_msg}")
    text = report.table(trials)
    (out / "trials.md").write_text(text + "\n")
    report.write_video(out / "demo.mp4", trials)
    report.write_plot(out / "paths.png", trials)
    print(f"\n{text}\n\nvideo {out}/demo.mp4, paths {out}/paths.png, table {out}/trials.md")
