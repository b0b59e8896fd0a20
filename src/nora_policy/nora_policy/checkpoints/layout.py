"""A checkpoint folder, ours or published, read and checked without its weights.

Ours is `model.safetensors`, `config.json`, `tokenizer.json`, `norm_stats.json`, `embodiment.yaml`,
`card.json` and, for the token head, `fast/` (the files of a FAST tokenizer). A published one has
`config.json` in the style of Qwen2.5-VL, or none, and its weights may be in shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from nora_core import strict_yaml
from nora_core.embodiment import Embodiment, training_mismatches
from nora_core.normalization import Statistics
from nora_policy.checkpoints import files, published, published_files, weights
from nora_policy.checkpoints.weights import EMBEDDING, INDEX, LM_HEAD, WEIGHTS, Stored
from nora_policy.models.config import NORA_3B, NoraConfig
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.nora15 import build

CONFIG, TOKENIZER = published_files.CONFIG, published_files.TOKENIZER
IGNORED = (*weights.PICKLES, ".py")
FAST = "fast"  # folder
STATISTICS, EMBODIMENT, CARD = "norm_stats.json", "embodiment.yaml", "card.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A folder whose files agree with each other.

    Attributes:
        folder: the checkpoint.
        is_ours: our own layout, not a published one.
        config: the network; its horizon means nothing unless `is_horizon_known`.
        is_horizon_known: whether the files, or whoever asked for them, say the horizon.
        tensors: our name of every parameter and where it is.
        dropped: names in the files of tensors that are not used.
        notes: what is unlike the release, one line each.
    """

    folder: Path
    is_ours: bool
    config: NoraConfig
    is_horizon_known: bool
    tensors: Mapping[str, Stored]
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def has_tied_head(self) -> bool:
        """Whether the file repeats the embedding as the output."""
        return self.config.text_config.tie_word_embeddings and LM_HEAD in self.tensors


def read(folder: Path, horizon: int | None = None) -> Layout:
    """Read everything but the weights; `horizon` is for files that do not say it (NORA).

    Raises:
        FileNotFoundError: the folder or its weights are missing.
        ValueError: names the file and what does not fit in it, one line.
    """
    require(folder, WEIGHTS)
    stored = weights.read(folder)
    path = folder / CONFIG
    data = files.read_json(path) if path.is_file() else {}
    layout = (_ours if "expert" in data else _published)(folder, data, stored, horizon)
    expected = _expected_shapes(layout)
    if layout.config.text_config.tie_word_embeddings and LM_HEAD not in layout.tensors:
        del expected[LM_HEAD]
    got = {name: tensor.shape for name, tensor in layout.tensors.items()}
    if problem := weights.difference(expected, got):
        raise ValueError(f"{_weights_file(folder)}: {problem}")
    return layout


def misfits(
    found: Layout,
    statistics: Mapping[str, Statistics],
    embodiment: Embodiment,
    head: str | None = None,
) -> list[str]:
    """Why this checkpoint cannot drive a robot, one line each; empty when it can.

    The same check for loading a policy, `nora-checkpoint inspect` and `convert`. `head` is in
    place of the embodiment's.
    """
    action, config = embodiment.action, found.config
    head, num_actions, key = head or action.head, len(action.names), action.statistics_key
    reasons = []
    if (found.folder / EMBODIMENT).is_file():
        trained = Embodiment.load(found.folder / EMBODIMENT)
        if mismatches := training_mismatches(trained, embodiment):
            reasons.append(f"trained for another robot: {'; '.join(mismatches)}")
    if config.action_dim != num_actions:
        reasons.append(f"{CONFIG}: action_dim: expected {num_actions}, got {config.action_dim}")
    if key not in statistics:
        reasons.append(
            f"{STATISTICS}: expected statistics {key!r}, available: {sorted(statistics)}"
        )
    elif (got := statistics[key].q01_A.size) != num_actions:
        reasons.append(f"{STATISTICS}: {key}: expected {num_actions}, got {got}")
    if head not in config.heads:
        heads = " or ".join(config.heads)
        reasons.append(f"head: expected one of {config.kind}, {heads}, got {head!r}")
    elif head == "fast" and not (found.folder / FAST).is_dir():
        reasons.append(f"{FAST}/ is missing")
    if not (found.folder / TOKENIZER).is_file():
        reasons.append(f"{TOKENIZER} is missing")
    if not found.is_horizon_known:
        reasons.append("horizon: unknown")
    return reasons


