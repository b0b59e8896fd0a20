"""Activation checkpointing: layers keep their input and compute the rest again when needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def enable(layers: Iterable[nn.Module]) -> None:
    """The keys and values that layers record stay in memory.

    Not by the means of transformers, which would leave those out.
    """
    for layer in layers:
        layer.forward = functools.partial(_forward, layer.forward)


def _forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
