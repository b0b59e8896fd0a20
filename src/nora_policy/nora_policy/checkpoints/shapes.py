"""Names and shapes of every parameter, known from the config without building the network."""

from __future__ import annotations

import math

from nora_policy.models.config import NoraConfig, VisionConfig

Shapes = dict[str, tuple[int, ...]]

EMBEDDING = "vlm.model.language_model.embed_tokens.weight"
LM_HEAD = "vlm.lm_head.weight"
CHANNELS = 3


def shapes(config: NoraConfig) -> Shapes:
    """As in the `state_dict` of the network; `LM_HEAD` is there also when it is tied."""
    text = config.text_config
    language, width = "vlm.model.language_model", text.hidden_size
    found = _vision("vlm.model.visual", config.vision_config)
    found[EMBEDDING] = (text.vocab_size, width)
    sizes = (text.num_attention_heads, text.num_key_value_heads, text.head_dim)
    for i in range(text.num_hidden_layers):
        found |= _layer(f"{language}.layers.{i}", width, text.intermediate_size, sizes)
    found[f"{language}.norm.weight"] = (width,)
    found[LM_HEAD] = (text.vocab_size, width)
    return found | _expert(config)


def count(config: NoraConfig) -> tuple[int, int]:
    """Parameters of the backbone and of the action expert with its projections."""
    numbers = {name: math.prod(shape) for name, shape in shapes(config).items()}
    if config.text_config.tie_word_embeddings:
        del numbers[LM_HEAD]
    backbone = sum(n for name, n in numbers.items() if name.startswith("vlm."))
    return backbone, sum(numbers.values()) - backbone


def _expert(config: NoraConfig) -> Shapes:
    expert = config.expert
    if expert is None:
        return {}
    dim, sizes = expert.hidden_size, (expert.num_attention_heads, expert.num_key_value_heads)
    found: Shapes = {}
    for i in range(expert.num_hidden_layers):
        found |= _layer(
            f"action_expert.layers.{i}",
            dim,
            expert.intermediate_size,
            (*sizes, config.text_config.head_dim),
        )
    return (
        found
        | {"action_expert.norm.weight": (dim,)}
        | _linear("action_in_proj", config.action_dim, dim)
        | _linear("action_time_mlp_in", 2 * dim, dim)
        | _linear("action_time_mlp_out", dim, dim)
        | _linear("action_out_proj", dim, config.action_dim)
    )


def _layer(name: str, width: int, inner: int, sizes: tuple[int, int, int]) -> Shapes:
    num_heads, num_key_value_heads, head_dim = sizes
    queries, keys = num_heads * head_dim, num_key_value_heads * head_dim
    return {
        f"{name}.input_layernorm.weight": (width,),
        f"{name}.post_attention_layernorm.weight": (width,),
        f"{name}.self_attn.o_proj.weight": (width, queries),
        f"{name}.mlp.gate_proj.weight": (inner, width),
        f"{name}.mlp.up_proj.weight": (inner, width),
        f"{name}.mlp.down_proj.weight": (width, inner),
        **_linear(f"{name}.self_attn.q_proj", width, queries),
        **_linear(f"{name}.self_attn.k_proj", width, keys),
        **_linear(f"{name}.self_attn.v_proj", width, keys),
    }


def _vision(name: str, vision: VisionConfig) -> Shapes:
    width, inner, patch = vision.hidden_size, vision.intermediate_size, vision.patch_size
    merged = width * vision.spatial_merge_size**2
    kernel = (vision.temporal_patch_size, patch, patch)
    found: Shapes = {f"{name}.patch_embed.proj.weight": (width, CHANNELS, *kernel)}
    for i in range(vision.depth):
        block = f"{name}.blocks.{i}"
        found |= {f"{block}.norm1.weight": (width,), f"{block}.norm2.weight": (width,)}
        found |= _linear(f"{block}.attn.qkv", width, 3 * width)
        found |= _linear(f"{block}.attn.proj", width, width)
        found |= _linear(f"{block}.mlp.gate_proj", width, inner)
        found |= _linear(f"{block}.mlp.up_proj", width, inner)
        found |= _linear(f"{block}.mlp.down_proj", inner, width)
    return (
        found
        | {f"{name}.merger.ln_q.weight": (width,)}
        | _linear(f"{name}.merger.mlp.0", merged, merged)
        | _linear(f"{name}.merger.mlp.2", merged, vision.out_hidden_size)
    )


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