def read_statistics(path: Path) -> tuple[dict[str, Statistics], list[str]]:
    """The usable statistics by key, and a line for every one that is not."""
    if not path.is_file():
        return {}, [f"{path.name} is missing, so nothing scales the actions"]
    found, strange = {}, []
    for key, entry in files.read_json(path).items():
        try:
            found[key] = Statistics.from_json(entry["action"])
        except KeyError as error:
            name = error.args[0]
            why = ": which dimensions are scaled is not said" if name == "mask" else ""
            strange.append(f"{path.name}: {key}: no {name}{why}")
        except (TypeError, ValueError) as error:
            strange.append(f"{path.name}: {key}: {error}")
        else:
            if found[key].mask_A[-1:].any():
                strange.append(f"{path.name}: {key}: the mask scales the last one, the gripper")
    return found, strange


def load_config(folder: Path, horizon: int | None = None) -> NoraConfig:
    """The network that a folder describes; raises as `read`, and where its horizon is unknown."""
    return require_horizon(read(folder, horizon)).config


def require_horizon(layout: Layout) -> Layout:
    """Raise `ValueError` unless the files, or whoever asked for them, say the horizon."""
    if not layout.is_horizon_known:
        raise ValueError(
            f"checkpoint {layout.folder}: horizon: expected 1 (NORA) or 5 (NORA-Long), the "
            f"published files do not say it: nora-checkpoint convert {layout.folder} OUT --horizon"
        )
    return layout


def check_tied(layout: Layout) -> None:
    """Raise `ValueError` when the output should be the embedding and has values of its own."""
    if not layout.has_tied_head:
        return
    head, embedding = layout.tensors[LM_HEAD], layout.tensors[EMBEDDING]
    is_alike = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    pairs = zip(head.blocks(), embedding.blocks(), strict=True)
    if not is_alike or not all(torch.equal(a, b) for a, b in pairs):
        raise ValueError(f"{head.path}: {LM_HEAD}: expected the values of the embedding (tied)")


