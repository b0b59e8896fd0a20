"""The published NORA-1.5 layout: names of parameters, and what they say of the network.

One `model.safetensors`; `config.json`, if any, is that of Qwen2.5-VL and does not know the expert.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from nora_policy.models.config import (
    NORA15_3B,
    ExpertConfig,
    NoraConfig,
    TextConfig,
    TokenIds,
    VisionConfig,
)

C = TypeVar("C", TextConfig, VisionConfig)
Shapes = Mapping[str, tuple[int, ...]]

EMBEDDING = "vlm.model.language_model.embed_tokens.weight"
# The frozen reference of preference training, saved beside the policy.
IGNORED_PREFIXES = ("ref_action_expert.", "ref_action_out_proj.")
# What older versions of transformers called the same parameters.
RENAMED = (
    (re.compile(r"^vlm\.visual\."), "vlm.model.visual."),
    (re.compile(r"^vlm\.model\.(?=(?:layers|embed_tokens|norm)\.)"), "vlm.model.language_model."),
)


def names(stored: Iterable[str]) -> dict[str, str]:
    """Our name of every parameter that counts -> its name in the file."""
    found: dict[str, str] = {}
    for old in stored:
        if old.startswith(IGNORED_PREFIXES):
            continue
        new = old
        for pattern, replacement in RENAMED:
            new = pattern.sub(replacement, new)
        if new in found:
            raise ValueError(f"{new}: expected once, got it as {found[new]} and {old}")
        found[new] = old
    return found


def config(data: Mapping[str, Any], shapes: Shapes) -> NoraConfig:
    """The network that `data` (a Qwen2.5-VL config, may be empty) and the parameters describe.

    What neither says is as in the release: horizon 5, loss weight, ids of the tokens.
    """
    nested = data.get("text_config") or data
    rope = nested.get("rope_parameters") or nested.get("rope_scaling") or {}
    text = _replace(NORA15_3B.text_config, {**data, **nested, **rope})
    text = dataclasses.replace(text, vocab_size=_shape(shapes, EMBEDDING)[0])
    hidden, action_dim = _shape(shapes, "action_in_proj.weight")
    layer = "action_expert.layers.0"
    query = f"{layer}.self_attn.q_proj.weight"
    num_heads, rest = divmod(_shape(shapes, query)[0], text.head_dim)
    if rest or not num_heads:
        raise ValueError(
            f"{query}: expected a multiple of head_dim {text.head_dim} rows, "
            f"got {_shape(shapes, query)[0]}"
        )
    return dataclasses.replace(
        NORA15_3B,
        text_config=text,
        vision_config=_replace(NORA15_3B.vision_config, data.get("vision_config") or {}),
        token_ids=_token_ids(data),
        expert=ExpertConfig(
            hidden_size=hidden,
            intermediate_size=_shape(shapes, f"{layer}.mlp.gate_proj.weight")[0],
            num_attention_heads=num_heads,
            num_key_value_heads=text.num_key_value_heads,
            num_hidden_layers=text.num_hidden_layers,
        ),
        action_dim=action_dim,
    )


def _token_ids(data: Mapping[str, Any]) -> TokenIds:
    known = dataclasses.asdict(NORA15_3B.token_ids)
    return TokenIds(**{name: data.get(f"{name}_token_id", index) for name, index in known.items()})


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"1 missing: {name}")
    return shapes[name]


def _replace(known: C, data: Mapping[str, Any]) -> C:
    """`known` with every field that `data` also has; its other keys do not matter to us."""
    fields = (field.name for field in dataclasses.fields(known))
    stated = {name: data[name] for name in fields if data.get(name) is not None}
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in stated.items()
    }
    return dataclasses.replace(known, **values)
