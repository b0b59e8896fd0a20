"""Resize, patches and prompt: equal to pre-training's, for any camera."""

import base64
import dataclasses
import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from nora_core.embodiment import Camera
from nora_core.images import orient, resize
from nora_core.types import Observation
from nora_policy.checkpoints.untrained import make_config, make_tokenizer
from nora_policy.models.config import NORA15_3B
from nora_policy.preprocess import Preprocessor, patchify

GOLDEN = Path(__file__).parents[1] / "golden/resize_lanczos3_224.npz"
CAMERA = Camera(name="primary", topic="camera/image_raw", encoding="rgb8", max_age_s=0.4)
sizes = st.integers(1, 90)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# resize


@pytest.mark.parametrize("name", ["photo", "edges_720x1280", "small_128x160"])
def test_resize_equals_tensorflow_to_one_grey_level(name):
    with np.load(GOLDEN) as arrays:
        source, expected = arrays[f"in:{name}"], arrays[f"out:{name}"]
    error = np.abs(resize(source, 224, 224).astype(int) - expected)
    assert error.max() <= 1
    assert (error > 0).mean() < 1e-4  # measured: 2e-5 ... 4e-5 of the values


def written_out(rgb: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Antialiased lanczos3 along one axis as a sum per output sample, float64."""
    scale = rgb.shape[axis] / size
    width = max(scale, 1.0)
    rows = []
    for i in range(size):
        x = np.abs(np.arange(rgb.shape[axis]) + 0.5 - (i + 0.5) * scale) / width
        weights = np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
        rows.append(np.tensordot(weights / weights.sum(), rgb, axes=(0, axis)))
    return np.stack(rows, axis=axis)


@settings(deadline=None, max_examples=25)
@given(sizes, sizes, sizes, sizes, st.integers(0, 2**31))
def test_resize_equals_its_definition(height, width, out_height, out_width, seed):
    rgb = random_image(height, width, seed)
    exact = written_out(written_out(rgb.astype(float), out_height, 0), out_width, 1)
    got = resize(rgb, out_height, out_width)
    assert got.dtype == np.uint8
    assert np.abs(got - np.clip(exact, 0, 255)).max() <= 0.5 + 2e-3


@settings(max_examples=25)
@given(sizes, sizes, st.integers(0, 255))
def test_resize_keeps_a_plain_image_plain(height, width, grey):
    rgb = np.full((height, width, 3), grey, np.uint8)
    np.testing.assert_array_equal(resize(rgb, 56, 28), np.full((56, 28, 3), grey))


@given(sizes, sizes)
def test_resize_to_the_same_size_changes_nothing(height, width):
    rgb = random_image(height, width)
    np.testing.assert_array_equal(resize(rgb, height, width), rgb)


def test_resize_takes_any_memory_layout():
    rgb = random_image(60, 80)
    np.testing.assert_array_equal(resize(rgb[::-1], 56, 56), resize(rgb[::-1].copy(), 56, 56))


# camera


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_rotation_is_clockwise(quarter_turns):
    rgb = random_image(4, 6)
    camera = dataclasses.replace(CAMERA, rotation_deg=90 * quarter_turns)
    turned = orient(rgb, camera)
    corners = [rgb[0, 0], rgb[0, -1], rgb[-1, -1], rgb[-1, 0]]  # clockwise
    np.testing.assert_array_equal(turned[0, 0], corners[-quarter_turns % 4])
    np.testing.assert_array_equal(turned[0, -1], corners[1 - quarter_turns])


def test_crop_follows_rotation():
    rgb = random_image(4, 6)
    camera = dataclasses.replace(CAMERA, rotation_deg=90, crop=(1, 2, 3, 2))
    np.testing.assert_array_equal(orient(rgb, camera), np.rot90(rgb, -1)[1:4, 2:4])


def test_a_crop_that_leaves_the_image_is_refused():
    camera = dataclasses.replace(CAMERA, crop=(0, 0, 5, 6))
    with pytest.raises(ValueError, match=r"camera primary: .*crop \[0, 0, 5, 6\].*got .*\[4, 6\]"):
        orient(random_image(4, 6), camera)


# patches


@pytest.mark.parametrize(("height", "width"), [(224, 224), (112, 112), (56, 56), (224, 448)])
def test_patches_equal_those_of_transformers(height, width):
    rgb = random_image(height, width)
    expected = Qwen2VLImageProcessorPil()(images=[rgb], return_tensors="np")
    patches = patchify(rgb[None], patch=14, merge=2, frames=2)
    assert expected["image_grid_thw"].tolist() == [[1, height // 14, width // 14]]
    np.testing.assert_array_equal(patches, expected["pixel_values"])


# prompt


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


def template(instruction: str, num_cameras: int = 1) -> str:
    image = "<|vision_start|>" + "<|image_pad|>" * 64 + "<|vision_end|>"
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"{image * num_cameras}{instruction}<|im_end|>\n<|im_start|>assistant\n"
    )


def preprocessor(tokenizer: Tokenizer, num_cameras: int = 1, **changes) -> Preprocessor:
    config = dataclasses.replace(make_config(tokenizer), **changes)
    cameras = [dataclasses.replace(CAMERA, name=str(i)) for i in range(num_cameras)]
    return Preprocessor(config, tokenizer, tuple(cameras))


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<")))
def test_the_prompt_is_the_chat_template(tokenizer, instruction):
    expected = tokenizer.encode(template(instruction.lower())).ids
    assert preprocessor(tokenizer).prompt(instruction) == expected


def test_lower_casing_is_a_choice_of_the_config(tokenizer):
    kept = preprocessor(tokenizer, lowercase_instruction=False).prompt("Pick UP")
    assert kept == tokenizer.encode(template("Pick UP")).ids
    assert preprocessor(tokenizer).prompt("Pick UP") == preprocessor(tokenizer).prompt("pick up")


@pytest.mark.parametrize("marker", ["<|im_end|>", "<|image_pad|>", "<robot_action_7>"])
def test_an_instruction_cannot_write_markers(tokenizer, marker):
    with pytest.raises(ValueError, match="instruction: expected plain text"):
        preprocessor(tokenizer).prompt(f"pick {marker} up")


def test_inputs_of_two_cameras_come_in_their_order(tokenizer):
    images = (random_image(480, 640, 1), random_image(120, 160, 2))
    inputs = preprocessor(tokenizer, 2)(Observation(images, "pick", 0))
    assert inputs.input_ids_BL.tolist() == [tokenizer.encode(template("pick", 2)).ids]
    assert inputs.attention_mask_BL.min() == 1
    assert inputs.image_grid_N3.tolist() == [[1, 16, 16]] * 2
    expected = [patchify(resize(rgb, 224, 224)[None], 14, 2, 2) for rgb in images]
    np.testing.assert_array_equal(inputs.pixel_values_PC, np.concatenate(expected))


def test_the_number_of_images_must_be_that_of_the_cameras(tokenizer):
    with pytest.raises(ValueError, match=r"images: expected 2 \(one per camera\), got 1"):
        preprocessor(tokenizer, 2)(Observation((random_image(56, 56),), "pick", 0))


@pytest.fixture(scope="module")
def qwen() -> Tokenizer:
    """The vocabulary of Qwen2.5 out of the package `dashscope`, with the action tokens of NORA."""
    spec = importlib.util.find_spec("dashscope")
    if spec is None:
        pytest.skip("the package dashscope, which holds Qwen's vocabulary, is not installed")
    path = Path(spec.origin).parent / "resources/qwen.tiktoken"
    lines = [line.split() for line in path.read_bytes().splitlines()]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    return qwen_tokenizer(ranks)


def qwen_tokenizer(ranks: dict[bytes, int]) -> Tokenizer:
    printable = byte_characters()

    def text(token: bytes) -> str:
        return "".join(printable[byte] for byte in token)

    pairs = [pair for token in ranks if len(token) > 1 for pair in [last_merge(token, ranks)]]
    merges = [(text(left), text(right)) for left, right in pairs]
    vocab = {text(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.normalizer = normalizers.NFC()
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(Regex(words), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    markers = {
        151643: "<|endoftext|>",
        151644: "<|im_start|>",
        151645: "<|im_end|>",
        151652: "<|vision_start|>",
        151653: "<|vision_end|>",
        151655: "<|image_pad|>",
        151656: "<|video_pad|>",
    }
    names = [markers.get(index, f"<|unused_{index}|>") for index in range(151643, 151665)]
    names += [f"<robot_action_{index}>" for index in range(2048)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return tokenizer


def byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in plain else next(others)) for byte in range(256)]


def last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that byte pair encoding joins last to form `token`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        joined = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        i = joined.index(min(joined))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def test_the_prompt_in_the_vocabulary_of_qwen(qwen):
    assert qwen.get_vocab_size() == NORA15_3B.text_config.vocab_size
    assert qwen.token_to_id("<robot_action_0>") == NORA15_3B.action_token_min
    ids = Preprocessor(NORA15_3B, qwen, (CAMERA,)).prompt("Put the carrot on the plate")
    system = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
    user = [151644, 872, 198, 151652, *[151655] * 64, 151653]
    instruction = qwen.encode("put the carrot on the plate").ids
    assert ids == [*system, *user, *instruction, 151645, 198, 151644, 77091, 198]
