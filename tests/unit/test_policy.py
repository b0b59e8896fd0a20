"""The policy as its callers see it: physical units, seeds, refusals, bad output."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nora_core.embodiment import Embodiment
from nora_core.types import Observation
from nora_policy.checkpoints import checkpoint, untrained
from nora_policy.policy import Policy

EMBODIMENT = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
STAMP_NS = 1_234_567_890_123


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    untrained.write_tiny(folder, EMBODIMENT)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    copy = tmp_path / "checkpoint"
    shutil.copytree(saved, copy)
    return copy


@pytest.fixture(scope="module")
def embodiment() -> Embodiment:
    return Embodiment.load(EMBODIMENT)


@pytest.fixture(scope="module")
def policy(saved, embodiment) -> Policy:
    return Policy.load(saved, embodiment, device="cpu", seed=0)


def observe(instruction: str = "pick up the red cube", seed: int = 0) -> Observation:
    rgb = np.random.default_rng(seed).integers(0, 256, (120, 160, 3), np.uint8)
    return Observation((rgb, rgb), instruction, STAMP_NS)


def test_a_chunk_is_complete(policy, embodiment):
    chunk = policy.infer(observe())
    assert chunk.actions_TA.shape == (5, 7)
    assert chunk.actions_TA.dtype == np.float64
    assert chunk.stamp_ns == STAMP_NS
    assert chunk.instruction == "pick up the red cube"
    assert chunk.step_period_s == embodiment.action.step_period_s
    assert chunk.action_names == embodiment.action.names
    assert policy.name == "tiny"
    assert policy.device == torch.device("cpu")


def test_actions_stay_within_what_was_seen_in_training(policy):
    actions = np.stack([chunk.actions_TA for chunk in policy.sample(observe(), 64)])
    assert np.abs(actions[..., :6]).max(axis=(0, 1)) == pytest.approx(untrained.STEP)
    assert actions[..., 6].min() == 0.0
    assert actions[..., 6].max() == 1.0
    assert np.unique(actions[..., 6]).size > 100


def test_the_same_seed_gives_the_same_chunks(saved, embodiment, policy):
    def chunks(seed, is_warm):
        other = Policy.load(saved, embodiment, "cpu", seed=seed)
        if is_warm:
            other.warm_up()
        return np.stack([other.infer(observe()).actions_TA for _ in range(2)])

    first = chunks(5, False)
    np.testing.assert_array_equal(chunks(5, True), first)
    assert not np.allclose(chunks(6, False), first)
    assert not np.allclose(chunks(None, False), chunks(None, False))
    assert not np.allclose(first[0], first[1])


def test_samples_are_those_of_single_inferences(saved, embodiment):
    first, second = (Policy.load(saved, embodiment, "cpu", seed=1) for _ in range(2))
    together = [chunk.actions_TA for chunk in first.sample(observe(), 3)]
    alone = [second.infer(observe()).actions_TA for _ in range(3)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_image_is_encoded_once_for_all_samples(policy, monkeypatch):
    calls = []
    encode = policy._model.encode
    monkeypatch.setattr(policy._model, "encode", lambda x: calls.append(x) or encode(x))
    policy.sample(observe(), 8)
    assert len(calls) == 1


def test_image_and_instruction_reach_the_actions(saved, embodiment):
    def chunk(observation):
        return Policy.load(saved, embodiment, "cpu", seed=0).infer(observation).actions_TA

    reference = chunk(observe())
    assert not np.allclose(chunk(observe(seed=1)), reference, atol=1e-7)
    assert not np.allclose(chunk(observe("pick up the blue cube")), reference, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_output_that_is_not_finite_is_an_error(saved, embodiment, bad):
    policy = Policy.load(saved, embodiment, "cpu", seed=0)
    with torch.no_grad():
        policy._model.action_out_proj.bias[2] = bad
    with pytest.raises(RuntimeError, match="model output: expected finite actions, got 35 of 35"):
        policy.infer(observe())


# the token head


@pytest.fixture(scope="module")
def writer(saved, embodiment) -> Policy:
    return Policy.load(saved, embodiment, "cpu", seed=0, head="fast")


def test_tokens_become_complete_chunks_within_what_was_seen(writer, policy):
    assert (writer.head, policy.head) == ("fast", "flow")
    chunks = writer.sample(observe(), 32)
    actions = np.stack([chunk.actions_TA for chunk in chunks])
    assert actions.shape == (32, 5, 7)
    assert (np.abs(actions[..., :6]) <= untrained.STEP).all()
    assert set(np.unique(actions[..., 6])) == {0.0, 1.0}
    assert all(0 < chunk.num_tokens <= 70 for chunk in chunks)
    assert [chunk.num_tokens for chunk in policy.sample(observe(), 2)] == [0, 0]


def test_the_greedy_tokens_do_not_depend_on_the_seed(saved, embodiment, writer):
    chunk = writer.infer(observe()).actions_TA
    other = Policy.load(saved, embodiment, "cpu", seed=7, head="fast")
    np.testing.assert_array_equal(other.infer(observe()).actions_TA, chunk)
    first, second = writer.sample(observe(), 2)
    assert not np.array_equal(first.actions_TA, second.actions_TA)
    cold = writer.sample(observe(), 2, temperature=0.0)
    assert all(np.array_equal(c.actions_TA, chunk) for c in cold)


def test_sampled_tokens_follow_the_seed_and_not_the_number_of_samples(saved, embodiment):
    first, second = (Policy.load(saved, embodiment, "cpu", seed=1, head="fast") for _ in range(2))
    first.warm_up()
    together = [chunk.actions_TA for chunk in first.sample(observe(), 3)]
    alone = [second.sample(observe(), 1)[0].actions_TA for _ in range(3)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("k", "temperature", "message"),
    [
        (0, 1.0, "k: expected at least 1, got 0"),
        (1, -1.0, "temperature: expected >= 0 and finite, got -1"),
        (1, float("nan"), "temperature: expected >= 0 and finite, got nan"),
        (1, float("inf"), "temperature: expected >= 0 and finite, got inf"),
    ],
)
def test_samples_that_make_no_sense_are_refused(writer, k, temperature, message):
    with pytest.raises(ValueError, match=message):
        writer.sample(observe(), k, temperature)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(saved, embodiment, bad, temperature):
    policy = Policy.load(saved, embodiment, "cpu", seed=0, head="fast")
    with torch.no_grad():
        policy._model.vlm.model.language_model.norm.weight[3] = bad
    with pytest.raises(RuntimeError, match="model output: expected finite logits"):
        policy.sample(observe(), 2, temperature)


def test_legacy_scales_the_gripper_like_everything_else(saved, embodiment):
    """As the reference does for NORA: closed comes out as one half."""
    legacy = Policy.load(saved, embodiment, "cpu", seed=0, head="fast", is_legacy=True)
    ours = Policy.load(saved, embodiment, "cpu", seed=0, head="fast")
    old = np.stack([chunk.actions_TA for chunk in legacy.sample(observe(), 16)])
    new = np.stack([chunk.actions_TA for chunk in ours.sample(observe(), 16)])
    raw_gripper = 2 * old[..., 6] - 1  # q01 = 0, q99 = 1
    np.testing.assert_array_equal(new[..., 6], raw_gripper > 0.5)
    assert (old[..., 6] < 0.5).any()
    np.testing.assert_allclose(
        np.clip(old[..., :6], -untrained.STEP, untrained.STEP), new[..., :6]
    )
    assert not np.array_equal(old[..., :6], new[..., :6])


# refusals


def change(embodiment, **changes):
    return dataclasses.replace(
        embodiment, action=dataclasses.replace(embodiment.action, **changes)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame": "world"}, "action.frame: expected base_link, got world"),
        ({"step_period_s": 0.1}, r"action.step_period_s: expected 0\.2, got 0\.1"),
        ({"statistics_key": "other"}, "action.statistics_key: expected sim_widowx, got other"),
        ({"frame": "world", "step_period_s": 0.1}, "action.frame: .*; action.step_period_s: "),
    ],
)
def test_a_robot_that_differs_in_what_was_taught_is_refused(saved, embodiment, changes, message):
    with pytest.raises(ValueError, match=message):
        Policy.load(saved, change(embodiment, **changes), "cpu")


def test_other_cameras_are_refused(saved, embodiment):
    side = dataclasses.replace(embodiment.cameras[0], name="side")
    other = dataclasses.replace(embodiment, cameras=(*embodiment.cameras, side))
    expected = r"cameras: expected \['primary', 'wrist'\], got \['primary', 'wrist', 'side'\]"
    with pytest.raises(ValueError, match=expected):
        Policy.load(saved, other, "cpu")


def test_what_was_not_taught_may_differ(saved, embodiment):
    camera = dataclasses.replace(embodiment.cameras[0], topic="elsewhere", rotation_deg=180)
    cameras = (camera, *embodiment.cameras[1:])
    other = dataclasses.replace(change(embodiment, execute_steps=1), cameras=cameras)
    Policy.load(saved, other, "cpu")


def test_without_embodiment_the_statistics_must_be_there(folder, embodiment):
    (folder / checkpoint.EMBODIMENT).unlink()
    Policy.load(folder, embodiment, "cpu")
    with pytest.raises(ValueError, match=r"expected statistics 'other', available: \['sim_wid"):
        Policy.load(folder, change(embodiment, statistics_key="other"), "cpu")


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.TOKENIZER, checkpoint.STATISTICS])
def test_a_missing_file_is_named(folder, embodiment, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"expected {name}, available: "):
        Policy.load(folder, embodiment, "cpu")


def test_a_wrong_action_size_is_named(folder, embodiment):
    path = folder / checkpoint.STATISTICS
    short = {"q01": [-1] * 6, "q99": [1] * 6, "mask": [True] * 6}
    path.write_text(json.dumps({"sim_widowx": {"action": short}}))
    with pytest.raises(ValueError, match=r"norm_stats\.json: sim_widowx: expected 7, got 6"):
        Policy.load(folder, embodiment, "cpu")


def test_a_head_that_the_network_lacks_is_refused(folder, embodiment):
    with pytest.raises(ValueError, match=r"NORA-1\.5, flow or fast, got 'diffusion'"):
        Policy.load(folder, embodiment, "cpu", head="diffusion")
    path = folder / checkpoint.CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "token_head": None}))
    with pytest.raises(ValueError, match=r"NORA-1\.5, flow, got 'fast'"):
        Policy.load(folder, change(embodiment, head="fast"), "cpu")


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_the_token_head_needs_its_fast_files(folder, embodiment, name):
    (folder / checkpoint.FAST / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"fast/{name}"):
        Policy.load(folder, embodiment, "cpu", head="fast")
    Policy.load(folder, embodiment, "cpu", head="flow")


def test_an_unknown_device_is_refused(saved, embodiment):
    with pytest.raises(ValueError, match="device: expected auto, cpu or cuda, got 'tpu'"):
        Policy.load(saved, embodiment, "tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_cuda_without_a_gpu_is_an_error_and_auto_is_not(saved, embodiment):
    with pytest.raises(ValueError, match="device: expected a CUDA GPU, got none"):
        Policy.load(saved, embodiment, "cuda")
    assert Policy.load(saved, embodiment, "auto").device.type == "cpu"
