"""Training steps of `nora-sft` beside those of a plain trainer, on one CPU, at tiny scale.

python benchmarks/sft_speed.py [--batch-size 64] [--threads 2]

The plain one does what the reference trainer does: sample after sample goes through the image
processor of transformers, its prompt and its chunk through the tokenizers; the vision tower is
that of transformers, and the logits of every token are computed. Both take the same samples, and
their losses must agree.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import processor
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLVisionAttention,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from nora_core.types import Observation
from nora_policy.checkpoints.untrained import make_config, make_fast_tokenizer, make_tokenizer
from nora_policy.models.expert import Prefix
from nora_policy.models.inputs import IGNORED, ModelInputs
from nora_policy.models.nora15 import Nora15
from nora_policy.preprocess import Preprocessor, pad_left, with_target
from nora_training.data import dataset as datasets
from nora_training.data.dataset import Dataset, Entry
from nora_training.data.samples import Samples
from nora_training.sft.batches import Batch, Batches
from nora_training.sft.examples import Examples
from nora_training.sft.losses import Learner

EMBODIMENT = Path(__file__).parents[1] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
INSTRUCTIONS = ("put the red cube on the plate", "move the yellow ball near the bowl")
NUM_EPISODES, NUM_STEPS, LEARNING_RATE, PAD = 40, 40, 1e-4, 0
COUNTS = (NUM_STEPS,) * 3


@dataclass(frozen=True, slots=True)
class Options:
    """What a step is made of, and how many are timed."""

    batch_size: int = 64
    threads: int = 2
    image_size: int = 224
    steps: int = 10


class Bench:
    """The same data set and weights for both trainers."""

    def __init__(self, folder: Path, options: Options) -> None:
        data = make_dataset(folder, options.image_size)
        statistics = data.statistics(data.entries)
        tokenizer = make_tokenizer()
        config = make_config(tokenizer)
        self.fast = make_fast_tokenizer()
        self.preprocessor = Preprocessor(config, tokenizer, data.cameras)
        self.processor = Qwen2VLImageProcessorPil()
        self.samples = Samples(data, data.entries, statistics, config.horizon)

        def batches() -> Batches:
            examples = Examples(
                self.samples, self.preprocessor, fast=self.fast, image_size=config.image_size
            )
            return Batches(examples, batch_size=options.batch_size)

        self.batches = batches()  # of nora-sft: it encodes its chunks in the steps that are timed
        # The plain trainer takes its noise and flow times from here, so that losses agree.
        prepared = batches()
        self.ready = [prepared.at(number)[0] for number in range(options.steps + 1)]
        self.config = config

    def network(self) -> Nora15:
        torch.manual_seed(0)
        return Nora15(self.config).train()

    def ours(self) -> Callable[[int], float]:
        learner = Learner(self.network(), "both")
        optimizer = torch.optim.AdamW(learner.parameters(), LEARNING_RATE)
        batches = self.batches.run(0, len(self.ready))

        def step(number: int) -> float:
            (batch,) = next(batches)  # prepared during the step before, as in nora-sft
            losses = learner(batch)
            return finish(losses.total, optimizer)

        return step

    def plain(self) -> Callable[[int], float]:
        model = self.network()
        visual, vision = model.vlm.model.visual, model.config.vision_config
        stock = Qwen2_5_VisionPatchEmbed(embed_dim=vision.hidden_size)
        stock.proj = visual.patch_embed.proj
        visual.patch_embed = stock
        for block in visual.blocks:
            attention = Qwen2_5_VLVisionAttention(visual.config)
            attention.qkv, attention.proj = block.attn.qkv, block.attn.proj
            block.attn = attention
        optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)

        def step(number: int) -> float:
            loss = self._plain_loss(model, self.ready[number], self.batches.indices(number))
            return finish(loss, optimizer)

        return step

    def _plain_loss(self, model: Nora15, batch: Batch, index_B: np.ndarray) -> torch.Tensor:
        rows, labels, masks = [], [], []
        for index in index_B.tolist():
            sample = self.samples[index]
            row = self._plain_inputs(sample.observation)
            tokens = self.fast.encode(sample.actions_TA) if sample.is_real_T.all() else None
            target = [] if tokens is None else self.preprocessor.target(tokens)
            longer, label = with_target(row, target) if target else (row, None)
            rows.append(longer)
            labels.append(torch.full_like(row.input_ids_BL, IGNORED) if label is None else label)
            masks.append(labels[-1] == IGNORED)
        inputs = pad_left(rows, PAD)
        length = inputs.input_ids_BL.shape[1]
        labels_BL = torch.cat([F.pad(x, (length - x.shape[1], 0), value=IGNORED) for x in labels])
        mask_BL = torch.cat([F.pad(x, (length - x.shape[1], 0), value=False) for x in masks])
        prefix, hidden_BLE = model.encode(inputs)
        logits = model.logits(hidden_BLE).float()
        cross_entropy = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten(), ignore_index=IGNORED
        )
        visible = Prefix(prefix.keys, prefix.values, mask_BL)
        flow = model.flow_loss(visible, batch.targets)
        return cross_entropy + model.config.alpha * flow

    def _plain_inputs(self, observation: Observation) -> ModelInputs:
        images = self.processor(images=list(observation.images), return_tensors="pt")
        ids_BL = torch.tensor([self.preprocessor.prompt(observation.instruction)])
        pixels, grid = images["pixel_values"], images["image_grid_thw"]
        return ModelInputs(ids_BL, torch.ones_like(ids_BL), pixels, grid)


def finish(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def make_dataset(root: Path, size: int) -> Dataset:
    random = np.random.default_rng(0)
    (root / datasets.EMBODIMENT).write_text(EMBODIMENT.read_text())
    entries = []
    for number in range(NUM_EPISODES):
        words = INSTRUCTIONS[number % len(INSTRUCTIONS)]
        entry = Entry(f"{number:016x}", f"bag{number}", words, "SUCCESS", "command", *COUNTS)
        folder = root / datasets.EPISODES / entry.folder
        folder.mkdir(parents=True)
        actions = random.normal(scale=0.004, size=(NUM_STEPS, 7)).cumsum(axis=0)
        actions[:, 6] = np.arange(NUM_STEPS) < NUM_STEPS // 2
        stamps = np.arange(NUM_STEPS)
        np.savez(
            folder / "steps.npz",
            stamps_N=stamps,
            image_stamps_N=stamps,
            actions_NA=actions,
            measured_N6=actions[:, :6],
            positions_N3=actions[:, :3].cumsum(axis=0) - actions[:, :3],
        )
        entries.append(entry)
    datasets.write_index(root, datasets.Settings(size, "command", "0" * 64), entries, 0.0)
    data = Dataset.load(root)
    for entry in entries:
        for camera in data.embodiment.cameras:
            images = random.integers(0, 256, (NUM_STEPS, size, size, 3), np.uint8)
            np.save(root / datasets.EPISODES / entry.folder / f"{camera.name}.npy", images)
    return data


def main() -> None:
    options = tyro.cli(Options)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        steps = {"plain trainer": bench.plain(), "nora-sft": bench.ours()}
        losses = {name: [step(0)] for name, step in steps.items()}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(1, options.steps + 1):  # in turns: other load meets both
            for name, step in steps.items():
                begin = time.perf_counter()
                losses[name].append(step(number))
                times[name].append(time.perf_counter() - begin)
    worst = max(abs(a - b) / a for a, b in zip(*losses.values(), strict=True))
    print(
        f"{processor()}, {options.threads} threads, batch of {options.batch_size}, "
        f"{options.image_size} px, tiny NORA-1.5; losses agree to {worst:.1e}\n"
    )
    print("| trainer | p50 ms | p95 ms | samples/s | ratio |")
    print("|---|---|---|---|---|")
    slowest = np.median(times["plain trainer"])
    for name, values in times.items():
        p50, p95 = np.percentile(values, [50, 95])
        rate = options.batch_size / p50
        print(f"| {name} | {1e3 * p50:.0f} | {1e3 * p95:.0f} | {rate:.0f} | {slowest / p50:.2f} |")


if __name__ == "__main__":
    main()
