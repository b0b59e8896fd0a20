"""A run's checkpoint, in our layout, and its card."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from nora_core.normalization import Statistics
from nora_policy.checkpoints import checkpoint
from nora_policy.checkpoints.shapes import EMBEDDING
from nora_policy.models.config import NoraConfig
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.nora import Nora
from nora_policy.models.nora15 import build
from nora_training.data import dataset
from nora_training.data.dataset import Dataset, Entry
from nora_training.sft import record

BAGS = "bags.txt"
MAX_LISTED = 100


def export(
    folder: Path,
    model: Nora,
    tokenizer: Tokenizer,
    fast: FastTokenizer | None,
    data: Dataset,
    statistics: Statistics,
    card: Mapping[str, Any],
) -> None:
    """Write everything; the card comes last and at once: a folder with one is whole."""
    checkpoint.save(folder, model, tokenizer, fast)
    key = data.embodiment.action.statistics_key
    facts = {key: {"action": statistics.to_json()}}
    checkpoint.save_facts(folder, data.root / dataset.EMBODIMENT, facts, card)


def rebuild(config: NoraConfig, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Nora:
    """A network on the CPU with these parameters."""
    whole = {name: tensor.to("cpu", dtype) for name, tensor in state.items()}
    if config.text_config.tie_word_embeddings:
        whole[checkpoint.LM_HEAD] = whole[EMBEDDING]
    with torch.device("meta"):
        model = build(config)
    model.load_state_dict(whole, assign=True)
    return model


def bags(entries: Sequence[Entry], folder: Path) -> dict[str, Any]:
    """For a card: the bags and their SHA-256; a digest of many, whose list goes to a file."""
    lines = sorted(f"{entry.sha256}  {Path(entry.bag).name}" for entry in entries)
    if len(lines) <= MAX_LISTED:
        return {"number": len(lines), "sha256": lines}
    text = "\n".join(lines) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / BAGS).write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"number": len(lines), "list": BAGS, "sha256_of_list": digest}


def read_card(folder: Path) -> dict[str, Any] | None:
    """None without one; raises as `record.read`."""
    path = folder / checkpoint.CARD
    return record.read(path) if path.is_file() else None
