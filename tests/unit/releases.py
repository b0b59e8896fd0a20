"""Tiny checkpoints in the layouts that the authors of NORA publish, made from random networks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from nora_policy.checkpoints import untrained
from nora_policy.checkpoints.weights import EMBEDDING, LM_HEAD
from nora_policy.models.config import NoraConfig, TokenHeadConfig
from nora_policy.models.inputs import ModelInputs
from nora_policy.models.nora import Nora
from nora_policy.models.nora15 import Nora15, build

State = dict[str, torch.Tensor]
Change = Callable[[State], State]
PENALTY = 1.05
TOKENIZER = untrained.make_tokenizer()
FAST = untrained.make_fast_tokenizer()
IMAGES = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
}
STATISTICS = {"q01": [-0.02] * 6 + [0.0], "q99": [0.02] * 6 + [1.0], "mask": [True] * 6 + [False]}


def network(kind: str, seed: int = 0) -> Nora:
    """`nora`, `nora-long` or `nora-1.5` with random weights and the penalty of a release."""
    config = untrained.make_config(TOKENIZER)
    assert config.token_head is not None
    head = TokenHeadConfig(config.token_head.end_token, PENALTY)
    config = dataclasses.replace(config, token_head=head)
    if kind != "nora-1.5":
        horizon = {"nora": 1, "nora-long": 5}[kind]
        config = dataclasses.replace(config, expert=None, horizon=horizon)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config).eval()


def release_tokenizer() -> Tokenizer:
    """One with the ids of the release; all else is bytes and fillers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(alphabet)}
    vocab |= {f"filler {i}": i for i in range(len(vocab), 151_643)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    markers = {
        151_643: "<|endoftext|>",
        151_644: "<|im_start|>",
        151_645: "<|im_end|>",
        151_652: "<|vision_start|>",
        151_653: "<|vision_end|>",
        151_655: "<|image_pad|>",
        151_656: "<|video_pad|>",
    }
    tokens = [markers.get(i, f"<|marker {i}|>") for i in range(151_643, 151_665)]
    tokens += [f"<robot_action_{i}>" for i in range(2048)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    return tokenizer


def qwen_config(config: NoraConfig, is_nested: bool = False) -> dict:
    """`config.json` as transformers 4.50 wrote it, or (nested) 4.52 and later."""
    ours = dataclasses.asdict(config)
    text = ours["text_config"]
    text["rope_scaling"] = {"type": "mrope", "mrope_section": list(text.pop("mrope_section"))}
    tied, vocab_size = text.pop("tie_word_embeddings"), text.pop("vocab_size")
    return {
        "model_type": "qwen2_5_vl",
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        **({"text_config": text} if is_nested else text),
        "hidden_act": "silu",
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
        "vision_config": {**ours["vision_config"], "in_chans": 3},
        **{f"{name}_token_id": index for name, index in ours["token_ids"].items()},
    }


def publish(
    folder: Path,
    model: Nora,
    change: Change = dict,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    is_nested: bool = False,
) -> Path:
    """Write every file of a release; `change` what its weights are called or are."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    del state[LM_HEAD]
    if not isinstance(model, Nora15):
        state = {name.removeprefix("vlm."): tensor for name, tensor in state.items()}
    write_weights(folder, change(state), shards)
    config = model.config
    assert config.token_head is not None
    end = config.token_head.end_token
    generation = {"repetition_penalty": PENALTY, "eos_token_id": [end, end - 2], "do_sample": True}
    write(folder, "config.json", qwen_config(config, is_nested))
    write(folder, "generation_config.json", generation)
    write(folder, "preprocessor_config.json", IMAGES)
    write(folder, "norm_stats.json", {"sim_widowx": {"action": STATISTICS}})
    TOKENIZER.save(str(folder / "tokenizer.json"))
    FAST.save(folder / "fast")
    return folder


def write_weights(folder: Path, state: State, shards: int = 1) -> None:
    state = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    if shards == 1:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return
    names = sorted(state)
    shard_of = {}
    for i in range(shards):
        shard = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in names[i::shards]}
        save_file(part, folder / shard, {"format": "pt"})
        shard_of |= dict.fromkeys(part, shard)
    write(folder, "model.safetensors.index.json", {"metadata": {}, "weight_map": shard_of})


def write(folder: Path, name: str, data: object) -> None:
    (folder / name).write_text(json.dumps(data))


def change_json(path: Path, **values: object) -> None:
    """Set keys of a JSON file; None takes one away."""
    data = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def old_names(state: State) -> State:
    """As transformers 4.50 calls them."""

    def old(name: str) -> str:
        name = name.replace("model.visual.", "visual.")
        return name.replace("model.language_model.", "model.")

    return {old(name): tensor for name, tensor in state.items()}


def with_tied_head(state: State) -> State:
    """The embedding again, as the output."""
    prefix = "vlm." if EMBEDDING in state else ""
    name = EMBEDDING if prefix else EMBEDDING.removeprefix("vlm.")
    return {**state, f"{prefix}lm_head.weight": state[name].clone()}


def with_reference(state: State) -> State:
    """What preference training leaves behind."""
    copied = ("action_expert.", "action_out_proj.")
    return {**state, **{f"ref_{k}": v + 1 for k, v in state.items() if k.startswith(copied)}}


@torch.no_grad()
def outputs(model: Nora) -> torch.Tensor:
    """Logits of a fixed prompt with an image, then the velocity where there is an expert."""
    ids = model.config.token_ids
    tokens = torch.tensor([[1, ids.vision_start, *[ids.image] * 4, ids.vision_end, 2]])
    pixels = torch.linspace(-1, 1, 16 * 1176).view(16, 1176)
    inputs = ModelInputs(tokens, torch.ones_like(tokens), pixels, torch.tensor([[1, 4, 4]]))
    prefix, hidden_BLE = model.encode(inputs)
    found = [model.logits(hidden_BLE).flatten()]
    if isinstance(model, Nora15):
        x_BTA = torch.linspace(-1, 1, 35).view(1, 5, 7)
        found.append(model.velocity(x_BTA, torch.tensor([0.6]), prefix).flatten())
    return torch.cat(found)
