"""How NORA-1.5 computes: one prefix, no copies per step, an exact clock, batches and padding."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from nora_policy.checkpoints.untrained import make_config, make_tokenizer
from nora_policy.models import nora15
from nora_policy.models.config import ExpertConfig, NoraConfig
from nora_policy.models.expert import ActionExpert, Prefix, PrefixBuffer
from nora_policy.models.inputs import IGNORED, ModelInputs
from nora_policy.models.nora15 import Nora15
from nora_policy.preprocess import pad_left

SMALL_IMAGE = 56  # px: 4 x 4 patches, 2 x 2 tokens
PAD = 0


@pytest.fixture(scope="module")
def config() -> NoraConfig:
    return dataclasses.replace(make_config(make_tokenizer()), image_size=SMALL_IMAGE)


@pytest.fixture(scope="module")
def model(config) -> Nora15:
    torch.manual_seed(0)
    return Nora15(config).eval()


def make_inputs(config: NoraConfig, num_words: int, seed: int = 0) -> ModelInputs:
    random = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 200, (num_words,), generator=random).tolist()
    ids = config.token_ids
    image = [ids.vision_start, *[ids.image] * 4, ids.vision_end]
    input_ids = torch.tensor([[*words[:3], *image, *words[3:]]])
    pixels = torch.randn(16, 1176, generator=random)
    return ModelInputs(input_ids, torch.ones_like(input_ids), pixels, torch.tensor([[1, 4, 4]]))


def make_noise(batch: int, horizon: int = 5) -> torch.Tensor:
    return torch.randn(batch, horizon, 7, generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def actions(model: Nora15, inputs: ModelInputs, noise: torch.Tensor) -> torch.Tensor:
    return model.sample(model.encode(inputs)[0], noise)


def test_samples_of_one_prefix_equal_single_samples(model, config):
    inputs, noise = make_inputs(config, 8), make_noise(4)
    together = actions(model, inputs, noise)
    alone = torch.cat([actions(model, inputs, row[None]) for row in noise])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_a_padded_batch_equals_its_rows(model, config):
    rows = [make_inputs(config, n, seed=n) for n in (5, 12, 9)]
    noise = make_noise(6)
    together = actions(model, pad_left(rows, PAD), noise)
    alone = torch.cat(
        [actions(model, row, noise[2 * i : 2 * i + 2]) for i, row in enumerate(rows)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_what_the_padding_holds_does_not_matter(model, config):
    rows = [make_inputs(config, n) for n in (5, 12)]
    noise = make_noise(2)
    first, second = (actions(model, pad_left(rows, pad), noise) for pad in (PAD, 77))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_a_request_leaves_nothing_behind(model, config):
    short, long, noise = make_inputs(config, 5), make_inputs(config, 20), make_noise(1)
    before = actions(model, short, noise)
    actions(model, long, noise)
    assert torch.equal(actions(model, short, noise), before)


def test_image_and_instruction_both_matter(model, config):
    inputs, noise = make_inputs(config, 8), make_noise(1)
    other_image = dataclasses.replace(inputs, pixel_values_PC=-inputs.pixel_values_PC)
    other_word = dataclasses.replace(inputs, input_ids_BL=inputs.input_ids_BL.clone())
    other_word.input_ids_BL[0, -1] += 1
    reference = actions(model, inputs, noise)
    assert not torch.allclose(actions(model, other_image, noise), reference, atol=1e-6)
    assert not torch.allclose(actions(model, other_word, noise), reference, atol=1e-6)


class Operations(TorchDispatchMode):
    """Names of the operations that ran, with the largest number of elements of their output."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        numel = out.numel() if isinstance(out, torch.Tensor) else 0
        self.seen.append((func.overloadpacket.__name__, numel))
        return out


def operations(model: Nora15, prefix: Prefix, num_steps: int) -> list[tuple[str, int]]:
    with Operations() as mode:
        model.sample(prefix, make_noise(1), num_steps)
    return mode.seen


def test_flow_steps_neither_copy_the_prefix_nor_wait_for_the_device(model, config):
    with torch.no_grad():
        prefix, _ = model.encode(make_inputs(config, 40))
    size = prefix.keys[0].numel()
    copies = {"copy_", "_to_copy", "clone", "cat", "repeat", "contiguous", "index_select"}

    def num_large_copies(num_steps: int) -> int:
        seen = operations(model, prefix, num_steps)
        assert not {"_local_scalar_dense", "item", "nonzero"} & {name for name, _ in seen}
        return sum(name in copies and numel >= size for name, numel in seen)

    assert num_large_copies(1) == num_large_copies(10) == 2 * config.text_config.num_hidden_layers


def test_the_prefix_is_encoded_once_without_logits(model, config, monkeypatch):
    calls = []
    hooks = [
        model.vlm.lm_head.register_forward_hook(lambda *_: calls.append("lm_head")),
        model.vlm.model.visual.register_forward_hook(lambda *_: calls.append("visual")),
        model.vlm.model.language_model.register_forward_hook(lambda *_: calls.append("language")),
    ]
    actions(model, make_inputs(config, 8), make_noise(8))
    for hook in hooks:
        hook.remove()
    assert calls == ["visual", "language"]


@pytest.mark.parametrize("num_steps", [1, 10, 50])
def test_the_clock_is_exact(model, config, monkeypatch, num_steps):
    seen = []
    embedding = nora15.time_embedding

    def record(tau_N, dim):
        seen.extend(tau_N.tolist())
        return embedding(tau_N, dim)

    monkeypatch.setattr(nora15, "time_embedding", record)
    with torch.no_grad():
        model.sample(model.encode(make_inputs(config, 8))[0], make_noise(1), num_steps)
    expected = [torch.tensor(1 - k / num_steps).item() for k in range(num_steps)]
    assert seen == pytest.approx(expected, abs=1e-7)
    assert len(seen) == num_steps


