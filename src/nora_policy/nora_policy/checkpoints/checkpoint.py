"""Networks from and to checkpoint folders: ours and the published ones. No pickle, no network."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from nora_core.files import replacing, write_json
from nora_policy.checkpoints import layout
from nora_policy.checkpoints.layout import (
    CARD,
    CONFIG,
    EMBODIMENT,
    FAST,
    STATISTICS,
    TOKENIZER,
    load_config,
    load_fast,
    load_tokenizer,
    require,
)
from nora_policy.checkpoints.weights import EMBEDDING, LM_HEAD, WEIGHTS
from nora_policy.models import backbone
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.nora import Nora
from nora_policy.models.nora15 import build

__all__ = [
    "CARD",
    "CONFIG",
    "EMBEDDING",
    "EMBODIMENT",
    "FAST",
    "LM_HEAD",
    "STATISTICS",
    "TOKENIZER",
    "WEIGHTS",
    "load",
    "load_config",
    "load_fast",
    "load_network",
    "load_tokenizer",
    "require",
    "save",
    "save_facts",
]

logger = logging.getLogger(__name__)


def load(
    folder: Path, device: torch.device, dtype: torch.dtype, horizon: int | None = None
) -> Nora:
    """The network of `folder` in evaluation mode.

    `horizon` is for published NORA and NORA-Long, which do not say theirs.

    Raises:
        FileNotFoundError: the folder or its weights are missing.
        ValueError: names the missing, unexpected or misshapen parameters.
    """
    return load_network(layout.read(folder, horizon), device, dtype)


def load_network(found: layout.Layout, device: torch.device, dtype: torch.dtype) -> Nora:
    """The network of a folder that was read; each tensor goes straight to its place.

    What is unlike the release is logged as warnings. Raises as `load`.
    """
    layout.require_horizon(found)
    layout.check_tied(found)
    for note in found.notes:
        logger.warning("%s: %s", found.folder, note)
    with torch.device("meta"):
        model = build(found.config)
    state: dict[str, torch.Tensor] = {}
    for path in sorted({tensor.path for tensor in found.tensors.values()}):
        with safe_open(path, framework="pt") as file:
            for name, tensor in found.tensors.items():
                if tensor.path == path and not (name == LM_HEAD and found.has_tied_head):
                    state[name] = file.get_tensor(tensor.name).to(device, dtype)
    if found.config.text_config.tie_word_embeddings:
        state[LM_HEAD] = state[EMBEDDING]
    model.load_state_dict(state, assign=True)
    backbone.restore_unsaved(model.vlm)
    return model.eval()


def save(
    folder: Path, model: Nora, tokenizer: Tokenizer, fast: FastTokenizer | None = None
) -> None:
    """Write weights, `config.json` and tokenizers, each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.text_config.tie_word_embeddings:
        del state[LM_HEAD]
    with replacing(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
        temporary.chmod(0o644)  # safetensors writes for its owner only; robots run as another user
    write_json(folder / CONFIG, dataclasses.asdict(model.config))
    with replacing(folder / TOKENIZER) as temporary:
        tokenizer.save(str(temporary))
    if fast is not None:
        fast.save(folder / FAST)


def save_facts(
    folder: Path, embodiment_file: Path, statistics: Mapping[str, Any], card: Mapping[str, Any]
) -> None:
    """Write the rest of a checkpoint: `embodiment.yaml`, statistics by key, `card.json` last.

    Each file is written atomically and replaces the one that may be there.
    """
    with replacing(folder / EMBODIMENT) as temporary:
        shutil.copyfile(embodiment_file, temporary)
    write_json(folder / STATISTICS, statistics)
    write_json(folder / CARD, card)
