"""Checkpoints on disk: ours and the published layouts. Strict; no pickle, no network.

Ours is a folder of `model.safetensors`, `config.json`, `tokenizer.json`, `norm_stats.json`,
`embodiment.yaml`, `card.json` and, for the token head, `fast/` (the files of a FAST tokenizer). A
published one has the first four at most, its `config.json` in the style of Qwen2.5-VL; without one
the dimensions of the release are expected.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from nora_policy import schema
from nora_policy.models import backbone, published
from nora_policy.models.config import NoraConfig
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.nora import Nora
from nora_policy.models.nora15 import build

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
FAST = "fast"  # folder
STATISTICS, EMBODIMENT, CARD = "norm_stats.json", "embodiment.yaml", "card.json"

LM_HEAD = "vlm.lm_head.weight"
SHOWN = 5


def load(folder: Path, device: torch.device, dtype: torch.dtype) -> Nora:
    """The network of `folder` in evaluation mode, each tensor read straight to its place.

    Raises:
        FileNotFoundError: the folder or its weights are not there.
        ValueError: names the missing, unexpected or misshapen parameters.
    """
    require(folder, WEIGHTS)
    config = load_config(folder)
    with torch.device("meta"):
        model = build(config)
    state = _read(folder / WEIGHTS, model, device, dtype)
    if config.text_config.tie_word_embeddings:
        state[LM_HEAD] = state[published.EMBEDDING]
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
    """Write the rest of a checkpoint: `embodiment.yaml`, statistics by key, `card.json`."""
    shutil.copyfile(embodiment_file, folder / EMBODIMENT)
    (folder / STATISTICS).write_text(json.dumps(statistics, indent=2) + "\n")
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")


def load_tokenizer(folder: Path, config: NoraConfig) -> Tokenizer:
    """Read `tokenizer.json`; its markers must have the ids that the network was trained with."""
    require(folder, TOKENIZER)
    path = folder / TOKENIZER
    text = path.read_text()
    try:
        json.loads(text)  # tokenizers itself raises a bare Exception
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    tokenizer = Tokenizer.from_str(text)
    last = config.num_action_tokens - 1
    expected = {
        "<|image_pad|>": config.token_ids.image,
        "<|vision_start|>": config.token_ids.vision_start,
        "<|vision_end|>": config.token_ids.vision_end,
        "<robot_action_0>": config.action_token_min,
        f"<robot_action_{last}>": config.action_token_min + last,
    }
    for token, index in expected.items():
        if tokenizer.token_to_id(token) != index:
            raise ValueError(
                f"{path}: {token}: expected id {index}, got {tokenizer.token_to_id(token)}"
            )
    return tokenizer


def load_fast(folder: Path, config: NoraConfig) -> FastTokenizer:
    """Read `fast/`; it may not have more tokens than the network has rows for them."""
    fast = FastTokenizer.load(folder / FAST)
    if fast.vocab_size > config.num_action_tokens:
        raise ValueError(
            f"{folder / FAST}: expected at most {config.num_action_tokens} tokens, "
            f"got {fast.vocab_size}"
        )
    return fast


def require(folder: Path, *names: str) -> None:
    """Raise `FileNotFoundError` naming the files of `names` that `folder` lacks."""
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint {folder}: no such folder")
    if missing := [name for name in names if not (folder / name).is_file()]:
        available = sorted(path.name for path in folder.iterdir())
        raise FileNotFoundError(
            f"checkpoint {folder}: expected {', '.join(missing)}, available: {available}"
        )


def load_config(folder: Path) -> NoraConfig:
    """What our `config.json` says, or the published layout in its own way."""
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text()) if path.is_file() else None
        if data is not None and "expert" in data:
            return schema.build(NoraConfig, data)
        with _open(folder / WEIGHTS) as file:
            return published.config(data or {}, _shapes(file, published.names(file.keys())))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(
    path: Path, model: Nora, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    is_tied = model.config.text_config.tie_word_embeddings
    with _open(path) as file:
        names = published.names(file.keys())
        if is_tied and LM_HEAD not in names:
            del expected[LM_HEAD]
        if problem := _difference(expected, _shapes(file, names)):
            raise ValueError(f"{path}: {problem}")
        if is_tied and LM_HEAD in names:
            head, embedding = (file.get_tensor(names[n]) for n in (LM_HEAD, published.EMBEDDING))
            if not torch.equal(head, embedding):
                raise ValueError(f"{path}: {LM_HEAD}: expected the values of the embedding (tied)")
            del names[LM_HEAD]
        return {new: file.get_tensor(old).to(device, dtype) for new, old in names.items()}


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from error


def _shapes(file: Any, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    return {new: tuple(file.get_slice(old).get_shape()) for new, old in names.items()}


def _difference(
    expected: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]
) -> str:
    """One line that names what does not fit; empty when everything does."""
    wrong = [
        f"{name} (expected {shape}, got {got[name]})"
        for name, shape in expected.items()
        if name in got and got[name] != shape
    ]
    problems = {
        "missing": sorted(expected.keys() - got.keys()),
        "unexpected": sorted(got.keys() - expected.keys()),
        "wrong shape": wrong,
    }
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for kind, names in problems.items()
        if names
    )
