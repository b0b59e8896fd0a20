"""A run's checkpoint, in our layout, and its card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nora_policy.checkpoints import checkpoint
from nora_policy.models.config import NoraConfig
from nora_policy.models.nora import Nora
from nora_policy.models.nora15 import build
from nora_training.data import dataset
from nora_training.data.dataset import Entry
from nora_training.sft import record
from nora_training.sft.material import Material


def export(folder: Path, model: Nora, material: Material, card: Mapping[str, Any]) -> None:
    """Write all files; the card comes last, so that a folder that has one is complete."""
    checkpoint.save(folder, model, material.tokenizer, material.fast)
    key = material.dataset.embodiment.action.statistics_key
    facts = {key: {"action": material.statistics.to_json()}}
    checkpoint.save_facts(folder, material.dataset.root / dataset.EMBODIMENT, facts, card)


def rebuild(config: NoraConfig, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Nora:
    """A network on the CPU with these parameters."""
    whole = {name: tensor.to("cpu", dtype) for name, tensor in state.items()}
    if config.text_config.tie_word_embeddings:
        whole[checkpoint.LM_HEAD] = whole[checkpoint.EMBEDDING]
    with torch.device("meta"):
        model = build(config)
    model.load_state_dict(whole, assign=True)
    return model


def bags(entries: Sequence[Entry]) -> dict[str, Any]:
    """For a card: how many bags, and one hash that identifies them all.

    It is the SHA-256 of the text with one line per bag, `<SHA-256 of the bag>  <its name>`, in
    sorted order.
    """
    lines = sorted(f"{entry.sha256}  {Path(entry.bag).name}\n" for entry in entries)
    return {"number": len(lines), "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}


def read_card(folder: Path) -> dict[str, Any] | None:
    """None without one; raises as `record.read`."""
    path = folder / checkpoint.CARD
    return record.read(path) if path.is_file() else None
