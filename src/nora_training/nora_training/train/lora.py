"""Low-rank adapters (LoRA) on the language model; the expert is trained in full.

The rows of the action tokens are trained too: the published backbone has never seen them in use.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from peft.tuners.trainable_tokens import TrainableTokensLayer

from nora_policy.models.nora import Nora

LINEAR = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
EMBEDDING, ADAPTER = "embed_tokens", "default"
WRAPPERS = (".base_layer", ".token_adapter")
ADDED = ("lora_A", "lora_B", "trainable_tokens_delta")


def add(model: Nora, rank: int, has_tokens: bool) -> None:
    """Freeze the backbone of `model` in place and add trainable adapters to it.

    With `has_tokens`, the embedding rows of the action tokens are trained too.
    """
    first, count = model.config.action_token_min, model.config.num_action_tokens
    rows = {EMBEDDING: list(range(first, first + count))} if has_tokens else None
    config = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=LINEAR, trainable_token_indices=rows
    )
    get_peft_model(model.vlm, config)


def merged(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Merge the adapters; return the parameters by the names they had before `add`."""
    state = {
        _plain(name): parameter.detach()
        for name, parameter in model.named_parameters()
        if not any(part in name for part in ADDED)
    }
    for name, module in model.named_modules():
        key = f"{_plain(name)}.weight"
        if isinstance(module, Linear):
            delta = module.get_delta_weight(ADAPTER)
            state[key] = (state[key].to(delta.dtype) + delta).detach()
        if isinstance(module, TrainableTokensLayer) and key in state:
            delta = module.trainable_tokens_delta[ADAPTER]
            rows = torch.tensor(module.token_indices[ADAPTER], device=delta.device)
            state[key] = state[key].to(delta.dtype).index_copy(0, rows, delta.detach())
    return state


def _plain(name: str) -> str:
    for part in WRAPPERS:
        name = name.replace(part, "")
    return name
