"""NORA: Qwen2.5-VL that generates FAST action tokens (arXiv 2504.19854), and the base of NORA-1.5.

Legend: B batch, R text (one of the samples of a prompt), L prompt tokens, E backbone dim,
V FAST token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from nora_policy.models import backbone
from nora_policy.models.config import NoraConfig, TokenHeadConfig
from nora_policy.models.expert import Prefix
from nora_policy.models.grammar import DecodingState, FreeDecodingState
from nora_policy.models.inputs import IGNORED, ModelInputs


class Nora(nn.Module):
    """Backbone and token head; parameters are named as in our checkpoints."""

    def __init__(self, config: NoraConfig) -> None:
        super().__init__()
        self.config = config
        self.vlm = backbone.build(config)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.vlm.model.language_model.norm.weight.device
        return device

    def encode(self, inputs: ModelInputs) -> tuple[Prefix, torch.Tensor]:
        """Run the backbone once: keys and values, and the last hidden states (B, L, E)."""
        return backbone.encode(self.vlm, inputs, self.config)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., vocabulary) of hidden states (..., E)."""
        out: torch.Tensor = self.vlm.lm_head(hidden)
        return out

    def action_logits(self, hidden_RE: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Logits (R, V + 1), float32, of `num_tokens` FAST tokens and the end."""
        weight, first = self.vlm.lm_head.weight, self.config.action_token_min
        end = self._token_head.end_token
        rows = (weight[first : first + num_tokens], weight[end : end + 1])
        return torch.cat([F.linear(hidden_RE, row) for row in rows], dim=-1).float()

    def token_loss(self, inputs: ModelInputs, labels_BL: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy of the next tokens in `labels_BL`, `IGNORED` where none is learned.

        `preprocess.with_target` makes both arguments. NORA, section 3.2.
        """
        return self.cross_entropy(self.encode(inputs)[1], labels_BL)

    def cross_entropy(
        self, hidden_BLE: torch.Tensor, labels_BL: torch.Tensor, num_tokens: int | None = None
    ) -> torch.Tensor:
        """Compute `token_loss`, with logits only at positions that have a label.

        The sum is divided by `num_tokens`, by default what is learned here: a part of a batch
        divides by the count of the whole.
        """
        labels = labels_BL[:, 1:]
        is_learned = labels != IGNORED
        num_tokens = int(is_learned.sum()) if num_tokens is None else num_tokens
        rows, columns = is_learned.nonzero(as_tuple=True)  # on the CPU: a GPU is not waited for
        hidden = hidden_BLE[rows.to(self.device), columns.to(self.device)]
        targets = labels[rows, columns].to(self.device)
        total = F.cross_entropy(self.logits(hidden).float(), targets, reduction="sum")
        return total / max(num_tokens, 1)

    @torch.no_grad()
    def generate(
        self,
        prefix: Prefix,
        hidden_BLE: torch.Tensor,
        states: Sequence[DecodingState | FreeDecodingState],
        randoms: Sequence[torch.Generator] | None = None,
        temperature: float = 1.0,
    ) -> None:
        """Generate FAST tokens until every one of `states` has ended.

        Args:
            prefix: keys and values of `encode`.
            hidden_BLE: the last hidden states of `encode`.
            states: the same number for every prompt; those of one prompt are neighbours.
            randoms: one generator (CPU) per state to sample with; None decodes greedily.
            temperature: of sampling, > 0.

        Raises:
            ValueError: the number of states does not fit, or the temperature is not > 0.
            RuntimeError: NaN or infinite logits.
        """
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature: expected > 0 and finite, got {temperature}")
        samples, rest = divmod(len(states), prefix.batch_size)
        if rest or not samples:
            raise ValueError(
                f"states: expected a multiple of {prefix.batch_size}, got {len(states)}"
            )
        assert prefix.next_position_B is not None, "prefixes of encode have one"
        num_tokens = states[0].end
        cache = backbone.TokenCache(prefix, samples, max(s.max_tokens for s in states))
        position_R = prefix.next_position_B.to(self.device).repeat_interleave(samples)
        hidden_RE = hidden_BLE[:, -1].repeat_interleave(samples, dim=0)
        seen_RV = torch.zeros(len(states), num_tokens + 1, dtype=torch.bool, device=self.device)
        seen_RV[:, num_tokens] = True  # the prompt has ended turns
        while True:
            logits_RV = self._penalised(self.action_logits(hidden_RE, num_tokens), seen_RV)
            # Worked out on the CPU while a GPU is still at the logits.
            allowed_RV = torch.from_numpy(np.stack([s.allowed() for s in states]))
            logits_RV.masked_fill_(~allowed_RV.to(self.device), -torch.inf)
            tokens_R = _choose(logits_RV, randoms, temperature)
            if not logits_RV.gather(1, tokens_R[:, None]).isfinite().all():
                raise RuntimeError("model output: expected finite logits, got NaN or infinity")
            for state, token in zip(states, tokens_R.tolist(), strict=True):
                state.append(token)
            if all(state.is_ended for state in states):
                return
            seen_RV.scatter_(1, tokens_R[:, None], True)
            hidden_RE = backbone.next_hidden(
                self.vlm, self._vocabulary(tokens_R, num_tokens), position_R, cache
            )
            position_R = position_R + 1

    @property
    def _token_head(self) -> TokenHeadConfig:
        if self.config.token_head is None:
            raise ValueError("config.json: token_head: expected one to write action tokens")
        return self.config.token_head

    def _penalised(self, logits_RV: torch.Tensor, seen_RV: torch.Tensor) -> torch.Tensor:
        penalty = self._token_head.repetition_penalty
        if penalty == 1.0:
            return logits_RV
        changed_RV = torch.where(logits_RV > 0, logits_RV / penalty, logits_RV * penalty)
        return torch.where(seen_RV, changed_RV, logits_RV)

    def _vocabulary(self, tokens_R: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Ids of the backbone's vocabulary."""
        ids_R = tokens_R + self.config.action_token_min
        return ids_R.masked_fill(tokens_R == num_tokens, self._token_head.end_token)


def _choose(
    logits_RV: torch.Tensor, randoms: Sequence[torch.Generator] | None, temperature: float
) -> torch.Tensor:
    """Return the argmax (R,), or tokens drawn from the softmax by adding Gumbel noise."""
    if randoms is None:
        return logits_RV.argmax(dim=-1)
    shape = logits_RV.shape[1:]
    uniform_RV = torch.stack([torch.rand(shape, generator=random) for random in randoms])
    gumbel_RV = -torch.log(-torch.log(uniform_RV.clamp(1e-20, 1 - 1e-7)))
    return (logits_RV / temperature + gumbel_RV.to(logits_RV.device)).argmax(dim=-1)
