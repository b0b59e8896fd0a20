"""The networks on a CUDA GPU: the numbers of the CPU, and no waiting inside the flow."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from nora_core.embodiment import Embodiment
from nora_core.types import Observation
from nora_policy.checkpoints import checkpoint, untrained
from nora_policy.models.grammar import DecodingState, Grammar
from nora_policy.models.inputs import ModelInputs
from nora_policy.policy import Policy

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/nora15_tiny"
EMBODIMENT = ROOT / "src/nora_bringup/config/embodiments/sim_widowx.yaml"


def golden() -> tuple[ModelInputs, dict[str, torch.Tensor]]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    ids = tensors["input_ids"]
    pixels, grid = tensors["pixel_values"], tensors["image_grid_thw"]
    return ModelInputs(ids, torch.ones_like(ids), pixels, grid), tensors


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@torch.no_grad()
def test_actions_agree_with_the_original(dtype, tolerance):
    model = checkpoint.load(GOLDEN, torch.device("cuda"), dtype)
    inputs, expected = golden()
    prefix, _ = model.encode(inputs)
    actions = model.sample(prefix, expected["noise"].cuda(), 10).cpu()
    error = (actions - expected["out:actions_10_steps"]).abs().max()
    assert error / expected["out:actions_10_steps"].abs().max() < tolerance


@torch.no_grad()
def test_flow_steps_never_wait_for_the_gpu():
    model = checkpoint.load(GOLDEN, torch.device("cuda"), torch.float32)
    inputs, expected = golden()
    prefix, _ = model.encode(inputs)
    noise = expected["noise"].cuda()
    model.sample(prefix, noise)
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.sample(prefix, noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_policy_answers_in_bfloat16(tmp_path):
    untrained.write_tiny(tmp_path, EMBODIMENT)
    embodiment = Embodiment.load(EMBODIMENT)
    rgb = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    observation = Observation((rgb,), "pick up the red cube", 0)
    chunks = {}
    for device in ("cpu", "cuda"):
        policy = Policy.load(tmp_path, embodiment, device, seed=0)
        policy.warm_up()
        assert policy.device.type == device
        chunks[device] = policy.infer(observation).actions_TA
    span = np.array([*(2 * untrained.STEP), 1.0])
    assert np.abs((chunks["cpu"] - chunks["cuda"]) / span).max() < 0.1


@torch.no_grad()
def test_the_gpu_writes_the_tokens_of_the_cpu(tmp_path):
    untrained.write_tiny(tmp_path, EMBODIMENT)
    config = checkpoint.load_config(tmp_path)
    grammar = Grammar(checkpoint.load_fast(tmp_path, config), config.horizon, config.action_dim)
    inputs, _ = golden()
    ids = config.token_ids
    marks = {506: ids.vision_start, 507: ids.vision_end, 508: ids.image}
    tokens = [marks.get(int(token), int(token) % 200) for token in inputs.input_ids_BL[0]]
    inputs = dataclasses.replace(inputs, input_ids_BL=torch.tensor([tokens]))
    texts = []
    for device in ("cpu", "cuda"):
        model = checkpoint.load(tmp_path, torch.device(device), torch.float32)
        greedy, sampled = [DecodingState(grammar)], [DecodingState(grammar) for _ in range(4)]
        prefix, hidden = model.encode(inputs)
        model.generate(prefix, hidden, greedy)
        model.generate(
            prefix, hidden, sampled, [torch.Generator().manual_seed(i) for i in range(4)]
        )
        texts.append([state.ids for state in (*greedy, *sampled)])
    assert texts[0] == texts[1]
