"""The token head: cached writing, batches, samples, penalty, grammar; and that it learns."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

from nora_policy.checkpoints.untrained import make_config, make_fast_tokenizer, make_tokenizer
from nora_policy.models.backbone import VisionAttention
from nora_policy.models.config import NORA15_3B, NORA_3B, NORA_LONG_3B, TokenHeadConfig
from nora_policy.models.grammar import DecodingState, FreeDecodingState, Grammar
from nora_policy.models.inputs import IGNORED, ModelInputs
from nora_policy.models.nora import Nora
from nora_policy.models.nora15 import Nora15, build
from nora_policy.preprocess import pad_left, with_target

PAD = 0
NEW_LINE = 10
FREE_TOKENS = 12


@pytest.fixture(scope="module")
def config():
    return dataclasses.replace(make_config(make_tokenizer()), image_size=56)


@pytest.fixture(scope="module")
def model(config) -> Nora15:
    torch.manual_seed(0)
    return build(config).eval()


@pytest.fixture(scope="module")
def fast():
    return make_fast_tokenizer()


@pytest.fixture(scope="module")
def grammar(fast):
    return Grammar(fast, 5, 7)


def make_inputs(config, num_words: int, seed: int = 0) -> ModelInputs:
    random = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 200, (num_words,), generator=random).tolist()
    ids = config.token_ids
    image = [ids.vision_start, *[ids.image] * 4, ids.vision_end]
    head = [config.token_head.end_token, *words[:3]]
    input_ids = torch.tensor([[*head, *image, *words[3:]]])
    pixels = torch.randn(16, 1176, generator=random)
    return ModelInputs(input_ids, torch.ones_like(input_ids), pixels, torch.tensor([[1, 4, 4]]))


def with_penalty(model: Nora, penalty: float) -> Nora:
    """The same weights under another `repetition_penalty`."""
    head = dataclasses.replace(model.config.token_head, repetition_penalty=penalty)
    other = Nora(dataclasses.replace(model.config, token_head=head, expert=None)).eval()
    other.vlm = model.vlm
    return other


def generate(model, inputs, states, randoms=None, temperature=1.0):
    with torch.no_grad():
        model.generate(*model.encode(inputs), states, randoms, temperature)
    return [state.ids for state in states]


def free(config, count: int, limit: int = FREE_TOKENS):
    return [FreeDecodingState(config.num_action_tokens, limit) for _ in range(count)]


def generators(*seeds: int):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# what is written


def test_writing_with_the_cache_equals_reading_everything_again(model, config):
    rows = [make_inputs(config, n, seed=n) for n in (5, 14)]
    texts = generate(model, pad_left(rows, PAD), free(config, 2))
    for row, ids in zip(rows, texts, strict=True):
        for place, token in enumerate(ids):
            before = [config.action_token_min + i for i in ids[:place]]
            with torch.no_grad():
                _, hidden = model.encode(with_target(row, before)[0] if before else row)
            logits = model.action_logits(hidden[:, -1], config.num_action_tokens)[0]
            assert int(logits.argmax()) == token, f"token {place}"
    assert texts[0] != texts[1]


@pytest.mark.parametrize("penalty", [1.0, 1.05, 30.0])
def test_the_greedy_tokens_are_those_of_transformers(model, config, penalty):
    inputs = make_inputs(config, 9)
    first, end = config.action_token_min, config.token_head.end_token
    allowed = [*range(first, first + config.num_action_tokens), end]
    model.vlm.generation_config.pad_token_id = PAD
    output = model.vlm.generate(
        input_ids=inputs.input_ids_BL,
        attention_mask=inputs.attention_mask_BL,
        pixel_values=inputs.pixel_values_PC,
        image_grid_thw=inputs.image_grid_N3,
        mm_token_type_ids=(inputs.input_ids_BL == config.token_ids.image).int(),
        prefix_allowed_tokens_fn=lambda *_: allowed,
        max_new_tokens=FREE_TOKENS,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=end,
    )[0, inputs.input_ids_BL.shape[1] :]
    expected = [int(token) - first for token in output if token != end]
    (got,) = generate(with_penalty(model, penalty), inputs, free(config, 1))
    assert got == expected
    assert len(got) > 3


def test_a_penalty_matters(model, config):
    inputs = make_inputs(config, 9)
    plain, penalised = (
        generate(with_penalty(model, p), inputs, free(config, 1))[0] for p in (1.0, 30.0)
    )
    assert len(set(plain)) < len(plain)  # it repeats itself
    assert plain != penalised


def test_a_padded_batch_with_samples_equals_its_rows(model, config, grammar):
    rows = [make_inputs(config, n, seed=n) for n in (5, 12, 9)]
    seeds = range(6)
    states = [DecodingState(grammar) for _ in seeds]
    together = generate(model, pad_left(rows, PAD), states, generators(*seeds))
    alone = []
    for index, row in enumerate(rows):
        pair = seeds[2 * index : 2 * index + 2]
        alone += generate(
            model, row, [DecodingState(grammar), DecodingState(grammar)], generators(*pair)
        )
    assert together == alone
    assert len({tuple(ids) for ids in together}) == len(together)


def test_samples_follow_the_softmax_at_the_temperature(model, config):
    inputs, count = make_inputs(config, 9), 4000
    with torch.no_grad():
        _, hidden = model.encode(inputs)
    for temperature in (0.5, 1.0):
        logits = model.action_logits(hidden[:, -1], config.num_action_tokens)[0]
        expected = torch.softmax(logits / temperature, dim=-1)
        likely = expected.topk(20).indices
        states = free(config, count, limit=1)
        texts = generate(model, inputs, states, generators(*range(count)), temperature)
        drawn = torch.tensor([ids[0] if ids else config.num_action_tokens for ids in texts])
        share = (drawn == likely[:, None]).float().mean(dim=1)
        sigma = (expected[likely] / count).sqrt()
        assert bool(((share - expected[likely]).abs() < 5 * sigma + 1e-3).all())


def test_sentences_must_fit_the_batch(model, config):
    inputs = pad_left([make_inputs(config, 5), make_inputs(config, 6)], PAD)
    with pytest.raises(ValueError, match="states: expected a multiple of 2, got 3"):
        generate(model, inputs, free(config, 3))


# grammar


def test_whatever_is_written_under_the_grammar_is_a_chunk(model, config, grammar):
    inputs = make_inputs(config, 9)
    for temperature in (0.3, 1.0, 5.0):
        states = [DecodingState(grammar) for _ in range(16)]
        for ids in generate(model, inputs, states, generators(*range(16)), temperature):
            chunk = grammar.decode(ids)
            assert chunk.shape == (5, 7)
            assert np.abs(chunk).max() <= 1 + grammar.range.rounding_error + 1e-6


def test_random_weights_hardly_ever_write_a_chunk_without_it(model, config, grammar):
    texts = generate(model, make_inputs(config, 9), free(config, 16, 70), generators(*range(16)))
    assert sum(grammar.accepts(ids) for ids in texts) < 8


# learning


def test_the_loss_equals_that_of_all_logits(model, config):
    rows, labels = [], []
    for seed, size in ((1, 4), (2, 9)):
        target = [config.action_token_min + i for i in range(size)]
        target += [config.token_head.end_token, NEW_LINE]
        inputs, label = with_target(make_inputs(config, 5 + seed, seed), target)
        rows.append(inputs)
        labels.append(label)
    batch = pad_left(rows, PAD)
    length = batch.input_ids_BL.shape[1]
    labels_BL = torch.cat([F.pad(x, (length - x.shape[1], 0), value=IGNORED) for x in labels])
    with torch.no_grad():
        got = model.token_loss(batch, labels_BL)
        logits = model.logits(model.encode(batch)[1]).float()
    expected = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten(), ignore_index=IGNORED
    )
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert int((labels_BL != IGNORED).sum()) == 4 + 9 + 2 * 2


def test_the_token_head_learns_chunks(config, fast, grammar):
    """Four images, four chunks, real gradient steps: greedy tokens become those of the chunks."""
    torch.manual_seed(1)
    model = build(dataclasses.replace(config, expert=None)).train()
    assert type(model) is Nora
    random = np.random.default_rng(0)
    chunks = np.clip(random.normal(scale=0.3, size=(4, 5, 7)).cumsum(axis=1), -1, 1)
    rows = [make_inputs(config, 8, seed) for seed in range(4)]
    head = config.token_head
    targets = [[config.action_token_min + i for i in fast.encode(chunk)] for chunk in chunks]
    pairs = [
        with_target(row, [*target, head.end_token, NEW_LINE])
        for row, target in zip(rows, targets, strict=True)
    ]
    batch = pad_left([inputs for inputs, _ in pairs], PAD)
    length = batch.input_ids_BL.shape[1]
    padded = [F.pad(x, (length - x.shape[1], 0), value=IGNORED) for _, x in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.token_loss(batch, torch.cat(padded))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    model.eval()
    prompts = pad_left(rows, PAD)
    texts = generate(model, prompts, [DecodingState(grammar) for _ in chunks])
    assert texts == [fast.encode(chunk) for chunk in chunks]
    assert texts == generate(model, prompts, free(config, 4, 70))  # it also knows where to end
    for ids, chunk in zip(texts, chunks, strict=True):
        assert np.abs(grammar.decode(ids) - chunk).max() <= grammar.range.rounding_error


# configuration


def test_kinds_and_heads():
    assert [c.kind for c in (NORA_3B, NORA_LONG_3B, NORA15_3B)] == [
        "NORA",
        "NORA-Long",
        "NORA-1.5",
    ]
    assert [c.heads for c in (NORA_3B, NORA15_3B)] == [("fast",), ("flow", "fast")]
    without = dataclasses.replace(NORA15_3B, token_head=None)
    assert without.heads == ("flow",)
    with pytest.raises(ValueError, match="expected expert, token_head or both"):
        dataclasses.replace(without, expert=None)
    with pytest.raises(ValueError, match="repetition_penalty: expected > 0, got 0"):
        TokenHeadConfig(1, 0)


def test_padding_may_be_in_front_or_behind(model, config):
    rows = [make_inputs(config, n, seed=n) for n in (5, 12, 9)]
    lengths = [row.input_ids_BL.shape[1] for row in rows]
    front = pad_left(rows, PAD)
    ids = [F.pad(row.input_ids_BL, (0, max(lengths) - row.input_ids_BL.shape[1])) for row in rows]
    behind = dataclasses.replace(
        front, input_ids_BL=torch.cat(ids), attention_mask_BL=front.attention_mask_BL.flip(1)
    )
    with torch.no_grad():
        (expected, front_BLE), (got, behind_BLE) = model.encode(front), model.encode(behind)
    assert torch.equal(got.next_position_B, expected.next_position_B)
    assert torch.equal(got.mask_BL, behind.attention_mask_BL.bool())
    for row, length in enumerate(lengths):
        torch.testing.assert_close(behind_BLE[row, :length], front_BLE[row, -length:])
        for x, y in zip([*got.keys, *got.values], [*expected.keys, *expected.values], strict=True):
            torch.testing.assert_close(x[row, :, :length], y[row, :, -length:])


def test_windows_at_once_equal_one_after_the_other(model):
    stock = Qwen2_5_VLVisionAttention(model.vlm.model.visual.config)
    ours = VisionAttention(stock)
    ends = torch.tensor([64, 32, 32, 16, 64, 64]).cumsum(0)
    cu_seqlens = F.pad(ends, (1, 0))
    random = torch.Generator().manual_seed(0)
    x_PE = torch.randn(int(ends[-1]), stock.dim, generator=random)
    angles = torch.randn(int(ends[-1]), stock.head_dim, generator=random)
    results = []
    for attention in (stock, ours):
        stock.zero_grad()
        out = attention(x_PE, cu_seqlens, position_embeddings=(angles.cos(), angles.sin()))
        out.square().sum().backward()
        results.append((out, stock.qkv.weight.grad, stock.proj.weight.grad))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_network_without_token_head_says_so(model, config):
    other = Nora15(dataclasses.replace(config, token_head=None)).eval()
    with pytest.raises(ValueError, match="token_head: expected one to write"):
        generate(other, make_inputs(config, 5), free(config, 1))


def test_the_backbone_refuses_fewer_rows_than_action_tokens(config):
    text = dataclasses.replace(config.text_config, vocab_size=2000)
    with pytest.raises(ValueError, match="vocab_size: expected at least 2311 rows"):
        dataclasses.replace(config, text_config=text)
