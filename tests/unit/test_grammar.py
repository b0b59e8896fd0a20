"""Constrained decoding: whatever is sampled is a chunk, and nothing else is different."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tokenizers import Tokenizer, models
from vocabularies import NAMES, smooth_chunks, vocabulary

from nora_policy.models.fast import SETTINGS, FastTokenizer, Settings
from nora_policy.models.grammar import DecodingState, FreeDecodingState, Grammar

# Vocabulary, T, A: as in the papers, one dimension, and more than most tokens are long.
SHAPES = [(name, *sizes) for name in NAMES for sizes in ((1, 7), (5, 7), (5, 1), (3, 2), (4, 10))]
seeds = st.integers(0, 2**32 - 1)


@cache
def grammar(name: str, horizon: int, action_dim: int) -> Grammar:
    return Grammar(vocabulary(name), horizon, action_dim)


def sample(grammar: Grammar, logits, random: np.random.Generator) -> list[int]:
    """Write to the end; `logits(step)` (V + 1,)."""
    state = DecodingState(grammar)
    while not state.is_ended:
        assert len(state.ids) <= state.max_tokens
        allowed = state.allowed()
        assert allowed.any(), f"dead end after {state.ids}"
        noise = random.gumbel(size=allowed.size)
        state.append(int(np.where(allowed, logits(len(state.ids)) + noise, -np.inf).argmax()))
    return state.ids


def assert_is_chunk(grammar: Grammar, ids: list[int]) -> None:
    chunk = grammar.decode(ids)
    assert chunk.shape == (grammar.horizon, grammar.action_dim)
    assert np.abs(chunk).max() <= 1 + grammar.range.rounding_error + 1e-4  # false if not finite
    assert grammar.accepts(ids)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, scale=st.sampled_from([0.0, 1.0, 5.0, 100.0]))
def test_whatever_is_sampled_is_a_chunk(shape, seed, scale):
    """From flat to one token almost always, other logits at every step."""
    random = np.random.default_rng(seed)
    size = grammar(*shape).end + 1
    ids = sample(grammar(*shape), lambda _: scale * random.normal(size=size), random)
    assert_is_chunk(grammar(*shape), ids)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, favourites=st.integers(1, 20))
def test_a_few_favourites_lead_to_a_chunk(shape, seed, favourites):
    """The same tokens wanted at every step: the extremes of the range, or halves of characters."""
    random = np.random.default_rng(seed)
    logits = np.zeros(grammar(*shape).end + 1)
    logits[random.choice(logits.size, favourites)] = 1000.0
    assert_is_chunk(grammar(*shape), sample(grammar(*shape), lambda _: logits, random))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_always_the_extreme_leads_to_a_chunk(shape, sign):
    """Tokens in the order of their bytes: the smallest or largest coefficients, at every step."""
    rank = np.argsort(np.argsort(np.array(vocabulary(shape[0]).token_bytes, object)))
    logits = sign * 1000.0 * np.append(rank, 0)
    random = np.random.default_rng(0)
    assert_is_chunk(grammar(*shape), sample(grammar(*shape), lambda _: logits, random))


@st.composite
def chunks(draw, horizon: int, action_dim: int) -> np.ndarray:
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    elements = st.floats(-1, 1, width=32) | st.sampled_from([-1.0, 0.0, 1.0])
    return draw(hnp.arrays(dtype, (horizon, action_dim), elements=elements))


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_chunk_can_be_written_also_byte_by_byte(shape, data):
    chunk = data.draw(chunks(*shape[1:]))
    fast = vocabulary(shape[0])
    ids = fast.encode(chunk)
    assert grammar(*shape).accepts(ids)
    single = b"".join(fast.token_bytes[i] for i in ids)
    assert grammar(*shape).accepts([fast.token_bytes.index(bytes([byte])) for byte in single])


# against the definition


def may_follow(grammar: Grammar, fast: FastTokenizer, data: bytes, settled: int) -> bool:
    """Whether `data` begins a chunk, given that its first `settled` characters do.

    Every coefficient is checked by the interval of those before it in its dimension.
    """
    endings = [b"", *(bytes([byte]) for byte in range(0x80, 0xC0))]  # of characters in pieces
    texts = [text for end in endings if (text := decoded(data + end)) is not None]
    if decoded(data) is not None:
        texts = texts[:1]
    return any(
        len(text) <= grammar.size and begins(grammar, fast, text, settled) for text in texts
    )


def decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def begins(grammar: Grammar, fast: FastTokenizer, text: str, settled: int) -> bool:
    values = [ord(character) + fast.settings.min_token for character in text]
    for place in range(settled, len(values)):
        first = place % grammar.action_dim
        low, high = interval(grammar, tuple(values[first : place : grammar.action_dim]))
        if not low <= values[place] <= high:
            return False
    return True


@cache
def interval(grammar: Grammar, earlier: tuple[int, ...]) -> tuple[int, int]:
    low, high = grammar.range.interval(np.array([earlier], np.int64).reshape(1, -1))
    return int(low[0]), int(high[0])


def slow_allowed(grammar: Grammar, fast: FastTokenizer, ids: list[int]) -> np.ndarray:
    data = b"".join(fast.token_bytes[i] for i in ids)
    characters = data.decode(errors="ignore")
    ended = len(characters) == grammar.size
    tokens = [
        not ended and bool(token) and may_follow(grammar, fast, data + token, len(characters))
        for token in fast.token_bytes
    ]
    return np.array([*tokens, ended])


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=12, deadline=None)
@given(seed=seeds, data=st.data())
def test_allowed_is_what_the_definition_says(shape, seed, data):
    """At a random place of a random, an encoded or an extreme sequence, for every token."""
    one, fast = grammar(*shape), vocabulary(shape[0])
    random = np.random.default_rng(seed)
    kind = data.draw(st.sampled_from(["random", "bytes", "encoded", "limits", "still"]))
    if kind in ("random", "bytes"):
        sizes = np.array([len(token) for token in fast.token_bytes] + [1])
        logits = np.where(sizes == 1, 100.0, 0.0) if kind == "bytes" else np.zeros(one.end + 1)
        ids = sample(one, lambda _: logits, random)
    else:
        width = {"encoded": 1.0, "limits": 30.0, "still": 0.05}[kind]
        rows = 1 if data.draw(st.booleans()) else one.horizon  # the same action all the time
        chunk = np.clip(random.uniform(-width, width, (rows, one.action_dim)), -1, 1)
        chunk = np.broadcast_to(chunk, (one.horizon, one.action_dim))
        ids = fast.encode(chunk)
    count = data.draw(st.integers(0, len(ids)))
    state = DecodingState(one)
    for token in ids[:count]:
        state.append(token)
    np.testing.assert_array_equal(state.allowed(), slow_allowed(one, fast, ids[:count]))


# greedy, and without the grammar


def greedy(
    state: DecodingState | FreeDecodingState, logits_SV: np.ndarray
) -> DecodingState | FreeDecodingState:
    for logits in logits_SV:
        if state.is_ended:
            break
        state.append(int(np.where(state.allowed(), logits, -np.inf).argmax()))
    return state


@pytest.mark.parametrize("shape", [(name, h, 7) for name in NAMES for h in (1, 5)])
def test_greedy_is_unchanged_where_it_was_valid(shape):
    """Logits that prefer the tokens of a chunk more or less; the rest of them random."""
    one, fast = grammar(*shape), vocabulary(shape[0])
    random = np.random.default_rng(0)
    num_valid = num_invalid = 0
    for chunk in smooth_chunks(60, one.horizon, seed=3):
        ids = [*fast.encode(chunk), one.end]
        logits_SV = random.normal(size=(2 * one.size + 1, one.end + 1))
        logits_SV[np.arange(len(ids)), ids] += random.uniform(2, 8)
        free = greedy(FreeDecodingState(one.end, 2 * one.size), logits_SV)
        constrained = greedy(DecodingState(one), logits_SV)
        assert constrained.is_ended
        assert_is_chunk(one, constrained.ids)
        if one.accepts(free.ids):
            num_valid += 1
            assert constrained.ids == free.ids
        else:
            num_invalid += 1
    assert num_valid > 5
    assert num_invalid > 5


@pytest.mark.parametrize("shape", [(name, h, 7) for name in NAMES for h in (1, 5)])
def test_random_logits_without_the_grammar_are_hardly_ever_a_chunk(shape):
    one = grammar(*shape)
    random = np.random.default_rng(0)
    num_refused = 0
    for _ in range(50):
        logits_SV = random.normal(size=(2 * one.size + 1, one.end + 1))
        free = greedy(FreeDecodingState(one.end, 2 * one.size), logits_SV)
        num_refused += not one.accepts(free.ids)
        assert_is_chunk(one, greedy(DecodingState(one), logits_SV).ids)
    assert num_refused > 25


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(seed=seeds)
def test_decode_and_accepts_agree(name, seed):
    """With one wrong id: refused by both, or a chunk to both."""
    one, fast = grammar(name, 5, 7), vocabulary(name)
    random = np.random.default_rng(seed)
    ids = fast.encode(smooth_chunks(1, 5, seed=seed)[0])
    ids[random.integers(len(ids))] = int(random.integers(fast.vocab_size))
    if one.accepts(ids):
        assert_is_chunk(one, ids)
    else:
        with pytest.raises(ValueError, match="action tokens: "):
            one.decode(ids)


@pytest.mark.parametrize("name", NAMES)
def test_the_gripper_of_all_patterns_is_read_back(name):
    """Threshold on the raw decoded value: the published rule errs in 27 of these 160 steps."""
    fast = vocabulary(name)
    random = np.random.default_rng(0)
    for pattern in range(32):
        opening = np.array([pattern >> t & 1 for t in range(5)])
        chunk = np.column_stack([random.uniform(-1, 1, (5, 6)), opening]).astype(np.float32)
        decoded = fast.decode(fast.encode(chunk), 5, 7)[:, -1]
        np.testing.assert_array_equal(decoded > 0.5, opening)


# states and errors


def test_ids_that_are_no_tokens_are_not_accepted():
    one = grammar("fitted", 1, 7)
    ids = vocabulary("fitted").encode(np.zeros((1, 7)))
    assert one.accepts(ids)
    for wrong in ([], [-1], [one.end], [*ids, one.end], [*ids, ids[0]], ids[:-1]):
        assert not one.accepts(wrong)


def test_sentences_of_one_grammar_are_independent():
    one = grammar("fitted", 5, 7)
    before = DecodingState(one).allowed()
    other = DecodingState(one)
    other.append(vocabulary("fitted").encode(np.ones((5, 7)))[0])
    np.testing.assert_array_equal(DecodingState(one).allowed(), before)
    assert DecodingState(one).ids == []
    assert not np.array_equal(other.allowed(), before)


def test_a_free_sentence_ends_by_its_token_or_its_length():
    for tokens, ids in (([5, 9, 7], [5]), ([1, 2, 3, 4], [1, 2, 3])):
        state = FreeDecodingState(end=9, max_tokens=3)
        for token in tokens:
            assert state.allowed().all()
            state.append(token)
        assert state.ids == ids
        assert state.is_ended


@pytest.mark.parametrize("min_token", [-22, -128, -512, -2000])
@settings(max_examples=8, deadline=None)
@given(seed=seeds)
def test_other_characters_are_read_as_well(tmp_path_factory, min_token, seed):
    """Of one byte, of one and two, of another lead byte."""
    one, fast = shifted(tmp_path_factory.getbasetemp(), min_token)
    random = np.random.default_rng(seed)
    ids = sample(one, lambda _: np.zeros(one.end + 1), random)
    assert_is_chunk(one, ids)
    count = random.integers(len(ids) + 1)
    state = DecodingState(one)
    for token in ids[:count]:
        state.append(token)
    np.testing.assert_array_equal(state.allowed(), slow_allowed(one, fast, ids[:count]))


@cache
def shifted(parent: Path, min_token: int) -> tuple[Grammar, FastTokenizer]:
    folder = parent / f"shifted{min_token}"
    vocabulary("fitted").save(folder)
    data = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(data | {"min_token": min_token}))
    fast = FastTokenizer.load(folder)
    return Grammar(fast, 5, 3), fast


@pytest.mark.parametrize("min_token", [-21, -2026])
def test_a_min_token_without_room_for_the_range_is_refused(tmp_path_factory, min_token):
    message = f"min_token: expected -2025 ... -22 for 5 steps, got {min_token}"
    with pytest.raises(ValueError, match=message):
        shifted(tmp_path_factory.getbasetemp(), min_token)


def test_a_vocabulary_that_lacks_a_byte_is_refused():
    fast = FastTokenizer(Tokenizer(models.BPE({"Å": 0, "a": 1}, [])), Settings(10.0, -354))
    assert fast.token_bytes == (b"\xc5", b"a")
    with pytest.raises(ValueError, match=r"a token for every byte of a chunk, lacks \[140, 141,"):
        Grammar(fast, 5, 7)


def test_a_long_horizon_is_refused():
    with pytest.raises(ValueError, match="expected a horizon of at most 8, got 9"):
        Grammar(vocabulary("fitted"), 9, 7)
