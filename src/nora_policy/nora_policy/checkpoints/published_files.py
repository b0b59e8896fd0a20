"""The small files of a published folder: ids of tokens, generation, images, FAST.

Everything is compared with what our code does. What would change the actions and cannot be
honoured is a `ValueError`; what is only unlike the release is a note.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nora_policy.checkpoints import files
from nora_policy.models.config import NORA15_3B, TokenHeadConfig, TokenIds

CONFIG, TOKENIZER, ADDED_TOKENS = "config.json", "tokenizer.json", "added_tokens.json"
GENERATION, IMAGES, PROCESSOR = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
FAST_PLUS = "6507dd709287fd018882120c0071787f1f62bad9f180f1e8c5235bda1b71fa78"
FAST_SETTINGS = {"scale": 10, "min_token": -354, "vocab_size": 2048}

MARKERS = {
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
}
END = "<|im_end|>"
ACTION = re.compile(r"<robot_action_(\d+)>")
# Keys of generation_config.json that greedy decoding does not look at, or that are honoured.
HARMLESS = {
    "repetition_penalty",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "attn_implementation",
    "_from_model_config",
}
IMAGE_SETTINGS: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "rescale_factor": 1 / 255,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
}


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of the vocabulary: markers of images, the end of a turn, FAST token 0."""

    markers: TokenIds
    end: int
    action_min: int
    num_actions: int


RELEASE = Tokens(NORA15_3B.token_ids, 151_645, 151_665, 2048)


def tokens(
    folder: Path, data: Mapping[str, Any], is_release_size: bool, notes: list[str]
) -> Tokens:
    """Read the token ids from the tokenizer; `data`, the folder's `config.json`, must agree.

    Ids unlike those of the release are an error in a network of its size, else a note.
    """
    found = _tokens(folder, data, notes)
    for name, index in dataclasses.asdict(found.markers).items():
        stated = data.get(f"{name}_token_id", index)
        if stated != index:
            raise ValueError(
                f"{folder / CONFIG}: {name}_token_id: expected {index} as in the tokenizer, "
                f"got {stated}"
            )
    if found == RELEASE:
        return found
    problem = f"expected the ids of the release {_show(RELEASE)}, got {_show(found)}"
    if is_release_size:
        raise ValueError(f"{folder}: tokenizer: {problem}")
    notes.append(f"tokenizer: {problem}")
    return found


def token_head(folder: Path, end: int, notes: list[str]) -> TokenHeadConfig:
    """With the repetition penalty of `generation_config.json`."""
    path = folder / GENERATION
    if not path.is_file():
        notes.append(f"{GENERATION}: not there, a repetition penalty of 1 is assumed")
        return TokenHeadConfig(end)
    data = files.read_json(path)
    ends = data.get("eos_token_id", end)
    if end not in (ends if isinstance(ends, list) else [ends]):
        notes.append(f"{GENERATION}: eos_token_id is {ends}, our end is {END} ({end})")
    penalty = data.get("repetition_penalty")
    if penalty is None:
        notes.append(f"{GENERATION}: repetition_penalty is not stated, 1 is assumed")
        penalty = 1.0
    elif penalty != 1:
        notes.append(f"{GENERATION}: repetition_penalty {penalty} is honoured; it biases actions")
    notes += [
        f"{GENERATION}: {key} = {data[key]!r} has no effect here"
        for key in sorted(data.keys() - HARMLESS)
        if data[key] is not None
    ]
    if not isinstance(penalty, int | float) or isinstance(penalty, bool) or not penalty > 0:
        raise ValueError(f"{path}: repetition_penalty: expected a number > 0, got {penalty!r}")
    return TokenHeadConfig(end, float(penalty))


