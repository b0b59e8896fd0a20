"""Latency and memory of NORA-1.5 per chunk: tiny, or the size of the release with random weights.

Prints a Markdown table: image and instruction to actions, for 1 and 8 samples of one observation,
split into preprocessing, prefix (vision and language model, once) and flow steps (the expert).
"""

from __future__ import annotations

import dataclasses
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from machine import processor, show
from tqdm import tqdm

from nora_core.embodiment import Camera
from nora_core.types import Observation
from nora_policy.checkpoints import checkpoint
from nora_policy.checkpoints.untrained import make_config, make_tokenizer
from nora_policy.models import backbone, nora15
from nora_policy.models.config import NORA15_3B, NoraConfig
from nora_policy.models.inputs import ModelInputs
from nora_policy.models.nora import Nora
from nora_policy.models.nora15 import Nora15
from nora_policy.preprocess import Preprocessor

GOLDEN = Path(__file__).parents[1] / "tests/golden/nora15_tiny"
PROMPT_TOKENS = 98
INSTRUCTION = "lift the red cube"
EXPERT_PARAMETERS = 228_377_095
# Of Qwen2.5-VL-3B with its own 151 936 rows; NORA adds rows for its action tokens.
BACKBONE_PARAMETERS = 3_754_622_976 + (153_713 - 151_936) * 2048


@dataclass(frozen=True, slots=True)
class Settings:
    """What to measure.

    Args:
        size: tiny (float32 on the CPU), or 3b, the size of the release in bfloat16.
        device: auto, cpu or cuda.
        repeats: measured chunks per row, after `warm_up` others.
        warm_up: chunks that are not counted.
        threads: of torch on the CPU.
        samples: chunks per observation, one row each.
        out: also write the table here.
    """

    size: Literal["tiny", "3b"] = "tiny"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    repeats: int = 50
    warm_up: int = 5
    threads: int = 2
    samples: tuple[int, ...] = (1, 8)
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of every repeat, (R,)."""

    samples: int
    preprocess_ms: np.ndarray
    prefix_ms: np.ndarray
    flow_ms: np.ndarray


def build(config: NoraConfig, device: torch.device, dtype: torch.dtype) -> Nora:
    """Random weights straight in `dtype` on `device`, without a float32 copy."""
    with torch.device("meta"):
        model = nora15.build(config).to(dtype)
    model = model.to_empty(device=device)
    backbone.restore_unsaved(model.vlm)
    parameters = list(model.named_parameters())
    for name, parameter in tqdm(parameters, desc="weights", leave=False, disable=None):
        if "norm" in name or "ln_q" in name:
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def measure(model: Nora15, preprocessor: Preprocessor, samples: int, settings: Settings) -> Row:
    config = model.config
    rgb = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    observation = Observation((rgb,), INSTRUCTION, 0)
    noise_KTA = torch.randn(samples, config.horizon, config.action_dim, device=model.device)
    times = []
    rounds = range(settings.warm_up + settings.repeats)
    for _ in tqdm(rounds, desc=f"K = {samples}", leave=False, disable=None):
        stamps = [now(model.device)]
        inputs = preprocessor(observation)
        stamps.append(now(model.device))
        if settings.size == "3b":
            inputs = shorten(inputs)
        prefix, _ = model.encode(inputs)
        stamps.append(now(model.device))
        model.sample(prefix, noise_KTA)
        stamps.append(now(model.device))
        times.append(np.diff(stamps) * 1e3)
    return Row(samples, *np.array(times[settings.warm_up :]).T)


def shorten(inputs: ModelInputs) -> ModelInputs:
    """Cut to the length that Qwen's vocabulary gives; the tokens here are single bytes."""
    return dataclasses.replace(
        inputs,
        input_ids_BL=inputs.input_ids_BL[:, -PROMPT_TOKENS:],
        attention_mask_BL=inputs.attention_mask_BL[:, -PROMPT_TOKENS:],
    )


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def parity(device: torch.device) -> float:
    """Largest relative difference to the original's actions (tests/golden), float32."""
    model = checkpoint.load(GOLDEN, device, torch.float32)
    assert isinstance(model, Nora15)
    with np.load(GOLDEN / "golden.npz") as arrays:
        golden = {name: torch.from_numpy(array) for name, array in arrays.items()}
    ids = golden["input_ids"]
    pixels, grid = golden["pixel_values"], golden["image_grid_thw"]
    prefix, _ = model.encode(ModelInputs(ids, torch.ones_like(ids), pixels, grid))
    actions = model.sample(prefix, golden["noise"].to(device)).cpu()
    expected = golden["out:actions_10_steps"]
    return float((actions - expected).abs().max() / expected.abs().max())


