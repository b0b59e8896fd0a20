"""NORA-1.5 against numbers of the original implementation (`tests/golden/nora15_tiny`)."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nora_policy.checkpoints import checkpoint
from nora_policy.models import expert, nora15
from nora_policy.models.expert import Prefix
from nora_policy.models.inputs import IGNORED, ModelInputs
from nora_policy.models.nora15 import Nora15, Targets

GOLDEN = Path(__file__).parents[1] / "golden/nora15_tiny"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture
def model() -> Nora15:
    return checkpoint.load(GOLDEN, torch.device("cpu"), torch.float32)


def inputs(golden: dict[str, torch.Tensor]) -> ModelInputs:
    ids = golden["input_ids"]
    return ModelInputs(ids, torch.ones_like(ids), golden["pixel_values"], golden["image_grid_thw"])


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


def inference_errors(model: Nora15, golden: dict[str, torch.Tensor]) -> dict[str, float]:
    with torch.no_grad():
        prefix, hidden = model.encode(inputs(golden))
        got = {
            "prefix_logits_last": model.logits(hidden[:, -1]),
            "prefix_k_last_layer": prefix.keys[-1],
            "prefix_v_last_layer": prefix.values[-1],
            "actions_10_steps": model.sample(prefix, golden["noise"], 10),
            "actions_4_steps": model.sample(prefix, golden["noise"], 4),
        }
        for tau in (1.0, 0.5, 0.1):
            v_BTA = model.velocity(golden["noise"], torch.tensor([tau]), prefix)
            got[f"velocity_t{tau}"] = v_BTA
    return {name: relative_error(x, golden[f"out:{name}"]) for name, x in got.items()}


def training_targets(golden: dict[str, torch.Tensor]) -> Targets:
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    labels, actions = golden["train_labels"], golden["train_actions"]
    return Targets(
        inputs=ModelInputs(*(golden[f"train_{name}"] for name in names)),
        labels_BL=labels,
        expert_mask_BL=golden["train_expert_mask"],
        actions_BTA=actions,
        is_real_BT=torch.ones(actions.shape[:2], dtype=torch.bool),
        noise_FTA=golden["train_noise"],
        tau_F=golden["train_tau"],
        num_tokens=int((labels[:, 1:] != IGNORED).sum()),
        num_steps=actions.shape[0] * actions.shape[1],
    )


def training_errors(model: Nora15, golden: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of the losses that `nora-sft` trains with."""
    targets = training_targets(golden)
    losses = nora15.losses(model, model.encode(targets.inputs), targets)
    losses.total.backward()
    got = {
        "train_loss": losses.total,
        "train_ce_loss": losses.cross_entropy,
        "train_expert_loss_times_alpha": model.config.alpha * losses.flow,
    }
    for key in golden:
        if key.startswith("out:grad:"):
            got[key.removeprefix("out:")] = model.get_parameter(key.split(":")[2]).grad
    return {name: relative_error(x.detach(), golden[f"out:{name}"]) for name, x in got.items()}


def errors(model: Nora15, golden: dict[str, torch.Tensor]) -> dict[str, float]:
    return inference_errors(model, golden) | training_errors(model, golden)


def test_everything_agrees_with_the_original(model, golden):
    found = errors(model, golden)
    assert {f"out:{name}" for name in found} == {k for k in golden if k.startswith("out:")}
    assert {name: error for name, error in found.items() if error > TOLERANCE} == {}


def test_padding_changes_no_loss(model, golden):
    golden = dict(golden)
    for name, value in (("input_ids", 3), ("attention_mask", 0), ("labels", -100)):
        golden[f"train_{name}"] = F.pad(golden[f"train_{name}"], (4, 0), value=value)
    golden["train_expert_mask"] = F.pad(golden["train_expert_mask"], (4, 0), value=0)
    found = training_errors(model, golden)
    assert {name: error for name, error in found.items() if error > TOLERANCE} == {}


def other_rope_base(model, monkeypatch):
    model.action_expert.rope_theta = 1e6


def positions_offset_by_the_prefix(model, monkeypatch):
    def tables(horizon, head_dim, theta, device):
        table = original(horizon + 30, head_dim, theta, device)
        return table[0][30:], table[1][30:]

    # Rotary attention only knows differences: an offset shows against keys of the prefix.
    original = expert.rotary_tables
    monkeypatch.setattr(expert, "rotary_tables", tables)


def time_runs_backwards(model, monkeypatch):
    embedding = nora15.time_embedding
    monkeypatch.setattr(nora15, "time_embedding", lambda tau, dim: embedding(1 - tau, dim))


def first_prompt_token_hidden(model, monkeypatch):
    encode = model.encode

    def encode_and_hide(inputs):
        prefix, hidden = encode(inputs)
        mask_BL = torch.ones(prefix.batch_size, prefix.keys[0].shape[2], dtype=torch.bool)
        mask_BL[:, 0] = False
        return Prefix(prefix.keys, prefix.values, mask_BL), hidden

    monkeypatch.setattr(model, "encode", encode_and_hide)


def actions_only_look_back(model, monkeypatch):
    horizon = model.config.horizon

    def causal_attention(q, k, v, attn_mask):
        step = torch.arange(q.shape[2]) % horizon  # rows are heads x steps
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        mask[:, -horizon:] = torch.arange(horizon) <= step[:, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    replaced = {**vars(F), "scaled_dot_product_attention": causal_attention}
    monkeypatch.setattr(expert, "F", SimpleNamespace(**replaced))


def image_positions_ignored(model, monkeypatch):
    rope_index = model.vlm.model.get_rope_index

    def text_only(input_ids, mm_token_type_ids, *args, **kwargs):
        return rope_index(input_ids, torch.zeros_like(mm_token_type_ids), *args, **kwargs)

    monkeypatch.setattr(model.vlm.model, "get_rope_index", text_only)


@pytest.mark.parametrize(
    "perturb",
    [
        other_rope_base,
        positions_offset_by_the_prefix,
        time_runs_backwards,
        first_prompt_token_hidden,
        actions_only_look_back,
        image_positions_ignored,
    ],
)
def test_a_changed_definition_is_noticed(model, golden, monkeypatch, perturb):
    perturb(model, monkeypatch)
    found = inference_errors(model, golden)
    assert max(found[f"velocity_t{tau}"] for tau in (1.0, 0.5, 0.1)) > TOLERANCE
    assert found["actions_10_steps"] > TOLERANCE


@pytest.mark.parametrize("name", ["expert_mask", "labels"])
def test_a_changed_training_mask_is_noticed(model, golden, name):
    golden = dict(golden)
    golden[f"train_{name}"] = golden[f"train_{name}"].roll(1, dims=1)
    assert training_errors(model, golden)["train_loss"] > TOLERANCE


def test_swapped_noise_and_actions_are_noticed(model, golden):
    swapped = {"train_actions": golden["train_noise"], "train_noise": golden["train_actions"]}
    found = training_errors(model, {**golden, **swapped})
    assert found["train_expert_loss_times_alpha"] > TOLERANCE


def test_the_norm_epsilon_of_the_config_counts(golden):
    config = checkpoint.load_config(GOLDEN)
    text = dataclasses.replace(config.text_config, rms_norm_eps=1e-4)
    other = Nora15(dataclasses.replace(config, text_config=text)).eval()
    state = checkpoint.load(GOLDEN, torch.device("cpu"), torch.float32).state_dict()
    other.load_state_dict(state)
    assert inference_errors(other, golden)["actions_10_steps"] > TOLERANCE
