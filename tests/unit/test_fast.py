"""FAST tokens: golden vectors, round trips, fitted vocabularies, and every refusal."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vocabularies import NAMES, smooth_chunks, vocabulary

from nora_policy.models.action_range import action_range
from nora_policy.models.fast import SETTINGS, TOKENIZER, FastTokenizer, Settings

GOLDEN = Path(__file__).parents[1] / "golden/fast_vectors.json"
within_one = st.floats(-1, 1, width=32) | st.sampled_from([-1.0, 0.0, 1.0])


@st.composite
def chunks(draw) -> np.ndarray:
    """Normalised (T, 7), T = 1 or 5, float32 or float64; often at the limits."""
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    return draw(hnp.arrays(dtype, (draw(st.sampled_from([1, 5])), 7), elements=within_one))


# golden


def test_ids_and_actions_equal_the_original():
    fast = vocabulary("public")
    for vector in json.loads(GOLDEN.read_text()):
        actions = np.array(vector["actions"], np.float32)
        assert fast.encode(actions) == vector["ids"]
        decoded = fast.decode(vector["ids"], *actions.shape)
        np.testing.assert_allclose(decoded, vector["decoded"], rtol=0, atol=1e-6)


T = np.arange(5)[:, None]
MOVING = np.hstack(
    [0.1 * T, 0 * T - 0.2, 0.05 * T, 0 * T, 0 * T, 0.3 - 0.1 * T, np.where(T < 3, 1.0, 0.0)]
)


@pytest.mark.parametrize(
    ("actions", "ids"),
    [
        (np.zeros((1, 7)), [777, 256]),
        (np.zeros((5, 7)), [261, 257, 256]),
        (np.ones((5, 7)), [372] * 7 + [269]),
        (np.array([[-1.0] * 6 + [0]]), [309] * 6 + [256]),
        (MOVING, [282, 543, 353, 1941, 293, 500, 308, 2044, 951, 2022]),
    ],
)
def test_known_ids(actions, ids):
    assert vocabulary("public").encode(actions) == ids


def test_known_actions():
    fast = vocabulary("public")
    np.testing.assert_allclose(fast.decode([372] * 7 + [269], 5, 7), 0.98387, atol=1e-5)
    ids = fast.encode(MOVING)
    rows = [[4, -4, 2, 0, 0, 2, 13], [-3, 0, -2, 0, 0, 3, 10]]
    np.testing.assert_array_equal(fast.coefficients(ids, 5, 7)[:2], rows)
    gripper = fast.decode(ids, 5, 7)[:, -1]
    np.testing.assert_allclose(gripper, [1.0137, 0.9786, 0.9609, -0.0055, -0.0406], atol=5e-5)


# round trips


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(actions=chunks())
def test_any_chunk_comes_back_rounded(name, actions):
    fast = vocabulary(name)
    decoded = fast.decode(fast.encode(actions), *actions.shape)
    limit = action_range(len(actions), fast.settings.scale).rounding_error
    assert np.abs(decoded - actions).max() <= limit + 1e-6


@settings(deadline=None)
@given(actions=chunks())
def test_rounding_again_changes_nothing(actions):
    fast = vocabulary("fitted")
    ids = fast.encode(actions)
    assert fast.encode(fast.decode(ids, *actions.shape)) == ids


@settings(deadline=None)
@given(actions=chunks())
def test_the_bytes_of_the_tokens_are_the_coefficients(actions):
    """Against the definition, without BPE: scale * DCT as an explicit sum, row by row."""
    fast = vocabulary("fitted")
    n = len(actions)
    k, t = np.arange(n)[:, None], np.arange(n)
    basis = np.cos(np.pi * (2 * t + 1) * k / (2 * n)) * np.sqrt(np.where(k == 0, 1, 2) / n)
    exact = 10 * basis @ actions.astype(np.float64)
    text = b"".join(fast.token_bytes[i] for i in fast.encode(actions)).decode()
    got = np.array([ord(c) - 354 for c in text]).reshape(actions.shape)
    assert np.abs(got - exact).max() <= 0.5 + 1e-4


def test_halves_are_rounded_to_even():
    """Those that are still halves after a transform in float32."""
    fast = vocabulary("fitted")
    ids = fast.encode(np.array([[0.05, 0.15, -0.05, 0.85]], np.float32))
    assert fast.coefficients(ids, 1, 4).tolist() == [[0, 2, 0, 8]]


def test_what_it_was_fitted_on_is_short():
    fast = vocabulary("fitted")
    lengths = [len(fast.encode(chunk)) for chunk in smooth_chunks(100, 5, seed=1)]
    assert np.mean(lengths) < 25  # of 35 coefficients, 70 bytes


def test_fit_save_and_load_agree(tmp_path, monkeypatch):
    fast = vocabulary("fitted")
    fast.save(tmp_path / "fast")
    assert {path.name for path in (tmp_path / "fast").iterdir()} == {TOKENIZER, SETTINGS}

    def refuse(*_):
        raise AssertionError("FastTokenizer.load used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = FastTokenizer.load(tmp_path / "fast")
    assert loaded.token_bytes == fast.token_bytes
    assert loaded.settings == fast.settings
    for chunk in smooth_chunks(50, 5, seed=2):
        assert loaded.encode(chunk) == fast.encode(chunk)


def test_code_beside_the_files_is_not_run(tmp_path):
    vocabulary("fitted").save(tmp_path)
    data = json.loads((tmp_path / SETTINGS).read_text())
    data["auto_map"] = {"AutoProcessor": "processing_action_tokenizer.UniversalActionProcessor"}
    (tmp_path / SETTINGS).write_text(json.dumps(data))
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'w')\n"
    (tmp_path / "processing_action_tokenizer.py").write_text(code)
    FastTokenizer.load(tmp_path)
    assert not ran.exists()


# refusals


@pytest.mark.parametrize(
    "actions",
    [np.zeros(7), np.zeros((0, 7)), np.zeros((1, 5, 7)), np.full((5, 7), np.nan)],
)
def test_what_is_no_chunk_is_refused(actions):
    with pytest.raises(ValueError, match=r"actions: expected finite numbers of shape \(T, A\)"):
        vocabulary("fitted").encode(actions)


@pytest.mark.parametrize("value", [-36.0, 171.0])
def test_values_without_a_character_are_refused(value):
    with pytest.raises(ValueError, match="actions: expected normalised ones, got"):
        vocabulary("fitted").encode(np.full((1, 7), value))


def token(fast: FastTokenizer, data: bytes) -> int:
    return fast.token_bytes.index(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fast, ids: ids[:-1], r"expected 5 x 7 = 35 coefficients, got"),
        (lambda fast, ids: [*ids, *ids], r"expected 5 x 7 = 35 coefficients, got 70"),
        (lambda fast, ids: [], r"got 0"),
        (lambda fast, ids: [*ids, -1], r"expected ids of 0 \.\.\. 899, got -1"),
        (lambda fast, ids: [*ids, 900], r"expected ids of 0 \.\.\. 899, got 900"),
        (lambda fast, ids: [*ids, token(fast, b"\xc5")], "break a character in pieces"),
        (lambda fast, ids: [token(fast, b"\xa0"), *ids], "break a character in pieces"),
    ],
)
def test_wrong_tokens_are_refused(change, message):
    fast = vocabulary("fitted")
    ids = change(fast, fast.encode(smooth_chunks(1, 5)[0]))
    with pytest.raises(ValueError, match=f"action tokens: .*{message}"):
        fast.decode(ids, 5, 7)


@settings(deadline=None)
@given(hnp.arrays(np.int64, (5, 7), elements=st.integers(-300, 300)))
def test_decoding_refuses_all_but_chunks(coefficients):
    """Whatever the text says, it is a chunk within [-1, 1] and rounding, or an error."""
    fast = vocabulary("fitted")
    data = "".join(chr(q + 354) for q in coefficients.ravel()).encode()
    ids = [token(fast, bytes([byte])) for byte in data]
    limit = action_range(5, 10.0)
    if limit.contains(coefficients):
        assert np.abs(fast.decode(ids, 5, 7)).max() <= 1 + limit.rounding_error + 1e-4
    else:
        with pytest.raises(ValueError, match=r"within \[-1, 1\] and rounding, got actions of up"):
            fast.decode(ids, 5, 7)


@pytest.mark.parametrize("name", [TOKENIZER, SETTINGS])
def test_a_missing_file_is_named(tmp_path, name):
    vocabulary("fitted").save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: no such file \(FAST tokenizer\)"):
        FastTokenizer.load(tmp_path)


WORDS = json.dumps({"model": {"type": "WordLevel", "vocab": {"€": 0}, "unk_token": "€"}})
GAPS = json.dumps({"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 7}, "unk_token": "a"}})


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (SETTINGS, b"{", "JSONDecodeError"),
        (SETTINGS, b"\xff", "UnicodeDecodeError"),
        (SETTINGS, b"[]", "expected scale and min_token"),
        (SETTINGS, b'{"scale": 10}', "KeyError.'min_token'"),
        (SETTINGS, b'{"scale": 0, "min_token": -354}', "scale: expected a number above 0, got 0"),
        (SETTINGS, b'{"scale": NaN, "min_token": -354}', "scale: expected .* got nan"),
        (SETTINGS, b'{"scale": "ten", "min_token": -354}', "'ten'"),
        (SETTINGS, b'{"scale": 10, "min_token": -3.5}', "float"),
        (SETTINGS, b'{"scale": 10, "min_token": -9999}', r"expected -2047 \.\.\. 0, got -9999"),
        (SETTINGS, b'{"scale": 10, "min_token": 1}', r"expected -2047 \.\.\. 0, got 1"),
        (TOKENIZER, b"{", "EOF"),
        (TOKENIZER, b"\xff", "invalid start byte"),
        (TOKENIZER, b"{}", "Model missing"),
        (TOKENIZER, WORDS.encode(), "expected a byte-level vocabulary, got character '€'"),
        (TOKENIZER, GAPS.encode(), r"expected the ids 0 \.\.\. 1, got gaps"),
    ],
)
def test_a_bad_file_gives_one_clear_line(tmp_path, name, data, message):
    vocabulary("fitted").save(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        FastTokenizer.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_settings_are_checked_however_they_are_made():
    with pytest.raises(ValueError, match="scale"):
        Settings(-1.0, -354)
