"""The trained module: a network with an optional auxiliary head, and the losses of a batch.

Legend: B batch, L tokens, E hidden dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from nora_policy.models import nora15
from nora_policy.models.config import NoraConfig
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
    """A network, which of its heads are trained, and in which precision."""

    def __init__(
        self,
        model: Nora,
        heads: Heads,
        *,
        keyframe_weight: float = 0.0,
        is_bf16: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.keyframe_weight, self.is_bf16 = model, keyframe_weight, is_bf16
        self.learns_tokens, self.learns_flow = learned(model.config, heads)
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
            encoded = self.model.encode(batch.targets.inputs)
            found = nora15.losses(
                self.model,
                encoded,
                batch.targets,
                learns_tokens=self.learns_tokens,
                learns_flow=self.learns_flow,
            )
            keyframe = self._keyframe(encoded[1], batch)
        total = found.total + self.keyframe_weight * keyframe
        return Losses(total, found.cross_entropy.detach(), found.flow.detach(), keyframe.detach())

    def layers(self) -> list[nn.Module]:
        """The repeated layers of the network, in the order of computation."""
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
        """Cross entropy of every token to learn and whether it is the argmax, on the CPU."""
        rows, columns = (labels_BL[:, 1:] != IGNORED).nonzero(as_tuple=True)
        targets = labels_BL[rows, columns + 1]
        with torch.no_grad(), self._autocast():
            _, hidden_BLE = self.model.encode(inputs)
            logits = self.model.logits(hidden_BLE[rows, columns]).float().cpu()
        losses = F.cross_entropy(logits, targets, reduction="none")
        return losses, logits.argmax(dim=-1) == targets

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.is_bf16)

    def _keyframe(self, hidden_BLE: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Loss of the displacement predicted from the prompt's last hidden state."""
        if self.keyframe_head is None:
            return hidden_BLE.new_zeros((), dtype=torch.float32)
        device = self.model.device
        last_BE = hidden_BLE[torch.arange(len(batch.last_B)), batch.last_B.to(device)]
        predicted_B3 = self.keyframe_head(last_BE).float()
        target_B3 = batch.keyframe_B3.to(device) / SCALE_M
        total = F.smooth_l1_loss(predicted_B3, target_B3, reduction="sum")
        return total / (3 * batch.num_samples)


def learned(config: NoraConfig, heads: Heads) -> tuple[bool, bool]:
    """Whether the token head and the flow head of the network are trained.

    Raises:
        ValueError: the network lacks the head.
    """
    has = config.heads
    if heads != "both" and heads not in has:
        raise ValueError(f"heads: {config.kind} has {' and '.join(has)}, got {heads!r}")
    return "fast" in has and heads != "flow", "flow" in has and heads != "fast"
