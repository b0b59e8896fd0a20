"""What is learned: a network, perhaps with an auxiliary head, and the losses of a batch.

NORA-1.5, section 3.2: cross entropy of the FAST tokens + alpha * flow matching.

Legend: B batch, L tokens, E hidden dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from nora_policy.models.expert import Prefix
from nora_policy.models.inputs import IGNORED, ModelInputs
from nora_policy.models.nora import Nora
from nora_policy.models.nora15 import Nora15
from nora_training.sft.batches import Batch
from nora_training.sft.keyframes import SCALE_M
from nora_training.sft.settings import Heads


class Losses(NamedTuple):
    """Scalars; parts of a batch add up to the loss of the whole."""

    total: torch.Tensor
    cross_entropy: torch.Tensor
    flow: torch.Tensor
    keyframe: torch.Tensor


class Learner(nn.Module):
    """A network and how it is to be taught."""

    def __init__(
        self, model: Nora, heads: Heads, keyframe_weight: float = 0.0, is_bf16: bool = False
    ) -> None:
        super().__init__()
        self.model, self.keyframe_weight, self.is_bf16 = model, keyframe_weight, is_bf16
        self.learns_tokens, self.learns_flow = learned(model, heads)
        if isinstance(model, Nora15) and not self.learns_flow:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.startswith("vlm."))
        self.keyframe_head: nn.Linear | None = None
        if keyframe_weight:
            self.keyframe_head = nn.Linear(model.config.text_config.hidden_size, 3)
            nn.init.zeros_(self.keyframe_head.weight)
            nn.init.zeros_(self.keyframe_head.bias)

    def forward(self, batch: Batch) -> Losses:
        with self._autocast():
            return self._losses(batch)

    def layers(self) -> list[nn.Module]:
        """The repeated parts of the network, inputs first."""
        vlm = self.model.vlm.model
        layers = [*vlm.visual.blocks, *vlm.language_model.layers]
        if isinstance(self.model, Nora15):
            layers += self.model.action_expert.layers
        return layers

    def predict(
        self, inputs: ModelInputs, noise_BTA: torch.Tensor, num_steps: int
    ) -> torch.Tensor:
        """Normalised actions (B, T, A) of the flow head, on the CPU; `inputs` without tokens."""
        assert isinstance(self.model, Nora15)
        with torch.no_grad(), self._autocast():
            prefix, _ = self.model.encode(inputs)
            actions_BTA = self.model.sample(prefix, noise_BTA.to(self.model.device), num_steps)
        return actions_BTA.cpu()

    def next_tokens(
        self, inputs: ModelInputs, labels_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every token to learn: cross entropy and whether it is the likeliest, on the CPU."""
        rows, columns = (labels_BL[:, 1:] != IGNORED).nonzero(as_tuple=True)
        targets = labels_BL[rows, columns + 1]
        with torch.no_grad(), self._autocast():
            _, hidden_BLE = self.model.encode(inputs)
            logits = self.model.logits(hidden_BLE[rows, columns]).float().cpu()
        losses = F.cross_entropy(logits, targets, reduction="none")
        return losses, logits.argmax(dim=-1) == targets

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.is_bf16)

    def _losses(self, batch: Batch) -> Losses:
        device = self.model.device
        prefix, hidden_BLE = self.model.encode(batch.inputs)
        zero = hidden_BLE.new_zeros((), dtype=torch.float32)
        cross_entropy, flow, keyframe = zero, zero, zero
        if self.learns_tokens:
            cross_entropy = self.model.cross_entropy(hidden_BLE, batch.labels_BL, batch.num_tokens)
        if self.learns_flow:
            assert isinstance(self.model, Nora15)
            visible = Prefix(prefix.keys, prefix.values, batch.expert_mask_BL.to(device))
            flow = self.model.flow_loss(
                visible,
                batch.actions_BTA.to(device),
                batch.noise_FTA.to(device),
                batch.tau_F.to(device),
                batch.is_real_BT.to(device),
                batch.num_steps,
            )
        if self.keyframe_head is not None:
            last_BE = hidden_BLE[torch.arange(len(batch.last_B)), batch.last_B.to(device)]
            predicted_B3 = self.keyframe_head(last_BE).float()
            target_B3 = batch.keyframe_B3.to(device) / SCALE_M
            total = F.smooth_l1_loss(predicted_B3, target_B3, reduction="sum")
            keyframe = total / (3 * batch.num_samples)
        total = cross_entropy + self.model.config.alpha * flow + self.keyframe_weight * keyframe
        return Losses(total, cross_entropy.detach(), flow.detach(), keyframe.detach())


def learned(model: Nora, heads: Heads) -> tuple[bool, bool]:
    """Whether tokens and flow are learned.

    Raises:
        ValueError: the network lacks the head.
    """
    has = model.config.heads
    if heads != "both" and heads not in has:
        raise ValueError(f"heads: expected one of {model.config.kind}, {has}, got {heads!r}")
    return "fast" in has and heads != "flow", "flow" in has and heads != "fast"
