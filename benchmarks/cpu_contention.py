"""What a busy neighbour costs inference on the CPU, by number of threads and OpenMP wait policy.

Prints a Markdown table: time of a chunk while 0, 1 or 2 other processes compute without pause.
Every setting runs in a process of its own, and all of them take turns in every round, so that
other work on the machine reaches each of them alike.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import processor, show
from model_latency import INSTRUCTION, build
from tqdm import tqdm

from nora_core.embodiment import Camera
from nora_core.types import Observation
from nora_policy.checkpoints.untrained import make_config, make_tokenizer
from nora_policy.models.config import NoraConfig
from nora_policy.models.nora15 import Nora15
from nora_policy.preprocess import Preprocessor

NEIGHBOUR = (sys.executable, "-c", "while True: pass")
NEIGHBOURS = (0, 1, 2)
SETTLE_S = 0.3  # until neighbours have started
LIMIT = 3.0  # times the chunk without neighbours


@dataclass(frozen=True, slots=True)
class Settings:
    """How long to measure.

    Args:
        rounds: of every setting with every number of neighbours.
        chunks: per setting, number of neighbours and round.
        threads: of inference, compared with one.
        out: also write the table here.
    """

    rounds: int = 10
    chunks: int = 3
    threads: int = 2
    out: Path | None = None


class Worker:
    """A process that computes chunks when asked to."""

    def __init__(self, threads: int, environment: dict[str, str]) -> None:
        names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
        inherited = {name: value for name, value in os.environ.items() if name not in names}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "worker", str(threads)],
            env={**inherited, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, chunks: int) -> list[list[float]]:
        """Wall and CPU time of every chunk in s."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{chunks}\n")
        self._process.stdin.flush()
        times: list[list[float]] = json.loads(self._process.stdout.readline())
        return times

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def middle_size(base: NoraConfig) -> NoraConfig:
    """About 40 million parameters: 0.3 s for a chunk on two cores."""
    text = dataclasses.replace(
        base.text_config,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=16,
    )
    vision = dataclasses.replace(
        base.vision_config,
        depth=4,
        hidden_size=256,
        intermediate_size=512,
        num_heads=4,
        out_hidden_size=512,
        fullatt_block_indexes=(3,),
    )
    assert base.expert is not None
    expert = dataclasses.replace(
        base.expert,
        hidden_size=256,
        intermediate_size=1024,
        num_attention_heads=4,
        num_hidden_layers=8,
    )
    return dataclasses.replace(base, text_config=text, vision_config=vision, expert=expert)


@torch.inference_mode()
def work(threads: int) -> None:
    """Answer every line of stdin, a number of chunks, with their times in JSON."""
    torch.set_num_threads(threads)
    tokenizer = make_tokenizer()
    config = middle_size(make_config(tokenizer))
    model = build(config, torch.device("cpu"), torch.float32)
    assert isinstance(model, Nora15)
    camera = Camera(name="primary", topic="camera/image_raw", encoding="rgb8", max_age_s=1.0)
    preprocessor = Preprocessor(config, tokenizer, (camera,))
    rgb = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    noise_BTA = torch.randn(1, config.horizon, config.action_dim)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start, cpu_start = time.perf_counter(), time.process_time()
            prefix, _ = model.encode(preprocessor(Observation((rgb,), INSTRUCTION, 0)))
            model.sample(prefix, noise_BTA)
            times.append((time.perf_counter() - start, time.process_time() - cpu_start))
        print(json.dumps(times), flush=True)


def measure(workers: dict[str, Worker], settings: Settings) -> dict[tuple[str, int], np.ndarray]:
    """(setting, neighbours) -> wall and CPU time of every chunk in s, (N, 2)."""
    times: dict[tuple[str, int], list[list[float]]] = {}
    for worker in workers.values():
        worker.measure(2)  # warm-up
    for _ in tqdm(range(settings.rounds), leave=False, disable=None):
        for count in NEIGHBOURS:
            neighbours = [subprocess.Popen(NEIGHBOUR) for _ in range(count)]
            try:
                time.sleep(SETTLE_S)
                for name, worker in workers.items():
                    times.setdefault((name, count), []).extend(worker.measure(settings.chunks))
            finally:
                for neighbour in neighbours:
                    neighbour.kill()
                    neighbour.wait()
    return {key: np.array(values) for key, values in times.items()}


def ratios(times: dict[tuple[str, int], np.ndarray], name: str, count: int) -> np.ndarray:
    """p50 and p95 with neighbours, each divided by its own value without.

    The same percentile on both sides, because the bursts of other work on the machine are in both.
    """
    wall, idle = (times[name, number][:, 0] for number in (count, 0))
    divided: np.ndarray = np.percentile(wall, (50, 95)) / np.percentile(idle, (50, 95))
    return divided


def table(times: dict[tuple[str, int], np.ndarray]) -> str:
    lines = [
        "| inference | neighbours | p50 s | p95 s | max s | CPU p50 s | p50 ratio | p95 ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, count), times_N2 in sorted(times.items()):
        wall, cpu = times_N2.T
        values = (*np.percentile(wall, (50, 95)), wall.max(), np.median(cpu))
        numbers = " | ".join(f"{value:.2f}" for value in values)
        p50, p95 = ratios(times, name, count)
        lines.append(f"| {name} | {count} | {numbers} | {p50:.1f} | {p95:.1f} |")
    return "\n".join(lines)


def run(settings: Settings) -> str:
    several = f"{settings.threads} threads"
    workers = {
        f"{several}, OpenMP's default": Worker(settings.threads, {}),
        f"{several}, passive": Worker(settings.threads, {"OMP_WAIT_POLICY": "passive"}),
        "1 thread, passive": Worker(1, {"OMP_WAIT_POLICY": "passive"}),
    }
    load = os.getloadavg()[0]
    try:
        times = measure(workers, settings)
    finally:
        for worker in workers.values():
            worker.stop()
    lines = [
        "# CPU contention\n",
        f"- machine: {os.cpu_count()} x {processor()}, Linux {platform.release()}; "
        f"load average {load:.1f} before, others' work included",
        f"- torch {torch.__version__} (OpenMP by libgomp); NORA-1.5 of middle size, random "
        "weights, float32, one image to one chunk",
        f"- {settings.rounds} rounds of {settings.chunks} chunks; a neighbour is a process that "
        "computes without pause; ratios are to the same percentile without neighbours\n",
        table(times),
        "",
    ]
    for name in workers:
        p50, p95 = ratios(times, name, 1)
        word = "within" if max(p50, p95) <= LIMIT else "ABOVE"
        lines.append(
            f"- {name}: one neighbour costs {p50:.1f} x at p50 and {p95:.1f} x at p95, "
            f"{word} {LIMIT:g} x"
        )
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        work(int(sys.argv[2]))
    else:
        settings = tyro.cli(Settings)
        show(run(settings), settings.out)


if __name__ == "__main__":
    main()
