"""Muon: momentum whose matrices are made orthogonal (K. Jordan et al., 2024).

Same as `torch.optim.Muon`, but matrices of one shape are processed together, and in float32 on a
CPU, where the bfloat16 of torch takes ten times as long.

Legend: N matrices, R rows, C columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

COEFFICIENTS, ITERATIONS, EPS = (3.4445, -4.775, 2.0315), 5, 1e-7
MOMENTUM = "momentum_buffer"


class Muon(torch.optim.Optimizer):
    """For 2-D parameters. The step of a tall matrix is longer by the root of rows / columns."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None, "gradients are computed before"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._step(parameters, group)

    def _step(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        for parameter in parameters:
            if MOMENTUM not in self.state[parameter]:
                self.state[parameter][MOMENTUM] = torch.zeros_like(parameter)
        momenta = [self.state[p][MOMENTUM] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
        rows, columns = parameters[0].shape
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        updates_NRC = orthogonalize(torch.stack(list(updates)))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates_NRC.unbind()), alpha=-rate)


def orthogonalize(x_NRC: torch.Tensor) -> torch.Tensor:
    """U V^T of x = U S V^T, singular values within 0.7 ... 1.2, by a Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    x = x_NRC if x_NRC.device.type == "cpu" else x_NRC.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(x_NRC.dtype)
