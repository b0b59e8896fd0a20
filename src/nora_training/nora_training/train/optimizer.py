"""Optimizers, their learning rate over the steps, and the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from nora_training.train.muon import Muon
from nora_training.train.parallel import fill

BETAS, EPS = (0.9, 0.95), 1e-8
PEAK = "peak"  # learning rate of a group at the top of the schedule
INSIDE = (".layers.", ".blocks.")

Kind = Literal["adamw", "muon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Peak learning rates of AdamW and Muon, and the weight decay of matrices."""

    lr: float
    muon_lr: float
    weight_decay: float


def factor(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate for step 0 ... `steps` - 1: linear up, cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * share))


def build(model: nn.Module, kind: Kind, rates: Rates) -> list[torch.optim.Optimizer]:
    """AdamW alone, or Muon for the matrices inside of layers and AdamW for the rest.

    Raises:
        ValueError: no parameter is to be trained.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("parameters: none of the network is to be trained")
    matrices = {name for name in trained if kind == "muon" and _is_inside(name)}
    matrices = {name for name in matrices if trained[name].ndim == 2}
    rest = [p for name, p in trained.items() if name not in matrices]
    decayed = [p for p in rest if p.ndim > 1], rates.weight_decay
    others = [p for p in rest if p.ndim <= 1], 0.0
    groups: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, PEAK: rates.lr}
        for parameters, decay in (decayed, others)
        if parameters
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(torch.optim.AdamW(groups, rates.lr, BETAS, EPS))
    if matrices:
        inside = {"params": [trained[n] for n in trained if n in matrices], PEAK: rates.muon_lr}
        optimizers.append(Muon([inside], lr=rates.muon_lr, weight_decay=rates.weight_decay))
    return optimizers


def set_rate(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group[PEAK] * share


class Average:
    """Exponential moving average of the trained parameters; the first steps count more."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        live = [p.detach() for p in self._live.values()]
        torch._foreach_lerp_(list(self.values.values()), live, 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in self.values.items():
            fill(value, values[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the live parameters; a second call changes them back."""
        for name, value in self.values.items():
            live = self._live[name]
            kept = live.detach().clone()
            live.copy_(value)
            value.copy_(kept)


def _is_inside(name: str) -> bool:
    return any(part in f".{name}" for part in INSIDE)
