"""How good the policy is on episodes it has not seen, in physical units.

Legend: B batch, T chunk step, A action dim.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from nora_policy.models.expert import Prefix
from nora_policy.models.nora15 import Nora15
from nora_policy.normalization import Statistics, denormalize
from nora_policy.preprocess import IGNORED
from nora_policy.types import Float64
from nora_training.alignment import Int64
from nora_training.sft.batches import Source
from nora_training.sft.losses import Learner

FLOW_STEPS = 5
IS_OPEN = 0.5
NOISE_SEED = 0


class Validation:
    """The same samples every time, spread evenly over those of `source`."""

    def __init__(
        self,
        source: Source,
        statistics: Statistics,
        names: tuple[str, ...],
        num_samples: int,
        batch_size: int,
    ) -> None:
        self._source, self._statistics, self._names = source, statistics, names
        self._batch_size = batch_size
        count = min(num_samples, len(source))
        self._indices = np.arange(count) * len(source) // max(count, 1)

    def __len__(self) -> int:
        return len(self._indices)

    @torch.no_grad()
    def run(self, learner: Learner) -> dict[str, float]:
        """Names of metrics and their values: `l1_x` ... in m, rad; shares of right answers."""
        learner.eval()
        metrics: dict[str, float] = {}
        if learner.learns_flow:
            metrics |= self._actions(learner)
        if learner.learns_tokens:
            metrics |= self._tokens(learner)
        learner.train()
        return metrics

    def _actions(self, learner: Learner) -> dict[str, float]:
        model = learner.model
        assert isinstance(model, Nora15)
        errors, is_right = [], []
        random = torch.Generator().manual_seed(NOISE_SEED)
        for index_B in self._batches():
            inputs, _ = self._source.inputs(index_B, has_target=False)
            prefix, _ = model.encode(inputs)
            shape = (len(index_B), model.config.horizon, model.config.action_dim)
            noise_BTA = torch.randn(shape, generator=random).to(model.device)
            visible = Prefix(prefix.keys, prefix.values, prefix.mask_BL)
            got_BTA = model.sample(visible, noise_BTA, FLOW_STEPS).cpu().numpy()
            wanted_BTA: Float64 = self._source.physical(index_B)
            actions_BTA = denormalize(got_BTA, self._statistics)
            is_real_BT = self._source.chunks(index_B)[1]
            errors.append(np.abs(actions_BTA - wanted_BTA)[is_real_BT])
            gripper = self._names.index("gripper")
            is_open = actions_BTA[..., gripper] > IS_OPEN
            is_right.append((is_open == (wanted_BTA[..., gripper] > IS_OPEN))[is_real_BT])
        l1_A = np.concatenate(errors).mean(axis=0)
        metrics = {f"l1_{name}": float(x) for name, x in zip(self._names, l1_A, strict=True)}
        return {**metrics, "gripper_accuracy": float(np.concatenate(is_right).mean())}

    def _tokens(self, learner: Learner) -> dict[str, float]:
        """Of each next token, after the right ones before it."""
        model = learner.model
        total, num_right, num_tokens = 0.0, 0, 0
        for index_B in self._batches():
            inputs, labels_BL = self._source.inputs(index_B, has_target=True)
            rows, columns = (labels_BL[:, 1:] != IGNORED).nonzero(as_tuple=True)
            if not len(rows):
                continue
            _, hidden_BLE = model.encode(inputs)
            targets = labels_BL[rows, columns + 1].to(model.device)
            logits = model.logits(hidden_BLE[rows, columns]).float()
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            num_right += int((logits.argmax(dim=-1) == targets).sum())
            num_tokens += len(rows)
        if not num_tokens:
            return {}
        return {"cross_entropy": total / num_tokens, "token_accuracy": num_right / num_tokens}

    def _batches(self) -> Iterator[Int64]:
        for start in range(0, len(self._indices), self._batch_size):
            yield self._indices[start : start + self._batch_size]
