"""Checkpoint folders: ours and the published layout load strictly, every misfit is named."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nora_policy.checkpoints import checkpoint, untrained
from nora_policy.models.config import NORA15_3B
from nora_policy.models.inputs import ModelInputs
from nora_policy.models.nora15 import Nora15

EMBODIMENT = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
CPU = torch.device("cpu")
EMBEDDING = "vlm.model.language_model.embed_tokens.weight"
Q_PROJ = "action_expert.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Nora15]:
    folder = tmp_path_factory.mktemp("saved")
    return folder, untrained.write_tiny(folder, EMBODIMENT, seed=3)


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    copy = tmp_path / "checkpoint"
    shutil.copytree(saved[0], copy)
    return copy


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Nora15:
    return checkpoint.load(folder, CPU, dtype)


def change_weights(folder: Path, change) -> None:
    path = folder / checkpoint.WEIGHTS
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file({name: tensor.contiguous() for name, tensor in change(state).items()}, path)


@torch.no_grad()
def velocity(model: Nora15) -> torch.Tensor:
    ids = model.config.token_ids
    tokens = torch.tensor([[1, ids.vision_start, *[ids.image] * 4, ids.vision_end, 2]])
    pixels = torch.linspace(-1, 1, 16 * 1176).view(16, 1176)
    grid = torch.tensor([[1, 4, 4]])
    prefix, _ = model.encode(ModelInputs(tokens, torch.ones_like(tokens), pixels, grid))
    x_BTA = torch.linspace(-1, 1, 35).view(1, 5, 7)
    return model.velocity(x_BTA, torch.tensor([0.6]), prefix)


def test_what_was_saved_is_loaded(saved):
    folder, model = saved
    loaded = load(folder)
    assert loaded.config == model.config
    assert not loaded.training
    for (name, expected), (other, got) in zip(
        model.named_parameters(), loaded.named_parameters(), strict=True
    ):
        assert name == other
        assert torch.equal(got, expected)
    torch.testing.assert_close(velocity(loaded), velocity(model), rtol=1e-5, atol=1e-5)


def test_the_output_stays_tied_to_the_embedding(saved):
    vlm = load(saved[0]).vlm
    assert vlm.lm_head.weight is vlm.model.language_model.embed_tokens.weight


def test_an_output_of_its_own_is_kept(tmp_path):
    tokenizer = untrained.make_tokenizer()
    config = untrained.make_config(tokenizer)
    text = dataclasses.replace(config.text_config, tie_word_embeddings=False)
    model = Nora15(dataclasses.replace(config, text_config=text))
    checkpoint.save(tmp_path, model, tokenizer)
    loaded = load(tmp_path)
    assert torch.equal(loaded.vlm.lm_head.weight, model.vlm.lm_head.weight)
    assert not torch.equal(
        loaded.vlm.lm_head.weight, loaded.vlm.model.language_model.embed_tokens.weight
    )
    assert [p.name for p in tmp_path.glob("*.partial")] == []


def test_nothing_is_left_on_the_meta_device(saved):
    model = load(saved[0])
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"cpu"}


def test_a_type_of_number_can_be_chosen(saved):
    model = load(saved[0], torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(velocity(model), velocity(saved[1]), rtol=0.1, atol=0.1)
    assert velocity(model).dtype == torch.float32


def test_the_same_seed_gives_the_same_checkpoint(saved, tmp_path):
    for seed, is_same in ((3, True), (4, False)):
        model = untrained.write_tiny(tmp_path, EMBODIMENT, seed)
        assert torch.equal(velocity(model), velocity(saved[1])) == is_same


def test_the_tiny_checkpoint_says_that_it_is_random(saved):
    folder, model = saved
    card = json.loads((folder / checkpoint.CARD).read_text())
    assert "RANDOM" in card["description"]
    assert card["parameters"] == sum(p.numel() for p in model.parameters()) < 3_000_000
    assert (folder / checkpoint.EMBODIMENT).read_text() == EMBODIMENT.read_text()


# what does not fit


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(Q_PROJ), f"1 missing: {Q_PROJ}$"),
        (without("action_in_proj.weight"), r"1 missing: action_in_proj\.weight$"),
        (lambda s: {**s, "extra.weight": torch.zeros(1)}, r"1 unexpected: extra\.weight$"),
        (
            lambda s: {**s, Q_PROJ: s[Q_PROJ][1:]},
            rf"1 wrong shape: {Q_PROJ} \(expected \(64, 64\), got \(63, 64\)\)$",
        ),
        (
            lambda s: {f"model.{name}": value for name, value in s.items()},
            r"\d+ missing: .*, \.\.\.; \d+ unexpected: model\..*, \.\.\.$",
        ),
        (
            lambda s: {**s, checkpoint.LM_HEAD: s[EMBEDDING] + 1},
            "expected the values of the embedding",
        ),
        (
            lambda s: {**s, checkpoint.LM_HEAD: s[EMBEDDING][:-1].clone()},
            rf"1 wrong shape: {checkpoint.LM_HEAD} ",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, message):
    change_weights(folder, change)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert str(folder / checkpoint.WEIGHTS) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {**c, "horizont": 5}, r"config\.json: horizont: unknown key"),
        (lambda c: {**c, "horizon": 5.5}, r"horizon: expected int, got float 5\.5"),
        (lambda c: {k: v for k, v in c.items() if k != "horizon"}, "horizon: missing key"),
        (lambda c: {**c, "expert": None, "token_head": None}, "expert, token_head or both"),
        (
            lambda c: {**c, "expert": {**c["expert"], "num_hidden_layers": 7}},
            r"expert\.num_hidden_layers: expected 2 as in text_config, got 7",
        ),
        (lambda c: {**c, "image_size": 225}, "image_size: expected a multiple of 28, got 225"),
        (lambda c: {**c, "lowercase_instruction": 1}, "lowercase_instruction: expected bool"),
    ],
)
def test_a_config_that_does_not_fit_is_named(folder, change, message):
    path = folder / checkpoint.CONFIG
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [(checkpoint.WEIGHTS, "not a readable safetensors file"), (checkpoint.CONFIG, "Expecting")],
)
def test_a_broken_file_is_named(folder, name, message):
    (folder / name).write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=rf"{name}: .*{message}"):
        load(folder)


def test_a_broken_tokenizer_is_named(folder):
    path = folder / checkpoint.TOKENIZER
    path.write_text(path.read_text()[:1000])
    with pytest.raises(ValueError, match=r"tokenizer\.json: not valid JSON"):
        checkpoint.load_tokenizer(folder, checkpoint.load_config(folder))


def test_missing_weights_are_named_with_what_is_there(folder):
    (folder / checkpoint.WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected model\.safetensors, available: \['c"):
        load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")


def test_a_tokenizer_with_other_ids_is_refused(folder):
    path = folder / checkpoint.TOKENIZER
    path.write_text(path.read_text().replace("<|image_pad|>", "<|picture_pad|>"))
    config = checkpoint.load_config(folder)
    with pytest.raises(ValueError, match=r"<\|image_pad\|>: expected id 261, got None"):
        checkpoint.load_tokenizer(folder, config)


# what the release says


def test_a_parameter_under_two_names_is_refused(folder):
    change_weights(folder, lambda s: {**s, "vlm.model.norm.weight": torch.zeros(128)})
    with pytest.raises(ValueError, match=r"language_model\.norm\.weight: expected once"):
        load(folder)


def test_without_a_config_the_release_is_expected(folder):
    (folder / checkpoint.CONFIG).unlink()
    with pytest.raises(ValueError, match="expected a multiple of head_dim 128 rows, got 64"):
        load(folder)


def test_the_release_has_the_sizes_it_should():
    with torch.device("meta"):
        model = Nora15(NORA15_3B)
    expert = sum(p.numel() for name, p in model.named_parameters() if name.startswith("action_"))
    backbone = sum(p.numel() for p in model.vlm.parameters())
    assert expert == 228_377_095
    stock_rows = 151_936
    added = (NORA15_3B.text_config.vocab_size - stock_rows) * NORA15_3B.text_config.hidden_size
    assert backbone == 3_754_622_976 + added