def check_images(folder: Path, patches: Mapping[str, int], size: int, notes: list[str]) -> None:
    """Raise unless images of `size` x `size` px are prepared as we do it.

    `patches`: the image processor's name -> the network's value.
    """
    path = folder / IMAGES
    data = files.read_json(path) if path.is_file() else None
    if data is None and (folder / PROCESSOR).is_file():
        path = folder / PROCESSOR
        data = files.read_json(path).get("image_processor")
    if not isinstance(data, dict):
        notes.append(f"{IMAGES}: not there, the settings of Qwen2.5-VL are assumed")
        return
    for name, expected in {**IMAGE_SETTINGS, **patches}.items():
        if name in data and not _is_close(data[name], expected):
            raise ValueError(f"{path}: {name}: expected {expected}, got {data[name]}")
    bounds = data["size"] if isinstance(data.get("size"), dict) else {}
    low = data.get("min_pixels") or bounds.get("shortest_edge") or 0
    high = data.get("max_pixels") or bounds.get("longest_edge") or math.inf
    are_numbers = isinstance(low, int | float) and isinstance(high, int | float)
    if not are_numbers or not low <= size * size <= high:
        raise ValueError(
            f"{path}: min_pixels, max_pixels: expected to admit {size} x {size} = {size * size}, "
            f"got {low} ... {high}"
        )


def check_fast(folder: Path, notes: list[str]) -> str:
    """The sha256 of a FAST vocabulary; notes what is unlike FAST+."""
    found = files.sha256(folder / TOKENIZER)
    if found != FAST_PLUS:
        notes.append(f"fast: another vocabulary than the public FAST+ (sha256 {found[:12]}...)")
    settings = files.read_json(folder / PROCESSOR)
    notes += [
        f"fast: {name} is {settings.get(name)}, in FAST+ it is {expected}"
        for name, expected in FAST_SETTINGS.items()
        if settings.get(name, expected) != expected
    ]
    return found


def _tokens(folder: Path, data: Mapping[str, Any], notes: list[str]) -> Tokens:
    path, ids = _added_tokens(folder, notes)
    if path is None:
        notes.append(f"{TOKENIZER}: not there, the ids of the release are assumed")
        known = dataclasses.asdict(RELEASE.markers)
        stated = {name: data.get(f"{name}_token_id", index) for name, index in known.items()}
        return dataclasses.replace(RELEASE, markers=TokenIds(**stated))
    for token in (*MARKERS.values(), END, "<robot_action_0>"):
        if token not in ids:
            raise ValueError(f"{path}: expected the token {token} of NORA, got none")
    numbers = sorted(int(match[1]) for token in ids if (match := ACTION.fullmatch(token)))
    first = ids["<robot_action_0>"]
    for position, number in enumerate(numbers):
        index = ids.get(f"<robot_action_{number}>")
        if number != position or index != first + position:
            raise ValueError(
                f"{path}: <robot_action_{position}>: expected id {first + position}, "
                f"got {ids.get(f'<robot_action_{position}>')}"
            )
    markers = TokenIds(**{name: ids[token] for name, token in MARKERS.items()})
    return Tokens(markers, ids[END], first, len(numbers))


def _added_tokens(folder: Path, notes: list[str]) -> tuple[Path | None, dict[str, int]]:
    """What the folder's tokenizer adds to its vocabulary, and the file that says so."""
    path, added = folder / TOKENIZER, folder / ADDED_TOKENS
    more = files.read_json(added) if added.is_file() else {}
    if not path.is_file():
        if more:
            notes.append(f"{TOKENIZER}: not there, ids are those of {ADDED_TOKENS}")
        return (added if more else None), more
    try:
        entries = files.read_json(path).get("added_tokens", [])
        ids = {entry["content"]: int(entry["id"]) for entry in entries}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected added_tokens with content and id: {error!r}"
        ) from error
    for token, index in more.items():
        if ids.get(token) != index:
            raise ValueError(
                f"{added}: {token}: expected id {ids.get(token)} as in {TOKENIZER}, got {index}"
            )
    return path, ids


def _show(known: Tokens) -> str:
    return (
        f"{known.action_min} ... {known.action_min + known.num_actions - 1} (actions), "
        f"{known.markers.image} (image), {known.end} (end)"
    )


def _is_close(got: object, expected: object) -> bool:
    if isinstance(expected, list):
        is_like = isinstance(got, list) and len(got) == len(expected)
        return is_like and all(map(_is_close, got, expected))  # type: ignore[call-overload]
    assert isinstance(expected, int | float), "settings are numbers or lists of them"
    return isinstance(got, int | float) and math.isclose(got, expected, rel_tol=1e-6)
