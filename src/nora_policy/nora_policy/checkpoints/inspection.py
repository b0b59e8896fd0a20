"""What a checkpoint folder holds and which robots it fits, without reading its weights."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nora_core.embodiment import Embodiment
from nora_core.normalization import Statistics
from nora_policy.checkpoints import layout, published, published_files
from nora_policy.checkpoints.layout import Layout
from nora_policy.checkpoints.weights import LM_HEAD
from nora_policy.models.config import NoraConfig

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Report:
    """What a checkpoint is.

    Attributes:
        facts: name and value, in order.
        surprises: what is missing or unlike the release.
        fits: whether it fits every robot that was asked about.
    """

    facts: tuple[tuple[str, str], ...]
    surprises: tuple[str, ...]
    fits: bool

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.facts)
        lines = [f"{name:<{width}}  {value}" for name, value in self.facts]
        lines += [f"! {surprise}" for surprise in self.surprises]
        return "\n".join(lines)


def inspect(folder: Path, horizon: int | None = None, embodiments: Sequence[Path] = ()) -> Report:
    """Read headers and small files of `folder`.

    Raises:
        FileNotFoundError, ValueError: the checkpoint could not be loaded, and why.
    """
    found, surprises = open_folder(folder, horizon)
    facts = [*_network(found), *_files(found)]
    if (folder / layout.TOKENIZER).is_file():
        layout.load_tokenizer(folder, found.config)
    fast, more = _fast(found)
    facts.append(("fast", fast))
    statistics, strange = layout.read_statistics(folder / layout.STATISTICS)
    surprises += [*more, *strange]
    facts += [(f"statistics {key}", _scaled(value)) for key, value in statistics.items()]
    verdicts = {}
    for path in embodiments:
        embodiment = Embodiment.load(path)
        reasons = layout.misfits(found, statistics, embodiment)
        verdicts[f"fits {embodiment.name}"] = f"no: {'; '.join(reasons)}" if reasons else "yes"
    fits = all(verdict == "yes" for verdict in verdicts.values())
    return Report((*facts, *verdicts.items()), tuple(surprises), fits)


def open_folder(folder: Path, horizon: int | None = None) -> tuple[Layout, list[str]]:
    """The layout of a folder, whose origin may say the horizon, and the surprises in it."""
    found = layout.read(folder, horizon)
    surprises = list(found.notes)
    release = published.release(folder)
    if found.is_ours or release is None:
        return found, surprises
    known = published.RELEASES[release]
    if not found.is_horizon_known:
        return layout.read(folder, known), surprises
    if found.config.horizon != known:
        surprises.append(f"horizon: {found.config.horizon} was given, {release} has {known}")
    if found.config.expert is None and release.startswith("nora-1.5"):
        surprises.append(f"weights: no action expert, {release} has one")
    return found, surprises


def _network(found: Layout) -> list[tuple[str, str]]:
    config = found.config
    backbone, expert = _count(found)
    kind, horizon = config.kind, str(config.horizon)
    if not found.is_horizon_known:
        kind, horizon = "NORA or NORA-Long", "unknown: --horizon 1 (NORA) or 5 (NORA-Long)"
    head = config.token_head
    return [
        ("kind", kind),
        ("layout", "ours" if found.is_ours else "published"),
        ("heads", ", ".join(config.heads)),
        ("horizon", horizon),
        ("action dim", str(config.action_dim)),
        ("backbone", f"{backbone:,} parameters: {_backbone(config)}"),
        ("expert", f"{expert:,} parameters: {_expert(config)}" if expert else "none"),
        (
            "action tokens",
            f"{config.action_token_min} ... "
            f"{config.action_token_min + config.num_action_tokens - 1}",
        ),
        ("repetition penalty", f"{head.repetition_penalty:g}" if head else "no token head"),
    ]


def _count(found: Layout) -> tuple[int, int]:
    """Parameters of the backbone and of the action expert with its projections."""
    sizes = {name: tensor.num_items for name, tensor in found.tensors.items()}
    if found.has_tied_head:
        del sizes[LM_HEAD]
    backbone = sum(size for name, size in sizes.items() if name.startswith("vlm."))
    return backbone, sum(sizes.values()) - backbone


def _backbone(config: NoraConfig) -> str:
    text, vision = config.text_config, config.vision_config
    return (
        f"{text.num_hidden_layers} x {text.hidden_size}, {text.num_attention_heads} heads, "
        f"{text.num_key_value_heads} of keys, {text.vocab_size} rows"
        f"{' (tied)' if text.tie_word_embeddings else ''}; "
        f"vision {vision.depth} x {vision.hidden_size}, {config.image_size} px"
    )


def _expert(config: NoraConfig) -> str:
    assert config.expert is not None, "it has parameters"
    sizes: dict[str, Any] = dataclasses.asdict(config.expert)
    return (
        "{num_hidden_layers} x {hidden_size}, {num_attention_heads} heads, "
        "{num_key_value_heads} of keys, feed forward {intermediate_size}"
    ).format(**sizes)


def _files(found: Layout) -> list[tuple[str, str]]:
    types = Counter(tensor.dtype for tensor in found.tensors.values())
    paths = sorted({tensor.path for tensor in found.tensors.values()})
    sizes = (f"{path.name} {path.stat().st_size / GIB:.3f} GiB" for path in paths)
    return [
        ("types", ", ".join(f"{dtype} x {number}" for dtype, number in sorted(types.items()))),
        ("weights", ", ".join(sizes)),
    ]


def _fast(found: Layout) -> tuple[str, list[str]]:
    folder = found.folder / layout.FAST
    if not folder.is_dir():
        return "none", ["fast/ is missing, so the token head cannot be used"]
    notes: list[str] = []
    layout.load_fast(found.folder, found.config)
    digest = published_files.check_fast(folder, notes)
    return f"sha256 {digest}", notes


def _scaled(statistics: Statistics) -> str:
    mask = "".join("01"[scaled] for scaled in statistics.mask_A.tolist())
    return f"{statistics.q01_A.size} dimensions, scaled: {mask}"
