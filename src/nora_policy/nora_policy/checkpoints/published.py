"""The published layouts: names of parameters, and the network that these files describe.

NORA and NORA-Long are folders of transformers' Qwen2.5-VL; NORA-1.5 is one `model.safetensors`
whose names begin with `vlm.` or `action_`, its `config.json`, if any, knows nothing of the expert.

Written without sight of the files. Assumed, checked where a folder is read, and never verified
against the release:
- NORA has no `lm_head` of its own, or one equal to the embedding; names are those of transformers
  4.50 (`visual.*`, `model.layers.*`) or of 4.52 and later (`model.visual.*`,
  `model.language_model.*`);
- the action tokens are the ids 151665 ... 153712 and the embedding has a row for each of them;
- nothing in the files says the horizon of NORA and NORA-Long;
- NORA-1.5 has the expert of its constructor (228 377 095 parameters, the paper says about 400 M),
  in float32 or bfloat16; preference training leaves `ref_action_expert.*` and
  `ref_action_out_proj.*` behind;
- `generation_config.json` has the repetition penalty that NORA was evaluated with;
- images of 224 x 224 px pass the image processor unresized;
- the FAST tokenizer is FAST+ with the hash `published_files.FAST_PLUS`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from nora_core import strict_yaml
from nora_policy.checkpoints import files
from nora_policy.checkpoints.published_files import Tokens
from nora_policy.checkpoints.weights import EMBEDDING, LM_HEAD
from nora_policy.models.config import (
    NORA15_3B,
    ExpertConfig,
    NoraConfig,
    TextConfig,
    TokenHeadConfig,
    VisionConfig,
)

C = TypeVar("C", TextConfig, VisionConfig)
Shapes = Mapping[str, tuple[int, ...]]

ACTION_IN = "action_in_proj.weight"
SOURCE = "source.json"
AUTHORS = "declare-lab"
SUITES = ("spatial", "object", "goal", "10")
# Horizon of every release.
RELEASES = {
    "nora": 1,
    "nora-long": 5,
    **{f"nora-finetuned-libero-{suite}": 1 for suite in SUITES},
    **{f"nora-long-finetuned-libero-{suite}": 5 for suite in SUITES},
    "nora-1.5": 5,
    "nora-1.5-libero": 5,
    "nora-1.5-fractal-dpo": 5,
}
# The frozen reference of preference training, saved beside the policy.
IGNORED_PREFIXES = ("ref_action_expert.", "ref_action_out_proj.")
# What older versions of transformers called the same parameters.
RENAMED = (
    (re.compile(r"^vlm\.visual\."), "vlm.model.visual."),
    (re.compile(r"^vlm\.model\.(?=(?:layers|embed_tokens|norm)\.)"), "vlm.model.language_model."),
)
# Settings of Qwen2.5-VL that our code takes for granted.
GRANTED = {"hidden_act": "silu", "use_sliding_window": False, "model_type": "qwen2_5_vl"}


def release(folder: Path) -> str | None:
    """Which of `RELEASES` a folder holds, as its download or else its name says."""
    if (folder / SOURCE).is_file():
        authors, _, name = str(files.read_json(folder / SOURCE).get("repo")).partition("/")
        return name if authors == AUTHORS and name in RELEASES else None
    cached = re.search(rf"models--{AUTHORS}--([^/]+)/snapshots/", folder.resolve().as_posix())
    name = cached[1] if cached else folder.resolve().name
    return name if name in RELEASES else None


def is_nora15(stored: Iterable[str]) -> bool:
    """Whether these parameters are those of NORA-1.5, not of a plain Qwen2.5-VL."""
    return any(name.startswith(("vlm.", "action_")) for name in stored)


def names(stored: Iterable[str], prefix: str = "") -> dict[str, str]:
    """Our name of every parameter that counts -> its name in the file, without `prefix`."""
    found: dict[str, str] = {}
    for old in stored:
        if old.startswith(IGNORED_PREFIXES):
            continue
        new = prefix + old
        for pattern, replacement in RENAMED:
            new = pattern.sub(replacement, new)
        if new in found:
            raise ValueError(f"{new}: expected once, got it as {found[new]} and {old}")
        found[new] = old
    return found


def config(
    data: Mapping[str, Any],
    shapes: Shapes,
    tokens: Tokens,
    head: TokenHeadConfig,
    horizon: int,
    notes: list[str],
) -> NoraConfig:
    """The network that `data` (a Qwen2.5-VL config, may be empty) and the parameters describe.

    What neither says is as in the release. `shapes` by our names; surprises go into `notes`.
    """
    nested = _section(data, "text_config") or data
    _check_granted(data, nested)
    rope = _section(nested, "rope_parameters", "rope_scaling")
    rows = _shape(shapes, EMBEDDING)[0]
    stated = {**data, **nested}.get("vocab_size", rows)
    if stated != rows:
        notes.append(f"config.json: vocab_size is {stated}, the embedding has {rows} rows")
    text = dataclasses.replace(
        _replace(NORA15_3B.text_config, {**data, **nested, **rope}),
        vocab_size=rows,
        tie_word_embeddings=_is_tied(data, nested, shapes, notes),
    )
    expert = _expert(text, shapes)
    return dataclasses.replace(
        NORA15_3B,
        text_config=text,
        vision_config=_replace(NORA15_3B.vision_config, _section(data, "vision_config")),
        token_ids=tokens.markers,
        horizon=horizon,
        action_dim=shapes[ACTION_IN][1] if expert else NORA15_3B.action_dim,
        action_token_min=tokens.action_min,
        num_action_tokens=tokens.num_actions,
        expert=expert,
        token_head=head,
    )


def _check_granted(data: Mapping[str, Any], nested: Mapping[str, Any]) -> None:
    for name, granted in GRANTED.items():
        got = (data if name == "model_type" else nested).get(name, granted)
        if got != granted:
            raise ValueError(f"{name}: expected {granted!r}, got {got!r}")
    if "quantization_config" in data:
        raise ValueError("quantization_config: expected none: quantised weights are not read")


def _is_tied(
    data: Mapping[str, Any], nested: Mapping[str, Any], shapes: Shapes, notes: list[str]
) -> bool:
    """Whether the output is the embedding, which is so in the release."""
    name = "tie_word_embeddings"
    stated = data.get(name, nested.get(name))
    if stated is False:
        notes.append(f"config.json: {name} is false, in the release it is true")
    elif stated is None and data:
        notes.append(f"config.json: {name} is not stated, true is assumed as in the release")
    if LM_HEAD in shapes:
        notes.append(f"{LM_HEAD} is in the file, in the release it is tied and absent")
    return stated is not False


def _expert(text: TextConfig, shapes: Shapes) -> ExpertConfig | None:
    if not any(name.startswith("action_") for name in shapes):
        return None
    layer = "action_expert.layers.0"
    query = f"{layer}.self_attn.q_proj.weight"
    num_heads, rest = divmod(_shape(shapes, query)[0], text.head_dim)
    if rest or not num_heads:
        raise ValueError(
            f"{query}: expected a multiple of head_dim {text.head_dim} rows, "
            f"got {_shape(shapes, query)[0]}"
        )
    return ExpertConfig(
        hidden_size=_shape(shapes, ACTION_IN)[0],
        intermediate_size=_shape(shapes, f"{layer}.mlp.gate_proj.weight")[0],
        num_attention_heads=num_heads,
        num_key_value_heads=text.num_key_value_heads,
        num_hidden_layers=text.num_hidden_layers,
    )


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"1 missing: {name}")
    return shapes[name]


def _replace(known: C, data: Mapping[str, Any]) -> C:
    """`known` with every field that `data` also has; its other keys do not matter to us."""
    values = {
        k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(known).items()
    }
    stated = {name: data[name] for name in values if data.get(name) is not None}
    return strict_yaml.build(type(known), {**values, **stated})


def _section(data: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The object under the first of `names` that is there, else an empty one."""
    for name in names:
        section = data.get(name)
        if isinstance(section, dict):
            return section
        if section is not None:
            raise ValueError(f"{name}: expected an object, got {type(section).__name__}")
    return {}
