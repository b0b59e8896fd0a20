"""NORA-1.5: Qwen2.5-VL and a flow-matching action expert (arXiv 2511.14659, section 3).

Flow time tau runs from 1 (noise) to 0 (actions): x_tau = tau * noise + (1 - tau) * actions, and
the network predicts v = noise - actions.

Legend: B batch, L prompt tokens, T chunk step, A action dim, D expert dim, E backbone dim,
F = B * draws of flow time, P image patches, C patch values, N flow steps or images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from nora_policy.models.config import NoraConfig
from nora_policy.models.expert import ActionExpert, Prefix, PrefixBuffer
from nora_policy.models.inputs import ModelInputs
from nora_policy.models.nora import Nora

PERIOD_MIN, PERIOD_MAX = 4e-3, 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """What the network reads and what it has to predict, for one batch or one part of it.

    Attributes:
        inputs: prompts, each followed by its FAST tokens.
        labels_BL: token ids, `IGNORED` where no token is learned.
        expert_mask_BL: true where the expert may look: neither padding nor FAST tokens.
        actions_BTA: normalised.
        is_real_BT: False where no flow is learned, past the end of an episode.
        noise_FTA: drawn from N(0, 1); the draws of one sample are neighbours.
        tau_F: flow time in (0, 1].
        num_tokens: learned tokens of the whole batch; sums over tokens are divided by it, so that
            the losses of the parts of a batch add up to the loss of the batch.
        num_steps: real steps of the whole batch, in the same way.
    """

    inputs: ModelInputs
    labels_BL: torch.Tensor
    expert_mask_BL: torch.Tensor
    actions_BTA: torch.Tensor
    is_real_BT: torch.Tensor
    noise_FTA: torch.Tensor
    tau_F: torch.Tensor
    num_tokens: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars: `total` = `cross_entropy` + alpha * `flow`."""

    cross_entropy: torch.Tensor
    flow: torch.Tensor
    total: torch.Tensor


