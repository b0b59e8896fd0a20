"""Qwen2.5-VL of transformers: run once per observation for its keys and values, or token by token.

We call its vision tower and language model directly: `forward` of the whole would derive the image
positions from optional arguments (and silently fall back to plain ones), keep state between
requests, and compute logits that nobody reads.

Legend: B batch, L tokens, E hidden dim, K key-value heads, H head dim, P patches, C patch values,
W windows of S patches.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLVisionAttention,
    Qwen2_5_VLVisionRotaryEmbedding,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import get_vision_position_ids

from nora_policy.models.config import NoraConfig
from nora_policy.models.expert import Prefix, repeat_mask, with_room
from nora_policy.models.inputs import ModelInputs


class KeyValueRecorder:
    """Records the keys and values of every layer; passed to transformers as its KV cache."""

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def update(
        self, k_BKLH: torch.Tensor, v_BKLH: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert layer <= len(self.keys), "layers run in order"
        if layer == len(self.keys):  # else it is computed again, for its gradients
            self.keys.append(k_BKLH)
            self.values.append(v_BKLH)
        return k_BKLH, v_BKLH


class TokenCache:
    """KV cache for generating tokens: [prefix | room for them], allocated once.

    Made for `samples` texts behind every prefix, which is copied once; nothing moves afterwards.
    """

    def __init__(self, prefix: Prefix, samples: int, room: int) -> None:
        self._length = prefix.keys[0].shape[2]
        self._keys = [with_room(x, samples, room) for x in prefix.keys]
        self._values = [with_room(x, samples, room) for x in prefix.values]
        mask_BL = repeat_mask(prefix.mask_BL, samples)
        self._mask_BL = None if mask_BL is None else F.pad(mask_BL, (0, room), value=True)

    def mask(self) -> torch.Tensor | None:
        """Where the next token may look (B, 1, 1, L), itself included; None: everywhere."""
        if self._mask_BL is None:
            return None
        return self._mask_BL[:, None, None, : self._length + 1]

    def update(
        self, k_BK1H: torch.Tensor, v_BK1H: torch.Tensor, layer: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self._length + 1
        self._keys[layer][:, :, self._length : end] = k_BK1H
        self._values[layer][:, :, self._length : end] = v_BK1H
        if layer == len(self._keys) - 1:
            self._length = end
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]


class PatchEmbed(nn.Module):
    """A convolution whose kernels do not overlap, as the matrix product that it is.

    With few channels it is many times as fast on a CPU, above all backwards.
    """

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, pixels_PC: torch.Tensor) -> torch.Tensor:
        weight = self.proj.weight
        return F.linear(pixels_PC.to(weight.dtype), weight.flatten(1))


class VisionAttention(nn.Module):
    """Windows (or images) of the same size attend at once, not one after the other."""

    def __init__(self, stock: Qwen2_5_VLVisionAttention) -> None:
        super().__init__()
        self.qkv, self.proj, self._num_heads = stock.qkv, stock.proj, stock.num_heads

    def forward(
        self,
        x_PE: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: object,
    ) -> torch.Tensor:
        """`cu_seqlens`: where windows begin, in patches, and where the last one ends."""
        q_PKH, k_PKH, v_PKH = self.qkv(x_PE).unflatten(-1, (3, self._num_heads, -1)).unbind(1)
        q_PKH, k_PKH = apply_rotary_pos_emb_vision(q_PKH, k_PKH, *position_embeddings)
        begins, lengths = cu_seqlens[:-1], cu_seqlens.diff()
        y_PKH = torch.empty_like(v_PKH)
        for length in sorted(set(lengths.tolist())):
            of_length = begins[lengths == length]
            place_WS = of_length[:, None] + torch.arange(length, device=of_length.device)
            q, k, v = (x[place_WS].transpose(1, 2) for x in (q_PKH, k_PKH, v_PKH))
            y_PKH[place_WS] = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        y_PE: torch.Tensor = self.proj(y_PKH.flatten(1))
        return y_PE


def build(config: NoraConfig) -> Any:
    """A `Qwen2_5_VLForConditionalGeneration` with new weights (untyped)."""
    text: dict[str, Any] = dataclasses.asdict(config.text_config)
    rope = {
        "rope_type": "default",
        "rope_theta": text.pop("rope_theta"),
        "mrope_section": list(text.pop("mrope_section")),
    }
    vision = dataclasses.asdict(config.vision_config)
    ids = config.token_ids
    hf_config = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope, "bos_token_id": None, "eos_token_id": None},
        vision_config={**vision, "fullatt_block_indexes": list(vision["fullatt_block_indexes"])},
        image_token_id=ids.image,
        video_token_id=ids.video,
        vision_start_token_id=ids.vision_start,
        vision_end_token_id=ids.vision_end,
        tie_word_embeddings=config.text_config.tie_word_embeddings,
    )
    model: Any = Qwen2_5_VLForConditionalGeneration
    vlm = model._from_config(hf_config, attn_implementation="sdpa")
    visual = vlm.model.visual
    visual.patch_embed = PatchEmbed(visual.patch_embed.proj)
    for block in visual.blocks:
        block.attn = VisionAttention(block.attn)
    return vlm


def restore_unsaved(vlm: Any) -> None:
    """Tie the output to the embedding and compute the rotary tables: no checkpoint holds them."""
    language, visual = vlm.model.language_model, vlm.model.visual
    if vlm.config.tie_word_embeddings:
        vlm.lm_head.weight = language.embed_tokens.weight
    device = language.embed_tokens.weight.device
    language.rotary_emb = Qwen2_5_VLRotaryEmbedding(language.config).to(device)
    visual.rotary_pos_emb = Qwen2_5_VLVisionRotaryEmbedding(visual.config).to(device)


def encode(vlm: Any, inputs: ModelInputs, config: NoraConfig) -> tuple[Prefix, torch.Tensor]:
    """Prefix of the expert and the last hidden states (B, L, E) of the prompt.

    Everything that depends on counts (positions, windows) is worked out on the CPU, where `inputs`
    are, so that a GPU is never waited for.
    """
    language = vlm.model.language_model
    device = language.norm.weight.device
    is_image_BL = inputs.input_ids_BL == config.token_ids.image
    grid, mask_BL = inputs.image_grid_N3, inputs.attention_mask_BL.bool()
    expected = int(grid.prod(dim=-1).sum()) // config.vision_config.spatial_merge_size**2
    if int(is_image_BL.sum()) != expected:
        raise ValueError(
            f"input_ids: expected {expected} image tokens, got {int(is_image_BL.sum())}"
        )
    positions_3BL, _ = vlm.model.get_rope_index(
        inputs.input_ids_BL, is_image_BL.int(), grid, attention_mask=mask_BL
    )
    x_BLE = language.embed_tokens(inputs.input_ids_BL.to(device))
    image_E = _image_embeddings(vlm.model.visual, inputs.pixel_values_PC.to(device), grid)
    x_BLE = x_BLE.masked_scatter(is_image_BL.to(device)[..., None], image_E.to(x_BLE.dtype))
    is_padded = not bool(mask_BL.all())
    is_padded_in_front = bool((mask_BL[:, 1:] & ~mask_BL[:, :-1]).any())
    recorder = KeyValueRecorder()
    output = language(
        inputs_embeds=x_BLE,
        # Text does not look at what comes after it: padding there needs no mask.
        attention_mask={
            "full_attention": _causal(mask_BL).to(device) if is_padded_in_front else None
        },
        position_ids=positions_3BL.to(device),
        past_key_values=recorder,
        use_cache=True,
    )
    prefix = Prefix(
        recorder.keys,
        recorder.values,
        mask_BL.to(device) if is_padded else None,
        positions_3BL.masked_fill(~mask_BL, -1).amax(dim=(0, 2)) + 1,
    )
    return prefix, output.last_hidden_state


def next_hidden(
    vlm: Any, tokens_B: torch.Tensor, position_B: torch.Tensor, cache: TokenCache
) -> Any:
    """Hidden state (B, E) of one more token per text, at these rotary positions."""
    language = vlm.model.language_model
    output = language(
        inputs_embeds=language.embed_tokens(tokens_B)[:, None],
        attention_mask={"full_attention": cache.mask()},
        position_ids=position_B[None, :, None].expand(3, -1, -1),
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state[:, 0]


def _causal(mask_BL: torch.Tensor) -> torch.Tensor:
    """(B, 1, L, L): true where a token may look; padding looks at itself, softmax needs input."""
    length, device = mask_BL.shape[1], mask_BL.device
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    diagonal_LL = torch.eye(length, dtype=torch.bool, device=device)
    return causal_LL & mask_BL[:, None, None] | diagonal_LL


def _image_embeddings(visual: Any, pixels_PC: torch.Tensor, grid_N3: torch.Tensor) -> torch.Tensor:
    """One row per image token, in the order of the prompt."""
    position_ids = get_vision_position_ids(grid_N3, visual.spatial_merge_size)
    output = visual(
        pixels_PC.to(visual.dtype),
        grid_thw=grid_N3,
        position_ids=position_ids.to(pixels_PC.device),
    )
    embeddings: torch.Tensor = output.pooler_output
    return embeddings
