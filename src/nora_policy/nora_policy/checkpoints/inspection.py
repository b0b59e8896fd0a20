"""What a checkpoint folder holds and which robots it fits, without reading its weights."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nora_core.embodiment import Embodiment, training_mismatches
from nora_core.normalization import Statistics
from nora_policy.checkpoints import files, layout, published, published_files, shapes
from nora_policy.checkpoints.layout import Layout
from nora_policy.models.config import NoraConfig

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Report:
    """`facts`: name and value, in order. `surprises`: what is missing or unlike the release."""

    facts: tuple[tuple[str, str], ...]
    surprises: tuple[str, ...]

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
    statistics, strange = read_statistics(folder / layout.STATISTICS)
    surprises += [*more, *strange]
    facts += [(f"statistics {key}", _scaled(value)) for key, value in statistics.items()]
    for path in embodiments:
        embodiment = Embodiment.load(path)
        reasons = misfits(found, statistics, embodiment)
        verdict = f"no: {'; '.join(reasons)}" if reasons else "yes"
        facts.append((f"fits {embodiment.name}", verdict))
    return Report(tuple(facts), tuple(surprises))


def open_folder(folder: Path, horizon: int | None = None) -> tuple[Layout, list[str]]:
    """Its layout, where the folder's origin may say the horizon, and the surprises."""
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


def read_statistics(path: Path) -> tuple[dict[str, Statistics], list[str]]:
    """Those that can be used, by key; a line for every one that cannot."""
    if not path.is_file():
        return {}, [f"{path.name}: not there, nothing scales the actions"]
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


def misfits(
    found: Layout, statistics: Mapping[str, Statistics], embodiment: Embodiment
) -> list[str]:
    """Why `Policy.load` would refuse this checkpoint for a robot; empty when it would not."""
    action, config = embodiment.action, found.config
    reasons = []
    if config.action_dim != len(action.names):
        reasons.append(f"action_dim: expected {len(action.names)}, got {config.action_dim}")
    if action.statistics_key not in statistics:
        available = sorted(statistics)
        reasons.append(f"statistics: expected {action.statistics_key}, available: {available}")
    elif statistics[action.statistics_key].q01_A.size != len(action.names):
        got = statistics[action.statistics_key].q01_A.size
        reasons.append(f"{action.statistics_key}: expected {len(action.names)}, got {got}")
    if action.head not in config.heads:
        reasons.append(f"head: expected {' or '.join(config.heads)}, got {action.head}")
    if action.head == "fast" and not (found.folder / layout.FAST).is_dir():
        reasons.append("fast/: not there")
    if not (found.folder / layout.TOKENIZER).is_file():
        reasons.append(f"{layout.TOKENIZER}: not there")
    if not found.is_horizon_known:
        reasons.append("horizon: unknown")
    if (found.folder / layout.EMBODIMENT).is_file():
        taught = Embodiment.load(found.folder / layout.EMBODIMENT)
        reasons += training_mismatches(taught, embodiment)
    return reasons


def _network(found: Layout) -> list[tuple[str, str]]:
    config = found.config
    backbone, expert = shapes.count(config)
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
        return "none", ["fast/: not there, the token head cannot be used"]
    notes: list[str] = []
    layout.load_fast(found.folder, found.config)
    digest = published_files.check_fast(folder, notes)
    return f"sha256 {digest}", notes


def _scaled(statistics: Statistics) -> str:
    mask = "".join("01"[scaled] for scaled in statistics.mask_A.tolist())
    return f"{statistics.q01_A.size} dimensions, scaled: {mask}"
