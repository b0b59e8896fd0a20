"""Networks from and to checkpoint folders: ours and the published ones. No pickle, no network."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from nora_policy.checkpoints import files, layout
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
from nora_policy.checkpoints.shapes import EMBEDDING, LM_HEAD
from nora_policy.checkpoints.weights import WEIGHTS
from nora_policy.models import backbone
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.nora import Nora
from nora_policy.models.nora15 import build

__all__ = [
    "CARD",
    "CONFIG",
    "EMBODIMENT",
    "FAST",
    "LM_HEAD",
    "STATISTICS",
    "TOKENIZER",
    "WEIGHTS",
    "load",
    "load_config",
    "load_fast",
    "load_tokenizer",
    "require",
    "save",
    "save_facts",
]

logger = logging.getLogger(__name__)


def load(
    folder: Path, device: torch.device, dtype: torch.dtype, horizon: int | None = None
) -> Nora:
    """The network of `folder` in evaluation mode, each tensor read straight to its place.

    What is unlike the release is logged as warnings. `horizon` is for published NORA and
    NORA-Long, which do not say theirs.

    Raises:
        FileNotFoundError: the folder or its weights are not there.
        ValueError: names the missing, unexpected or misshapen parameters.
    """
    found = layout.require_horizon(layout.read(folder, horizon))
    for note in found.notes:
        logger.warning("%s: %s", folder, note)
    with torch.device("meta"):
        model = build(found.config)
    state = _read(found, device, dtype)
    if found.config.text_config.tie_word_embeddings:
        state[LM_HEAD] = state[EMBEDDING]
    model.load_state_dict(state, assign=True)
    backbone.restore_unsaved(model.vlm)
    return model.eval()


def save(
    folder: Path, model: Nora, tokenizer: Tokenizer, fast: FastTokenizer | None = None
) -> None:
    """Write weights, `config.json`, tokenizers; an interruption keeps the old weights."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.text_config.tie_word_embeddings:
        del state[LM_HEAD]
    partial = folder / f"{WEIGHTS}.partial"
    save_file(state, partial)
    partial.chmod(0o644)  # safetensors writes for its owner only; robots run as another user
    partial.replace(folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(dataclasses.asdict(model.config), indent=2) + "\n")
    tokenizer.save(str(folder / TOKENIZER))
    if fast is not None:
        fast.save(folder / FAST)


def save_facts(
    folder: Path, embodiment_file: Path, statistics: Mapping[str, Any], card: Mapping[str, Any]
) -> None:
    """Write the rest of a checkpoint: `embodiment.yaml`, statistics by key, `card.json` last.

    Each file at once, over what may be there.
    """
    partial = folder / f".{EMBODIMENT}"
    shutil.copyfile(embodiment_file, partial)
    partial.replace(folder / EMBODIMENT)
    files.write_json(folder / STATISTICS, statistics)
    files.write_json(folder / CARD, card)


def _read(
    found: layout.Layout, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    layout.check_tied(found)
    state: dict[str, torch.Tensor] = {}
    for path in sorted({tensor.path for tensor in found.tensors.values()}):
        with safe_open(path, framework="pt") as file:
            for name, tensor in found.tensors.items():
                if tensor.path == path and not (name == LM_HEAD and found.has_tied_head):
                    state[name] = file.get_tensor(tensor.name).to(device, dtype)
    return state