def count(model: Nora15) -> tuple[int, int]:
    """Parameters of backbone and expert (with its projections)."""
    backbone_size = sum(p.numel() for p in model.vlm.parameters())
    return backbone_size, sum(p.numel() for p in model.parameters()) - backbone_size


def machine(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"CPU {processor()} ({capability}), {threads} threads"


def memory_gb(device: torch.device) -> float:
    """Peak: allocated on the GPU, or resident of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def table(rows: list[Row]) -> str:
    lines = [
        "| K | p50 ms | p95 ms | preprocess | prefix ms | flow ms | prefix share | flow share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        total = row.preprocess_ms + row.prefix_ms + row.flow_ms
        parts = [np.median(x) for x in (row.preprocess_ms, row.prefix_ms, row.flow_ms)]
        p50, p95 = np.percentile(total, (50, 95))
        shares = [f"{np.sum(x) / np.sum(total):.0%}" for x in (row.prefix_ms, row.flow_ms)]
        numbers = " | ".join(f"{value:.1f}" for value in (p50, p95, *parts))
        lines.append(f"| {row.samples} | {numbers} | {' | '.join(shares)} |")
    return "\n".join(lines)


@torch.inference_mode()
def run(settings: Settings) -> str:
    torch.set_num_threads(settings.threads)
    has_cuda = torch.cuda.is_available()
    device = torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")
    if settings.device == "cuda" and not has_cuda:
        raise SystemExit("--device cuda: no CUDA GPU")
    relative_error = parity(device)
    tokenizer = make_tokenizer()
    config = make_config(tokenizer)
    dtype = torch.float32
    if settings.size == "3b":
        ids, first = config.token_ids, config.action_token_min
        config = dataclasses.replace(NORA15_3B, token_ids=ids, action_token_min=first)
        dtype = torch.bfloat16
    model = build(config, device, dtype)
    assert isinstance(model, Nora15)
    sizes = count(model)
    if settings.size == "3b":
        assert sizes == (BACKBONE_PARAMETERS, EXPERT_PARAMETERS), sizes
    camera = Camera(name="primary", topic="camera/image_raw", encoding="rgb8", max_age_s=1.0)
    preprocessor = Preprocessor(config, tokenizer, (camera,))
    rows = [measure(model, preprocessor, samples, settings) for samples in settings.samples]
    kind = "CUDA" if device.type == "cuda" else "CPU"
    return "\n".join(
        [
            f"# NORA-1.5 {settings.size}, {kind}, {str(dtype).removeprefix('torch.')}\n",
            f"- machine: {machine(device, settings.threads)}; torch {torch.__version__}, eager",
            f"- weights: random; backbone {sizes[0]:,} and expert {sizes[1]:,} parameters",
            "- one 480x640 image to one chunk of 5 x 7 actions, "
            f"{config.flow_steps} flow steps; K chunks from one prefix",
            f"- {settings.repeats} repeats after {settings.warm_up} of warm-up",
            f"- peak memory ({'allocated' if kind == 'CUDA' else 'resident'}): "
            f"{memory_gb(device):.2f} GB",
            f"- parity: actions of tests/golden within {relative_error:.1e} (relative, float32)\n",
            table(rows),
        ]
    )


def main() -> None:
    settings = tyro.cli(Settings)
    show(run(settings), settings.out)


if __name__ == "__main__":
    main()
