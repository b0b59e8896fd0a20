"""The `nora-compare` command: heads or checkpoints side by side on recorded data.

Legend: N samples, T chunk step, A action dim.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import numpy as np
import torch
import tyro
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from nora_core.command import run_command
from nora_core.embodiment import Embodiment, training_mismatches
from nora_core.progress import progress
from nora_core.types import Outcome
from nora_policy.checkpoints import checkpoint
from nora_policy.policy import Policy
from nora_training.data.alignment import Int64
from nora_training.data.dataset import Dataset, Split
from nora_training.data.samples import Samples
from nora_training.evaluation.compare.distances import Answers, Comparison
from nora_training.evaluation.compare.report import write_report


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """Give policies the same recorded images and compare their answers with the demonstrations.

    Attributes:
        dataset: folder made by `nora-dataset build`.
        checkpoint: folder of a checkpoint; repeat the option for more of them.
        heads: flow, fast or both, of every checkpoint.
        samples: number of images, drawn once for all policies.
        split: use episodes that were held back (val) or trained on (train).
        outcomes: use episodes that ended in one of these ways.
        seed: of the draw and of the sampling noise.
        device: auto uses a GPU if there is one.
        threads: threads on the CPU; 0: as many as there are cores.
        out: folder for the table and the plot.
    """

    dataset: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DATASET")]]
    checkpoint: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]
    heads: tuple[Literal["flow", "fast"], ...] = ("flow",)
    samples: int = 200
    split: Split = "val"
    outcomes: tuple[Outcome, ...] = (Outcome.SUCCESS,)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    out: Path = Path("out/compare")


def main() -> NoReturn:
    """Exit codes as `run_command`."""
    run_command(
        lambda: run(tyro.cli(Compare, prog="nora-compare")),
        when_interrupted="stopped; nothing was written",
    )


def run(compare: Compare) -> None:
    """Raises `ValueError`, `OSError` or `RuntimeError` when there is nothing to compare."""
    _require_sensible(compare)
    if compare.threads:
        torch.set_num_threads(compare.threads)
        threadpool_limits(compare.threads)
    dataset = Dataset.load(compare.dataset)
    horizon = min(_horizon(folder, dataset, compare) for folder in compare.checkpoint)
    samples = read_samples(dataset, compare, horizon)
    index_N = draw(samples, compare)
    candidates = list(itertools.product(compare.checkpoint, compare.heads))
    answers = []
    with progress(len(candidates) * len(index_N), "image") as bar:
        for folder, head in candidates:
            policy = load(dataset, folder, head, compare)
            name = f"{folder if _is_ambiguous(folder, compare) else policy.name}, {head}"
            bar.set_description(name)
            answers.append(ask(policy, name, samples, index_N, seed=compare.seed, bar=bar))
            del policy  # frees its memory before the next one is loaded
    _, is_real_NT = samples.chunks(index_N)
    comparison = Comparison.of(answers, samples.physical(index_N), is_real_NT)
    print(write_report(compare.out, comparison, dataset.embodiment.action.names))
    print(f"\ntable {compare.out}/compare.md, plot {compare.out}/compare.png")


def _require_sensible(compare: Compare) -> None:
    for name in ("checkpoint", "heads"):
        values = [str(value) for value in getattr(compare, name)]
        if not values:
            raise ValueError(f"{name}: at least one is needed")
        if len(set(values)) != len(values):
            raise ValueError(f"{name}: must be distinct, got {values}")
    if compare.samples < 1:
        raise ValueError(f"samples: must be at least 1, got {compare.samples}")


def _horizon(folder: Path, dataset: Dataset, compare: Compare) -> int:
    """Steps per chunk of a checkpoint, which must fit the data set and have the heads.

    Checked for all checkpoints first: loading a network can take a minute.
    """
    checkpoint.require(folder, checkpoint.WEIGHTS, checkpoint.TOKENIZER, checkpoint.STATISTICS)
    config = checkpoint.load_config(folder)
    if missing := [head for head in compare.heads if head not in config.heads]:
        raise ValueError(
            f"heads: {folder} has no {missing[0]} head, only {' and '.join(config.heads)}"
        )
    path = folder / checkpoint.EMBODIMENT
    if path.is_file():
        differences = training_mismatches(Embodiment.load(path), dataset.embodiment)
        if differences:
            raise ValueError(
                f"checkpoint {folder} was trained for another robot than that of "
                f"{compare.dataset}, {dataset.embodiment.name}: {'; '.join(differences)}"
            )
    return config.horizon


def _is_ambiguous(folder: Path, compare: Compare) -> bool:
    return [path.resolve().name for path in compare.checkpoint].count(folder.resolve().name) > 1


def load(dataset: Dataset, folder: Path, head: str, compare: Compare) -> Policy:
    """A policy for the images of the data set, which are rotated and cropped already."""
    embodiment = dataclasses.replace(dataset.embodiment, cameras=dataset.cameras)
    policy = Policy.load(folder, embodiment, compare.device, seed=compare.seed, head=head)
    policy.warm_up()
    return policy


def read_samples(dataset: Dataset, compare: Compare, horizon: int) -> Samples:
    """Raises `ValueError` when there is nothing to draw from."""
    entries = dataset.select(compare.split, compare.outcomes)
    if entries:
        samples = Samples(dataset, entries, dataset.statistics(entries), horizon)
        if len(samples):
            return samples
    wanted = ", ".join(outcome.name for outcome in compare.outcomes)
    raise ValueError(
        f"split: {compare.dataset} has no images in {compare.split} episodes that ended in "
        f"{wanted}"
    )


def draw(samples: Samples, compare: Compare) -> Int64:
    """Indices (N,), sorted: the same for the same data, options and seed; at most all."""
    order = np.random.default_rng(compare.seed).permutation(len(samples))
    return np.sort(order[: compare.samples])


def ask(
    policy: Policy, name: str, samples: Samples, index_N: Int64, *, seed: int, bar: tqdm
) -> Answers:
    """The policy's chunk for every sample, each with its own noise whatever was asked before."""
    chunks, seconds = [], []
    for number, index in enumerate(index_N.tolist()):
        observation = samples.observation(index)
        policy.reseed(seed + number)
        start = time.perf_counter()
        chunks.append(policy.infer(observation).actions_TA)
        seconds.append(time.perf_counter() - start)
        bar.update()
    return Answers(name, np.stack(chunks), np.array(seconds))


if __name__ == "__main__":
    main()