def require(folder: Path, *names: str) -> None:
    """Raise `FileNotFoundError` naming the files of `names` that `folder` lacks.

    An index of shards counts as weights.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint {folder}: no such folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if WEIGHTS in missing and (folder / INDEX).is_file():
        missing.remove(WEIGHTS)
    if not missing:
        return
    available = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in available if name.endswith(weights.PICKLES)]
    if WEIGHTS in missing and pickles:
        raise ValueError(
            f"checkpoint {folder}: expected {WEIGHTS}, got {pickles[0]}: a pickle, which may run "
            "code when opened; safetensors only"
        )
    raise FileNotFoundError(
        f"checkpoint {folder}: expected {', '.join(missing)}, available: {available}"
    )


def load_tokenizer(folder: Path, config: NoraConfig) -> Tokenizer:
    """Read `tokenizer.json`; its markers must have the ids that the network was trained with."""
    if not (folder / TOKENIZER).is_file() and (folder / "vocab.json").is_file():
        raise FileNotFoundError(
            f"{folder / TOKENIZER}: no such file; vocab.json and merges.txt are not enough, "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes it"
        )
    require(folder, TOKENIZER)
    path = folder / TOKENIZER
    files.read_json(path)  # tokenizers itself raises a bare Exception
    tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
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


def _ours(
    folder: Path, data: Mapping[str, Any], stored: Mapping[str, Stored], horizon: int | None
) -> Layout:
    try:
        config = strict_yaml.build(NoraConfig, data)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    if horizon not in (None, config.horizon):
        raise ValueError(f"{folder / CONFIG}: horizon: expected {horizon}, got {config.horizon}")
    return _layout(
        folder, config, is_ours=True, is_horizon_known=True, prefix="", stored=stored, notes=[]
    )


def _published(
    folder: Path, data: Mapping[str, Any], stored: Mapping[str, Stored], given: int | None
) -> Layout:
    is_nora15 = published.is_nora15(stored)
    if is_nora15 and not any(name.startswith("action_") for name in stored):
        raise ValueError(
            f"{_weights_file(folder)}: expected the action expert of NORA-1.5 (action_expert.*, "
            "action_in_proj.*), got only its backbone"
        )
    if is_nora15 and given not in (None, 5):
        raise ValueError(f"checkpoint {folder}: horizon: expected 5 for NORA-1.5, got {given}")
    prefix = "" if is_nora15 else "vlm."
    names = _names(folder, stored, prefix)
    known = {new: stored[old].shape for new, old in names.items()}
    notes: list[str] = []
    if not data:
        notes.append(f"{CONFIG}: not there, the dimensions of the release are assumed")
    if ignored := sorted(p.name for p in folder.iterdir() if p.name.endswith(IGNORED)):
        notes.append(f"ignored, since they may run code: {', '.join(ignored)}")
    is_release_size = known.get(EMBEDDING, (0, 0))[1:] == (NORA_3B.text_config.hidden_size,)
    tokens = published_files.tokens(folder, data, is_release_size, notes)
    head = published_files.token_head(folder, tokens.end, notes)
    try:
        horizon = 5 if is_nora15 else given or 1
        config = published.config(data, known, tokens, head, horizon, notes)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    vision = config.vision_config
    patches = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    published_files.check_images(folder, patches, config.image_size, notes)
    return _layout(
        folder,
        config,
        is_ours=False,
        is_horizon_known=is_nora15 or given is not None,
        prefix=prefix,
        stored=stored,
        notes=notes,
    )


def _expected_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The parameters of the network that the config describes, built without memory for them."""
    path, config = layout.folder / CONFIG, layout.config
    depths = config.text_config.num_hidden_layers, config.vision_config.depth
    if max(depths) > len(layout.tensors):
        raise ValueError(
            f"{path}: num_hidden_layers, depth: expected those of "
            f"{len(layout.tensors)} tensors, got {depths}"
        )
    try:
        with torch.device("meta"):
            model = build(config)
    except (RuntimeError, TypeError, OverflowError) as error:  # sizes beyond 64 bits
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path}: torch cannot build a network of these sizes: {reason}"
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _names(folder: Path, stored: Mapping[str, Stored], prefix: str) -> dict[str, str]:
    try:
        return published.names(stored, prefix)
    except ValueError as error:
        raise ValueError(f"{_weights_file(folder)}: {error}") from error


def _layout(
    folder: Path,
    config: NoraConfig,
    *,
    is_ours: bool,
    is_horizon_known: bool,
    prefix: str,
    stored: Mapping[str, Stored],
    notes: list[str],
) -> Layout:
    names = _names(folder, stored, prefix)
    used = set(names.values())
    dropped = tuple(sorted(name for name in stored if name not in used))
    if dropped:
        notes.append(f"{len(dropped)} tensors are not used: {', '.join(dropped[:2])}, ...")
    return Layout(
        folder=folder,
        is_ours=is_ours,
        config=config,
        is_horizon_known=is_horizon_known,
        tensors={new: stored[old] for new, old in names.items()},
        dropped=dropped,
        notes=tuple(notes),
    )


def _weights_file(folder: Path) -> Path:
    return folder / (INDEX if (folder / INDEX).is_file() else WEIGHTS)
