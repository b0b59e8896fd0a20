"""The action expert: a small transformer over the action tokens that reads the backbone's K/V.

NORA-1.5, section 3.1. Layer l attends to [keys and values of backbone layer l | its own]; action
tokens see the whole prefix and each other. Their rotary positions are 0 ... T-1, not offset by the
prefix.

Legend: B batch, S samples per prefix, L prefix tokens, T chunk step, D expert dim, F feed-forward
dim, N heads, K key-value heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from nora_policy.models.config import ExpertConfig


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys (after rotation) and values of every backbone layer, each (B, K, L, H).

    `mask_BL` is true where its readers may look; None means everywhere. Gradients flow through it.
    `next_position_B`: rotary position of a token that would follow.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    mask_BL: torch.Tensor | None = None
    next_position_B: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        return self.keys[0].shape[0]

    def repeat(self, samples: int) -> Prefix:
        """Repeat keys, values and mask `samples` times, copies adjacent in the batch."""
        keys, values = (
            [x.repeat_interleave(samples, dim=0) for x in tensors]
            for tensors in (self.keys, self.values)
        )
        return Prefix(keys, values, repeat_mask(self.mask_BL, samples))

    def extend(
        self, layer: int, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[prefix | suffix] keys and values of `layer`, as new tensors (for training)."""
        keys, values = self.keys[layer], self.values[layer]
        return torch.cat([keys, k_BKTH], dim=2), torch.cat([values, v_BKTH], dim=2)


class PrefixBuffer:
    """[prefix | room for T suffix tokens] for S samples per prefix, in one place.

    The prefix is copied once; the suffix is overwritten by every flow step (no gradients).
    """

    def __init__(self, prefix: Prefix, samples: int, horizon: int) -> None:
        self.mask_BL = repeat_mask(prefix.mask_BL, samples)
        self._length = prefix.keys[0].shape[2]
        self._keys = [with_room(x, samples, horizon) for x in prefix.keys]
        self._values = [with_room(x, samples, horizon) for x in prefix.values]

    def extend(
        self, layer: int, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, self._length :] = k_BKTH
        values[:, :, self._length :] = v_BKTH
        return keys, values


def repeat_mask(mask_BL: torch.Tensor | None, samples: int) -> torch.Tensor | None:
    return None if mask_BL is None else mask_BL.repeat_interleave(samples, dim=0)


def with_room(x_BKLH: torch.Tensor, samples: int, horizon: int) -> torch.Tensor:
    """(B * samples, K, L + horizon, H); the samples of one prefix are neighbours."""
    batch, heads, length, dim = x_BKLH.shape
    room = x_BKLH.new_empty(batch, samples, heads, length + horizon, dim)
    room[:, :, :, :length] = x_BKLH[:, None]
    return room.flatten(0, 1)


def rotary_tables(
    horizon: int, head_dim: int, theta: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and signed sine (T, H) of the positions 0 ... T-1, float32."""
    powers = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    angles = torch.arange(horizon, device=device)[:, None] * theta**-powers
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x_BNTH: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotate the pairs (i, i + H/2) in float32."""
    cos_TH, sin_TH = rotary
    x = x_BNTH.float()
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos_TH, swapped, sin_TH).to(x_BNTH.dtype)


class Attention(nn.Module):
    """Attention of the action tokens to the prefix and to each other."""

    def __init__(self, config: ExpertConfig, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        query_dim = config.num_attention_heads * head_dim
        key_dim = config.num_key_value_heads * head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_dim)
        self.k_proj = nn.Linear(config.hidden_size, key_dim)
        self.v_proj = nn.Linear(config.hidden_size, key_dim)
        self.o_proj = nn.Linear(query_dim, config.hidden_size, bias=False)

    def forward(
        self,
        x_BTD: torch.Tensor,
        layer: int,
        prefix: Prefix | PrefixBuffer,
        mask_B11L: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        def heads(x_BTX: torch.Tensor) -> torch.Tensor:
            return x_BTX.view(*x_BTX.shape[:2], -1, self.head_dim).transpose(1, 2)

        q_BNTH = rotate(heads(self.q_proj(x_BTD)), rotary)
        k_BKTH = rotate(heads(self.k_proj(x_BTD)), rotary)
        keys, values = prefix.extend(layer, k_BKTH, heads(self.v_proj(x_BTD)))
        # Every query sees the same keys, so the heads that share one K/V head become its rows.
        batch, num_kv_heads = keys.shape[:2]
        grouped = q_BNTH.reshape(batch, num_kv_heads, -1, self.head_dim)
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask_B11L)
        out_BNTH = out.reshape(q_BNTH.shape)
        projected: torch.Tensor = self.o_proj(out_BNTH.transpose(1, 2).flatten(2))
        return projected


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: ExpertConfig, head_dim: int, eps: float) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps)
        self.self_attn = Attention(config, head_dim)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps)
        self.mlp = FeedForward(config)

    def forward(
        self,
        x_BTD: torch.Tensor,
        layer: int,
        prefix: Prefix | PrefixBuffer,
        mask_B11L: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        normed = self.input_layernorm(x_BTD)
        x_BTD = x_BTD + self.self_attn(normed, layer, prefix, mask_B11L, rotary)
        out: torch.Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return out


class ActionExpert(nn.Module):
    """Stack of layers and a final norm."""

    def __init__(self, config: ExpertConfig, head_dim: int, eps: float) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = head_dim, config.rope_theta
        self.layers = nn.ModuleList(
            Layer(config, head_dim, eps) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.RMSNorm(config.hidden_size, eps)

    def forward(self, x_BTD: torch.Tensor, prefix: Prefix | PrefixBuffer) -> torch.Tensor:
        horizon = x_BTD.shape[1]
        rotary = rotary_tables(horizon, self.head_dim, self.rope_theta, x_BTD.device)
        mask = prefix.mask_BL
        if mask is not None:
            mask = F.pad(mask, (0, horizon), value=True)[:, None, None]
        for index, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, index, prefix, mask, rotary)
        out: torch.Tensor = self.norm(x_BTD)
        return out
