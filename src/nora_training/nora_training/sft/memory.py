"""How much memory training takes: an estimate before, the peak after."""

from __future__ import annotations

import resource

import torch

from nora_training.sft.losses import Learner
from nora_training.sft.settings import Settings

GIB = 2**30
FLOAT = 4
# Numbers that a layer keeps per token for the backward pass, in units of its width: counted from
# the inputs of its products and nonlinearities, rounded up; not measured on a GPU.
KEPT_DENSE, KEPT_CHECKPOINTED = 34, 2


def estimate_bytes(learner: Learner, settings: Settings, num_tokens: int, world: int) -> int:
    """Weights, gradients, optimizer states, average, activations of one part of a batch.

    `num_tokens`: of one sample in the language model.
    """
    weights = sum(p.numel() * p.element_size() for p in learner.parameters())
    trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    states = weights + FLOAT * trained * (3 + (settings.ema > 0))
    if settings.parallel == "fsdp":
        states //= world
    samples = settings.batch_size // settings.accumulate // world
    return states + samples * _activations(learner, settings, num_tokens)


def peak_bytes(device: torch.device) -> int:
    """Largest so far: allocated on a GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _activations(learner: Learner, settings: Settings, num_tokens: int) -> int:
    config = learner.model.config
    text, vision = config.text_config, config.vision_config
    kept = KEPT_CHECKPOINTED if settings.checkpointing else KEPT_DENSE
    patches = num_tokens * vision.spatial_merge_size**2
    numbers = kept * text.num_hidden_layers * num_tokens * text.hidden_size
    numbers += kept * vision.depth * patches * vision.hidden_size
    if config.expert is not None:
        numbers += (
            kept * config.expert.num_hidden_layers * config.horizon * (config.expert.hidden_size)
        )
    return numbers * (2 if learner.is_bf16 else FLOAT)
