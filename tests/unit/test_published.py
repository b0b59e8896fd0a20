"""The published layouts: all of them load, what is strange is said, what is wrong is one line."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import releases
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from releases import change_json, old_names, publish, with_reference, with_tied_head

from nora_core.embodiment import Embodiment
from nora_policy.checkpoints import checkpoint, layout, published, weights
from nora_policy.policy import Policy

EMBODIMENT = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
CPU = torch.device("cpu")
KINDS = {"nora": "NORA", "nora-long": "NORA-Long", "nora-1.5": "NORA-1.5"}
HORIZONS = {"nora": 1, "nora-long": 5, "nora-1.5": None}
INDEX = "model.safetensors.index.json"
Q_PROJ = "action_expert.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def networks():
    return {kind: releases.network(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def sources(networks, tmp_path_factory):
    root = tmp_path_factory.mktemp("releases")
    return {kind: publish(root / kind, model, old_names) for kind, model in networks.items()}


@pytest.fixture
def folder(sources, tmp_path):
    """A copy of NORA-1.5 to break."""
    return shutil.copytree(sources["nora-1.5"], tmp_path / "checkpoint")


@pytest.fixture
def nora(networks, tmp_path):
    """NORA-Long in three shards, to break."""
    return publish(tmp_path / "checkpoint", networks["nora-long"], shards=3)


def load(folder, kind="nora-1.5"):
    return checkpoint.load(folder, CPU, torch.float32, HORIZONS[kind])


# all of them load


def swapped_order(state):
    return dict(reversed(old_names(with_tied_head(state)).items()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change", [dict, old_names, with_tied_head, with_reference, swapped_order]
)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_layout_gives_the_outputs_of_its_network(networks, tmp_path, kind, change, shards):
    is_nested = shards == 3
    publish(tmp_path, networks[kind], change, shards, is_nested=is_nested)
    model = load(tmp_path, kind)
    assert model.config == networks[kind].config
    assert model.config.kind == KINDS[kind]
    torch.testing.assert_close(releases.outputs(model), releases.outputs(networks[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_read_as_it_is(tmp_path, kind):
    model = releases.network(kind).bfloat16().float()
    publish(tmp_path, model, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in layout.read(tmp_path).tensors.values()} == {"BF16"}
    torch.testing.assert_close(releases.outputs(load(tmp_path, kind)), releases.outputs(model))


def test_an_output_of_its_own_is_read_where_the_config_says_so(tmp_path, networks):
    def own_head(state):
        return {**state, "lm_head.weight": state[f"{published.EMBEDDING[4:]}"] + 1}

    publish(tmp_path, networks["nora"], own_head)
    with pytest.raises(ValueError, match="expected the values of the embedding"):
        load(tmp_path, "nora")
    change_json(tmp_path / "config.json", tie_word_embeddings=False)
    assert not load(tmp_path, "nora").config.text_config.tie_word_embeddings
    assert "tie_word_embeddings is false" in " ".join(layout.read(tmp_path).notes)


def test_an_output_that_is_missing_is_named(folder):
    change_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"1 missing: vlm\.lm_head\.weight$"):
        load(folder)


# the horizon is never guessed


def test_a_policy_of_nora_needs_its_horizon(sources):
    embodiment = Embodiment.load(EMBODIMENT)
    with pytest.raises(ValueError, match=r"horizon: expected 1 .*nora-checkpoint convert .*OUT"):
        Policy.load(sources["nora-long"], embodiment, "cpu", head="fast")
    assert Policy.load(sources["nora-1.5"], embodiment, "cpu").head == "flow"


def test_nora15_has_one_horizon(folder):
    with pytest.raises(ValueError, match=r"horizon: expected 5 for NORA-1\.5, got 1"):
        layout.read(folder, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nora-long", "nora-long"),
        ("nora-finetuned-libero-10", "nora-finetuned-libero-10"),
        ("models--declare-lab--nora/snapshots/0123abcd", "nora"),
        ("models--someone--nora/snapshots/0123abcd", None),
        ("my-nora", None),
        ("nora/checkpoint", None),
    ],
)
def test_a_release_is_known_by_its_name_alone(tmp_path, name, expected):
    (tmp_path / name).mkdir(parents=True)
    assert published.release(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("repo", "expected"),
    [("declare-lab/nora-1.5-libero", "nora-1.5-libero"), ("someone/nora", None)],
)
def test_a_download_knows_its_release(tmp_path, repo, expected):
    folder = tmp_path / "nora"
    folder.mkdir()
    releases.write(folder, published.SOURCE, {"repo": repo})
    assert published.release(folder) == expected


# what is strange is said


def notes(folder) -> str:
    return "\n".join(layout.read(folder).notes)


def test_a_release_as_expected_has_little_to_say(sources):
    for folder in sources.values():
        found = layout.read(folder).notes
        assert len(found) == 2, found
        assert "expected the ids of the release 151665 ... 153712" in found[0]
        assert "repetition_penalty 1.05 is honoured" in found[1]


def test_loading_logs_what_is_strange(folder, caplog):
    change_json(folder / "generation_config.json", max_new_tokens=20, use_cache=False)
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert "max_new_tokens = 20 has no effect here" in caplog.text
    assert "use_cache = False has no effect here" in caplog.text


@pytest.mark.parametrize(
    ("name", "message", "penalty"),
    [
        ("generation_config.json", "a repetition penalty of 1 is assumed", 1.0),
        ("preprocessor_config.json", "settings of Qwen2.5-VL are assumed", 1.05),
    ],
)
def test_a_small_file_that_is_not_there_is_said(folder, name, message, penalty):
    (folder / name).unlink()
    assert message in notes(folder)
    head = layout.read(folder).config.token_head
    assert head is not None
    assert head.repetition_penalty == penalty


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"vocab_size": 151936}, "151936, the embedding has 2311 rows"),
        ("config.json", {"tie_word_embeddings": None}, "tie_word_embeddings is not stated"),
        ("generation_config.json", {"repetition_penalty": None}, "penalty is not stated, 1 is"),
        ("generation_config.json", {"no_repeat_ngram_size": 3}, "no_repeat_ngram_size = 3 has no"),
        (
            "generation_config.json",
            {"eos_token_id": 5},
            r"eos_token_id is 5, our end is <|im_end|>",
        ),
    ],
)
def test_a_setting_unlike_the_release_is_said(folder, name, values, message):
    change_json(folder / name, **values)
    assert message in notes(folder)


def test_leftovers_and_pickles_are_said(folder, networks):
    publish(folder, networks["nora-1.5"], with_reference)
    (folder / "training_args.bin").write_bytes(b"x")
    assert "tensors are not used: ref_action_expert." in notes(folder)
    assert "ignored, since they may run code: training_args.bin" in notes(folder)


def test_ids_come_from_added_tokens_where_there_is_no_tokenizer(folder):
    ids = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    (folder / "tokenizer.json").unlink()
    added = {entry["content"]: entry["id"] for entry in ids}
    releases.write(folder, "added_tokens.json", added)
    (folder / "vocab.json").touch()
    assert "ids are those of added_tokens.json" in notes(folder)
    config = layout.read(folder).config
    assert config.action_token_min == added["<robot_action_0>"]
    with pytest.raises(FileNotFoundError, match=r"vocab\.json and merges\.txt are not enough"):
        layout.load_tokenizer(folder, config)


# what is wrong is one line


def refuses(folder, match, kind="nora-1.5", error=ValueError):
    with pytest.raises(error, match=match) as caught:
        load(folder, kind)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def without(prefix):
    return lambda state: {k: v for k, v in state.items() if not k.startswith(prefix)}


def swapped(state):
    k_proj = Q_PROJ.replace("q_proj", "o_proj")
    gate = Q_PROJ.replace("self_attn.q_proj", "mlp.gate_proj")
    return {**state, k_proj: state[gate], gate: state[k_proj]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("action_"), r"expected the action expert of NORA-1\.5"),
        (without("action_expert."), r"1 missing: action_expert\.layers\.0\.self_attn\.q_proj"),
        (without("action_in_proj.bias"), r"1 missing: action_in_proj\.bias$"),
        (without(Q_PROJ[:-7]), rf"1 missing: {Q_PROJ}"),
        (swapped, r"wrong shape: .*o_proj\.weight \(expected \(64, 64\), got \(256, 64\)\)|rows"),
        (
            lambda s: {**s, Q_PROJ: s[Q_PROJ][1:]},
            "expected a multiple of head_dim 32 rows, got 63",
        ),
        (
            lambda s: {
                **s,
                "vlm.model.embed_tokens.weight": s["vlm.model.embed_tokens.weight"][:-9],
            },
            "vocab_size: expected at least 2311 rows for the action tokens, got 2302",
        ),
        (
            lambda s: {**s, "ref_action_in_proj.weight": torch.zeros(1)},
            "1 unexpected: ref_action_in",
        ),
        (lambda s: {**s, "vlm.model.norm.weight": s["vlm.model.norm.weight"].int()}, "got I32"),
    ],
)
def test_weights_that_do_not_fit(folder, networks, change, message):
    publish(folder, networks["nora-1.5"], lambda state: change(old_names(state)))
    refuses(folder, message)


HTML, POINTER = b"<!DOCTYPE html><title>x", b"version https://git-lfs.github.com/spec/v1\noid"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [(HTML, "a web page"), (POINTER, "a Git LFS pointer"), (b"", "empty file")],
)
def test_another_thing_in_place_of_a_file(folder, name, content, message):
    (folder / name).write_bytes(content)
    refuses(folder, rf"{name}: {message}")


def test_a_pickle_in_place_of_safetensors(folder):
    torch.save({"x": torch.zeros(3)}, folder / "model.safetensors")
    refuses(folder, r"model\.safetensors: a pickle \(PyTorch\), which may run code")
    for legacy in (True, False):
        path = folder / "model.safetensors"
        torch.save([1], path, _use_new_zipfile_serialization=not legacy)
        refuses(folder, "a pickle")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuses(folder, r"expected model\.safetensors, got pytorch_model\.bin: a pickle")


@pytest.mark.parametrize("length", [640, 66176])  # begin with 80 02, as a pickle does
def test_a_header_of_any_size_is_no_pickle(tmp_path, length):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + bytes(4))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert weights.header(path)["a"].shape == (1,)


@pytest.mark.parametrize("left", [5, 300, -1])
def test_a_truncated_file(folder, left):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    refuses(folder, "header too small" if left == 5 else r"model\.safetensors: truncated or ")


def test_bytes_too_many(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    refuses(folder, "not a readable safetensors file: .*not fully covered")


@pytest.mark.parametrize(
    "header",
    [
        b"[]      ",
        b"{",
        b'{"a": 3}',
        b'{"a":{"dtype":"F32","shape":[1]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F32","shape":"1","data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
        b"\xff\xfe\xfd",
    ],
)
def test_a_header_that_is_none(folder, header):
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refuses(folder, r"not a readable safetensors file|truncated")


VALID = (
    b'{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[0]}}'
)
JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
JSON = JSON | st.lists(JSON, max_size=3) | st.dictionaries(st.text(max_size=3), JSON, max_size=2)


def problem_of(read, path) -> str:
    """What it raises; its path when it raises nothing."""
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return str(path)


@given(st.data())
def test_any_bytes_are_a_header_or_a_named_error(tmp_path_factory, data):
    header = bytearray(VALID)
    for position in data.draw(st.lists(st.integers(0, len(header) - 1), max_size=3)):
        header[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    tail = data.draw(st.binary(max_size=9))
    path.write_bytes(len(header).to_bytes(8, "little") + header + tail)
    assert problem_of(weights.header, path).startswith(str(path))


NAMES = ["config.json", "generation_config.json", "preprocessor_config.json"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.sampled_from(NAMES), data=st.data())
def test_any_value_in_a_small_file_loads_or_is_a_named_error(folder, name, data):
    path = folder / name
    before = path.read_text()
    values = json.loads(before)
    key = data.draw(st.sampled_from(sorted({*values, "text_config", "rope_parameters", "size"})))
    path.write_text(json.dumps({**values, key: data.draw(JSON)}))
    problem = problem_of(layout.read, folder)
    path.write_text(before)
    assert str(folder) in problem


def test_a_missing_shard(nora):
    (nora / "model-00002-of-00003.safetensors").unlink()
    message = r"1 of 3 shards missing: model-00002-of-00003\.safetensors$"
    refuses(nora, message, "nora-long", FileNotFoundError)


def test_a_shard_that_is_another(nora):
    shutil.copy(
        nora / "model-00001-of-00003.safetensors", nora / "model-00002-of-00003.safetensors"
    )
    refuses(nora, r"model-00002.*expected the tensors that .* names, \d+ differ: ", "nora-long")


@pytest.mark.parametrize("shard", ["../model.safetensors", "/model.safetensors"])
def test_a_shard_elsewhere(nora, shard):
    releases.write(nora, INDEX, {"weight_map": {"a": shard}})
    refuses(nora, "expected names of files in its folder", "nora-long")


def test_an_index_of_nothing(nora):
    releases.write(nora, INDEX, {})
    refuses(nora, "expected a weight_map", "nora-long")


def test_an_index_and_a_file(nora):
    (nora / "model.safetensors").touch()
    refuses(nora, "or model.safetensors.index.json, got both", "nora-long")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"model_type": "qwen2_vl"}, "expected 'qwen2_5_vl', got 'qwen2_vl'"),
        ("config.json", {"num_hidden_layers": 10**12}, "expected those of 89 tensors, got"),
        ("config.json", {"use_sliding_window": True}, "use_sliding_window: expected False"),
        ("config.json", {"quantization_config": {}}, "quantised weights are not read"),
        ("config.json", {"image_token_id": 7}, "image_token_id: expected 261 .*, got 7"),
        ("preprocessor_config.json", {"max_pixels": 50175}, "expected to admit 224 x 224 = 50176"),
        ("preprocessor_config.json", {"min_pixels": 50177}, "expected to admit 224 x 224 = 50176"),
        ("preprocessor_config.json", {"patch_size": 16}, "patch_size: expected 14, got 16"),
        ("preprocessor_config.json", {"merge_size": 1}, "merge_size: expected 2, got 1"),
        ("preprocessor_config.json", {"image_mean": [0.5] * 3}, "image_mean: expected .0.4814"),
        ("preprocessor_config.json", {"image_std": [0.5]}, "image_std: expected .0.26"),
        ("preprocessor_config.json", {"do_rescale": False}, "do_rescale: expected True"),
        ("generation_config.json", {"repetition_penalty": 0}, "expected a number > 0, got 0"),
        ("generation_config.json", {"repetition_penalty": "1"}, "expected a number > 0, got '1'"),
    ],
)
def test_a_setting_that_would_change_the_actions(folder, name, values, message):
    change_json(folder / name, **values)
    refuses(folder, rf"{name}: .*{message}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<robot_action_7>", "<robot_action_x>", r"<robot_action_7>: expected id 270, got None"),
        ("<robot_action_0>", "<robot_action_x>", r"expected the token <robot_action_0>"),
        ("<|im_end|>", "<|end|>", r"expected the token <\|im_end\|> of NORA, got none"),
    ],
)
def test_a_tokenizer_without_the_tokens_of_nora(folder, old, new, message):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace(old, new))
    refuses(folder, message)


def test_two_tokenizer_files_must_agree(folder):
    releases.write(folder, "added_tokens.json", {"<robot_action_0>": 5})
    refuses(folder, r"added_tokens\.json: <robot_action_0>: expected id 263 .*, got 5")


def test_other_ids_are_an_error_at_the_size_of_the_release(sources):
    folder, data = sources["nora-1.5"], {}
    found: list[str] = []
    layout.published_files.tokens(folder, data, False, found)
    assert len(found) == 1
    with pytest.raises(ValueError, match=r"expected the ids of the release 151665 \.\.\. 153712"):
        layout.published_files.tokens(folder, data, True, found)
