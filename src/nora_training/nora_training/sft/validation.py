"""Errors of the policy on the validation episodes, in physical units.

Legend: B batch, T chunk step, A action dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from nora_core.normalization import Statistics, denormalize
from nora_training.data.alignment import Int64
from nora_training.sft.examples import Examples
from nora_training.sft.losses import Learner

FLOW_STEPS = 5
IS_OPEN = 0.5
NOISE_SEED = 0


class Validation:
    """Measures the same samples every time, spread evenly over those of `examples`."""

    def __init__(
        self,
        examples: Examples,
        statistics: Statistics,
        names: tuple[str, ...],
        *,
        num_samples: int,
        batch_size: int,
    ) -> None:
        self._examples, self._statistics, self._names = examples, statistics, names
        self._batch_size = batch_size
        count = min(num_samples, len(examples))
        self._indices = np.arange(count) * len(examples) // max(count, 1)

    def __len__(self) -> int:
        return len(self._indices)

    def run(self, learner: Learner) -> dict[str, float]:
        """Metrics by name: `l1_x` ... in m and rad; accuracies as fractions."""
        learner.eval()
        metrics: dict[str, float] = {}
        if learner.learns_flow:
            metrics |= self._actions(learner)
        if learner.learns_tokens:
            metrics |= self._tokens(learner)
        learner.train()
        return metrics

    def _actions(self, learner: Learner) -> dict[str, float]:
        errors, is_right = [], []
        random = torch.Generator().manual_seed(NOISE_SEED)
        gripper = self._names.index("gripper")
        for index_B in self._batches():
            inputs, _ = self._examples.inputs(index_B, has_target=False)
            normalised_BTA, is_real_BT = self._examples.samples.chunks(index_B)
            noise_BTA = torch.randn(normalised_BTA.shape, generator=random)
            got_BTA = learner.predict(inputs, noise_BTA, FLOW_STEPS).numpy()
            wanted_BTA = self._examples.samples.physical(index_B)
            actions_BTA = denormalize(got_BTA, self._statistics)
            errors.append(np.abs(actions_BTA - wanted_BTA)[is_real_BT])
            is_open_BT = actions_BTA[..., gripper] > IS_OPEN
            is_right.append((is_open_BT == (wanted_BTA[..., gripper] > IS_OPEN))[is_real_BT])
        l1_A = np.concatenate(errors).mean(axis=0)
        metrics = {f"l1_{name}": float(x) for name, x in zip(self._names, l1_A, strict=True)}
        return {**metrics, "gripper_accuracy": float(np.concatenate(is_right).mean())}

    def _tokens(self, learner: Learner) -> dict[str, float]:
        """Next-token metrics, given the recorded tokens before each one."""
        found = []
        for index_B in self._batches():
            found.append(learner.next_tokens(*self._examples.inputs(index_B, has_target=True)))
        losses, is_right = (torch.cat(parts) for parts in zip(*found, strict=True))
        if not len(losses):
            return {}
        return {
            "cross_entropy": float(losses.mean()),
            "token_accuracy": float(is_right.float().mean()),
        }

    def _batches(self) -> Iterator[Int64]:
        for start in range(0, len(self._indices), self._batch_size):
            yield self._indices[start : start + self._batch_size]