def losses_of(model, inputs, labels_BL, *, noise, tau) -> nora15.Losses:
    actions = make_noise(1)
    targets = nora15.Targets(
        inputs=inputs,
        labels_BL=labels_BL,
        expert_mask_BL=labels_BL == IGNORED,
        actions_BTA=actions,
        is_real_BT=torch.ones(actions.shape[:2], dtype=torch.bool),
        noise_FTA=noise,
        tau_F=torch.tensor([tau]),
        num_tokens=int((labels_BL[:, 1:] != IGNORED).sum()),
        num_steps=actions.shape[1],
    )
    return nora15.losses(model, model.encode(inputs), targets)


def test_both_losses_reach_backbone_and_vision(model, config):
    inputs = make_inputs(config, 12)
    labels = torch.full_like(inputs.input_ids_BL, IGNORED)
    labels[:, -3:] = inputs.input_ids_BL[:, -3:]
    for name in ("cross_entropy", "flow"):
        model.zero_grad()
        losses = losses_of(model, inputs, labels, noise=make_noise(1) * 2, tau=0.4)
        getattr(losses, name).backward()
        for parameter in (
            model.vlm.model.visual.patch_embed.proj.weight,
            model.vlm.model.language_model.layers[0].self_attn.v_proj.weight,
        ):
            assert parameter.grad.abs().max() > 0
    model.zero_grad()


def test_hidden_tokens_do_not_reach_the_flow_loss(model, config):
    inputs = make_inputs(config, 12)
    labels = torch.full_like(inputs.input_ids_BL, IGNORED)
    labels[:, -3:] = 5
    other = dataclasses.replace(inputs, input_ids_BL=inputs.input_ids_BL.clone())
    other.input_ids_BL[:, -3:] = 9
    flows = [
        losses_of(model, x, labels, noise=-make_noise(1), tau=0.4).flow for x in (inputs, other)
    ]
    assert torch.equal(*flows)


def test_a_wrong_number_of_image_tokens_is_refused(model, config):
    inputs = make_inputs(config, 8)
    two_images = dataclasses.replace(inputs, image_grid_N3=torch.tensor([[1, 4, 4]] * 2))
    with pytest.raises(ValueError, match="expected 8 image tokens, got 4"):
        model.encode(two_images)


def test_noise_must_fit_the_batch(model, config):
    with torch.no_grad():
        prefix, _ = model.encode(pad_left([make_inputs(config, n) for n in (4, 5)], PAD))
    with pytest.raises(ValueError, match="expected a multiple of 2 samples, got 3"):
        model.sample(prefix, make_noise(3))


def written_out(module: ActionExpert, config: ExpertConfig, x, prefix: Prefix) -> torch.Tensor:
    """The expert as plainly as it can be said: repeated heads, complex rotation, softmax."""
    B, T, _ = x.shape
    H = module.head_dim
    frequency = config.rope_theta ** (-torch.arange(0, H, 2, dtype=torch.float64) / H)
    turn = torch.polar(torch.ones(T, H // 2).double(), torch.arange(T)[:, None] * frequency)

    def rotated(heads):
        z = torch.complex(heads[..., : H // 2], heads[..., H // 2 :]) * turn[None, :, None]
        return torch.cat([z.real, z.imag], dim=-1)

    for index, layer in enumerate(module.layers):
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        q = rotated(attention.q_proj(normed).view(B, T, -1, H))
        k = rotated(attention.k_proj(normed).view(B, T, -1, H))
        v = attention.v_proj(normed).view(B, T, -1, H)
        k = torch.cat([prefix.keys[index].transpose(1, 2), k], dim=1)
        v = torch.cat([prefix.values[index].transpose(1, 2), v], dim=1)
        groups = q.shape[2] // k.shape[2]
        k, v = (y.repeat_interleave(groups, dim=2) for y in (k, v))
        scores = torch.einsum("btnh,bsnh->bnts", q, k) / H**0.5
        mask = torch.cat([prefix.mask_BL, torch.ones(B, T, dtype=torch.bool)], dim=1)
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        out = torch.einsum("bnts,bsnh->btnh", scores.softmax(-1), v)
        x = x + attention.o_proj(out.reshape(B, T, -1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return module.norm(x)


@settings(deadline=None, max_examples=20)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 9),
    horizon=st.integers(1, 6),
    num_kv_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    half_head=st.integers(1, 5),
    num_layers=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_the_expert_equals_its_definition(
    batch, length, horizon, num_kv_heads, groups, half_head, num_layers, seed
):
    torch.manual_seed(seed)
    config = ExpertConfig(
        hidden_size=24,
        intermediate_size=40,
        num_attention_heads=num_kv_heads * groups,
        num_key_value_heads=num_kv_heads,
        num_hidden_layers=num_layers,
    )
    module = ActionExpert(config, 2 * half_head, eps=1e-6).double()
    shape = (num_layers, batch, num_kv_heads, length, 2 * half_head)
    keys, values = torch.randn(2, *shape, dtype=torch.float64)
    prefix = Prefix(tuple(keys), tuple(values), torch.rand(batch, length) < 0.7)
    x_BTD = torch.randn(batch, horizon, 24, dtype=torch.float64)
    with torch.no_grad():
        expected = written_out(module, config, x_BTD, prefix)
        for memory in (prefix, PrefixBuffer(prefix, 1, horizon)):
            torch.testing.assert_close(module(x_BTD, memory), expected, rtol=1e-5, atol=1e-5)