class Nora15(Nora):
    """NORA and an action expert; parameters are named as in the published checkpoints."""

    def __init__(self, config: NoraConfig) -> None:
        super().__init__(config)
        if config.expert is None:
            raise ValueError("config.json: expert: expected one for NORA-1.5, got none")
        dim, text = config.expert.hidden_size, config.text_config
        self.action_expert = ActionExpert(config.expert, text.head_dim, text.rms_norm_eps)
        self.action_in_proj = nn.Linear(config.action_dim, dim)
        self.action_time_mlp_in = nn.Linear(2 * dim, dim)
        self.action_time_mlp_out = nn.Linear(dim, dim)
        self.action_out_proj = nn.Linear(dim, config.action_dim)

    def velocity(
        self, x_BTA: torch.Tensor, tau_B: torch.Tensor, prefix: Prefix | PrefixBuffer
    ) -> torch.Tensor:
        """v_BTA (float32) at flow time tau_B; a single tau holds for the whole batch."""
        return self._velocity(x_BTA, self._time_bias(tau_B), prefix)

    @torch.no_grad()
    def sample(
        self, prefix: Prefix, noise_BTA: torch.Tensor, num_steps: int | None = None
    ) -> torch.Tensor:
        """Normalised actions (B, T, A), float32, by Euler steps from tau = 1 to 0.

        `noise_BTA` may hold several samples per prefix (neighbours in the batch), so B is a
        multiple of the prefix's batch. The clock counts integers: exactly `num_steps` steps.
        """
        num_steps = self.config.flow_steps if num_steps is None else num_steps
        samples, rest = divmod(noise_BTA.shape[0], prefix.batch_size)
        if rest or not samples:
            raise ValueError(
                f"noise: expected a multiple of {prefix.batch_size} samples, "
                f"got {noise_BTA.shape[0]}"
            )
        buffer = PrefixBuffer(prefix, samples, noise_BTA.shape[1])
        tau_N = torch.arange(num_steps, 0, -1, device=self.device) / num_steps
        bias_ND = self._time_bias(tau_N)
        x_BTA = noise_BTA.float()
        for step in range(num_steps):
            x_BTA = x_BTA - self._velocity(x_BTA, bias_ND[step : step + 1], buffer) / num_steps
        return x_BTA

    def flow_loss(self, visible: Prefix, targets: Targets) -> torch.Tensor:
        """Mean squared error of the velocities over real steps; the expert reads `visible`."""
        device, draws = self.device, len(targets.tau_F) // len(targets.actions_BTA)
        actions_FTA, is_real_FT = (
            x.to(device).repeat_interleave(draws, dim=0)
            for x in (targets.actions_BTA, targets.is_real_BT)
        )
        noise_FTA, tau_F = targets.noise_FTA.to(device), targets.tau_F.to(device)
        if draws > 1:
            visible = visible.repeat(draws)
        tau_F11 = tau_F[:, None, None]
        x_FTA = tau_F11 * noise_FTA + (1 - tau_F11) * actions_FTA
        v_FTA = self.velocity(x_FTA, tau_F, visible)
        error_FT = (v_FTA - (noise_FTA - actions_FTA)).square().mean(dim=-1)
        return (error_FT * is_real_FT).sum() / (targets.num_steps * draws)

    def _velocity(
        self, x_BTA: torch.Tensor, bias_BD: torch.Tensor, prefix: Prefix | PrefixBuffer
    ) -> torch.Tensor:
        dim = bias_BD.shape[-1]
        embedded = self.action_in_proj(x_BTA.to(bias_BD.dtype))
        mixed = F.linear(embedded, self.action_time_mlp_in.weight[:, :dim]) + bias_BD[:, None]
        suffix_BTD = self.action_time_mlp_out(F.silu(mixed))
        v_BTA: torch.Tensor = self.action_out_proj(self.action_expert(suffix_BTD, prefix))
        return v_BTA.float()

    def _time_bias(self, tau_B: torch.Tensor) -> torch.Tensor:
        """The share of flow time in the first layer of the time MLP (B, D): constant per step."""
        layer = self.action_time_mlp_in
        dim = layer.out_features
        embedding_BD = time_embedding(tau_B, dim).to(layer.weight.dtype)
        return F.linear(embedding_BD, layer.weight[:, dim:], layer.bias)


def time_embedding(tau_B: torch.Tensor, dim: int) -> torch.Tensor:
    """[sin | cos] of tau over periods from 4e-3 to 4, geometric; float32 (B, dim)."""
    share = torch.linspace(0.0, 1.0, dim // 2, device=tau_B.device)
    period = PERIOD_MIN * (PERIOD_MAX / PERIOD_MIN) ** share
    # Phases reach 1570 rad, where the order of float32 products shows in the velocities (1e-5).
    phase_BD = (1.0 / period * 2 * math.pi) * tau_B.float()[:, None]
    return torch.cat([phase_BD.sin(), phase_BD.cos()], dim=-1)


def losses(
    model: Nora,
    encoded: tuple[Prefix, torch.Tensor],
    targets: Targets,
    *,
    learns_tokens: bool = True,
    learns_flow: bool = True,
) -> Losses:
    """The training losses (section 3.2), zero where a head is not trained.

    `encoded` is what `model.encode(targets.inputs)` returned.
    """
    prefix, hidden_BLE = encoded
    cross_entropy = flow = hidden_BLE.new_zeros((), dtype=torch.float32)
    if learns_tokens:
        cross_entropy = model.cross_entropy(hidden_BLE, targets.labels_BL, targets.num_tokens)
    if learns_flow:
        assert isinstance(model, Nora15)
        mask_BL = targets.expert_mask_BL.bool().to(model.device)
        flow = model.flow_loss(Prefix(prefix.keys, prefix.values, mask_BL), targets)
    return Losses(cross_entropy, flow, cross_entropy + model.config.alpha * flow)


def build(config: NoraConfig) -> Nora:
    """The network that `config` describes, with new weights."""
    return Nora(config) if config.expert is None else Nora15(config)
