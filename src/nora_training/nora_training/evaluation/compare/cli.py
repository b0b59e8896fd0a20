"""The `nora-compare` command: heads or checkpoints side by side on recorded data.

Legend: P policies, N samples, T chunk step, A action dim.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from nora_core.types import Float64, Observation, Outcome
from nora_policy.policy import Policy
from nora_training.data.dataset import Dataset, Split
from nora_training.data.samples import chunk, locate, starts
from nora_training.evaluation.compare.comparison import Answers, Comparison
from nora_training.evaluation.compare.plots import write_report

BAD_INPUT, INTERRUPTED = 2, 130


@dataclass(frozen=True, slots=True)
class Compare:
    """Let policies answer the same recorded images, and hold it against what was done.

    Attributes:
        dataset: folder made by `nora-dataset build`.
        checkpoint: folder of a checkpoint; give it again for another one.
        heads: flow, fast or both, of every checkpoint.
        samples: images, drawn once and for all policies.
        split: episodes that were trained on (train) or held back (val).
        outcomes: how the episodes ended.
        seed: of the draw and of the sampling noise.
        device: auto, cpu or cuda.
        threads: on the CPU; 0: as many as there are cores.
        out: folder for the table and the plot.
    """

    dataset: tyro.conf.Positional[Path]
    checkpoint: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction]
    heads: tuple[Literal["flow", "fast"], ...] = ("flow",)
    samples: int = 200
    split: Split = "val"
    outcomes: tuple[Outcome, ...] = (Outcome.SUCCESS,)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    out: Path = Path("out/compare")


@dataclass(frozen=True, slots=True)
class Recorded:
    """Drawn images, and all that was done from each on in its episode; (S, A), S at least 1."""

    observations: tuple[Observation, ...]
    futures: tuple[Float64, ...]


def main() -> None:
    """Exit code 2: bad input; 130: interrupted."""
    try:
        run(tyro.cli(Compare, description=__doc__))
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def run(compare: Compare) -> None:
    """Raises `ValueError`, `OSError` or `RuntimeError` when there is nothing to compare."""
    _require_sensible(compare)
    if compare.threads:
        torch.set_num_threads(compare.threads)
        threadpool_limits(compare.threads)
    dataset = Dataset.load(compare.dataset)
    recorded = draw(dataset, compare)
    contenders = list(itertools.product(compare.checkpoint, compare.heads))
    answers = []
    with tqdm(total=len(contenders) * len(recorded.observations), disable=None) as progress:
        for folder, head in contenders:
            policy = load(dataset, folder, head, compare)
            name = f"{folder if _is_ambiguous(folder, compare) else policy.name}, {head}"
            progress.set_description(name)
            answers.append(ask(policy, name, recorded.observations, compare.seed, progress))
            del policy  # before the next one takes its memory
    comparison = Comparison.of(answers, *demonstrated(recorded, answers))
    print(write_report(compare.out, comparison, dataset.embodiment.action.names))
    print(f"\ntable {compare.out}/compare.md, plot {compare.out}/compare.png")


def _require_sensible(compare: Compare) -> None:
    for name in ("checkpoint", "heads"):
        values = getattr(compare, name)
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name}: expected distinct ones, got {list(map(str, values))}")
    if compare.samples < 1:
        raise ValueError(f"samples: expected at least 1, got {compare.samples}")


def _is_ambiguous(folder: Path, compare: Compare) -> bool:
    return [path.resolve().name for path in compare.checkpoint].count(folder.resolve().name) > 1


def load(dataset: Dataset, folder: Path, head: str, compare: Compare) -> Policy:
    """For the images of the data set, which are turned and cut already."""
    embodiment = dataclasses.replace(dataset.embodiment, cameras=dataset.cameras)
    policy = Policy.load(folder, embodiment, compare.device, compare.seed, head)
    policy.warm_up()
    return policy


def draw(dataset: Dataset, compare: Compare) -> Recorded:
    """The same samples for the same data set, options and seed; all where there are not enough.

    Raises:
        ValueError: there is no episode to draw from.
    """
    entries = dataset.select(compare.split, compare.outcomes)
    steps = [dataset.steps(entry) for entry in entries]
    begins = [starts(s, 1) for s in steps]
    ends_E = np.cumsum([len(b) for b in begins], dtype=np.int64)
    total = int(ends_E[-1]) if entries else 0
    if not total:
        wanted = [outcome.name for outcome in compare.outcomes]
        raise ValueError(
            f"split: expected images in {compare.split} episodes with {wanted}, got none"
        )
    chosen = np.random.default_rng(compare.seed).permutation(total)[: compare.samples]
    observations, futures = [], []
    for index in sorted(chosen.tolist()):
        episode, offset = locate(ends_E, index)
        entry, start = entries[episode], int(begins[episode][offset])
        images = tuple(
            np.array(dataset.images(entry, camera.name)[start])
            for camera in dataset.embodiment.cameras
        )
        stamp_ns = int(steps[episode].image_stamps_N[start])
        observations.append(Observation(images, entry.instruction, stamp_ns))
        futures.append(steps[episode].future(start))
    return Recorded(tuple(observations), tuple(futures))


def ask(
    policy: Policy, name: str, observations: Sequence[Observation], seed: int, progress: tqdm
) -> Answers:
    """Every answer with noise of its own, whatever was asked before."""
    chunks, seconds = [], []
    for number, observation in enumerate(observations):
        policy.reseed(seed + number)
        start = time.perf_counter()
        chunks.append(policy.infer(observation).actions_TA)
        seconds.append(time.perf_counter() - start)
        progress.update()
    return Answers(name, np.stack(chunks), np.array(seconds))


def demonstrated(
    recorded: Recorded, answers: Sequence[Answers]
) -> tuple[Float64, NDArray[np.bool_]]:
    """What was done, (N, T, A), over the shortest chunk among the answers; and which is real."""
    horizon = min(answer.actions_NTA.shape[1] for answer in answers)
    chunks = [chunk(future_SA, horizon) for future_SA in recorded.futures]
    return np.stack([actions_TA for actions_TA, _ in chunks]), np.stack([r for _, r in chunks])


if __name__ == "__main__":
    main()
