"""Fine-tuning: batches, masks, exact continuation, parts and processes, and that it learns."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import write_checkpoint, write_dataset

from nora_core.types import Observation
from nora_policy.checkpoints import checkpoint
from nora_policy.models.expert import Prefix
from nora_policy.policy import Policy
from nora_policy.preprocess import with_target
from nora_training.data.dataset import Dataset
from nora_training.data.samples import Samples
from nora_training.evaluation import closed_loop
from nora_training.sft import cli, memory
from nora_training.sft.augment import Augment
from nora_training.sft.batches import Batches, Share
from nora_training.sft.losses import Learner
from nora_training.sft.run import Run, finished
from nora_training.sft.settings import Settings
from nora_training.sft.trainer import Stopped
from nora_training.train import log

ALL = ("both", "flow", "fast")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    write_dataset(folder / "data", val_fraction=0.5)
    write_checkpoint(folder / "init")
    return folder


def settings(folder: Path, name: str, **changes) -> Settings:
    values = {
        "steps": 6,
        "batch_size": 4,
        "lr": 1e-3,
        "warmup": 2,
        "log_every": 1,
        "save_every": 2,
        "val_every": 0,
        "val_samples": 4,
        "num_threads": 1,
    }
    return Settings(folder / "data", folder / "init", folder / name, **(values | changes))


def curve(out: Path) -> list[dict]:
    rows = [row for row in log.read(out) if row["kind"] == "train"]
    left_out = ("kind", "samples_per_s")
    return [{k: v for k, v in row.items() if k not in left_out} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / checkpoint.WEIGHTS)


def never() -> bool:
    return False


# batches


def test_a_batch_is_what_samples_and_preprocessor_make_one_by_one(folder):
    run = Run(settings(folder, "batch"), never)
    source, data = run._source, run._data
    samples = Samples(data, run._entries, run._statistics, 5)
    assert len(samples) == len(source)
    indices = np.random.default_rng(0).permutation(len(source))[:9]
    inputs, labels = source.inputs(indices, has_target=True)
    actions, is_real = source.chunks(indices)
    pixels = []
    for row, index in enumerate(indices.tolist()):
        sample = samples[index]
        np.testing.assert_array_equal(actions[row], sample.actions_TA)
        np.testing.assert_array_equal(is_real[row], sample.is_real_T)
        one, learned = run._preprocessor(sample.observation), []
        if sample.is_real_T.all():
            learned = run._preprocessor.target(run._fast.encode(sample.actions_TA))
            one = with_target(one, learned)[0]
        text, is_text = one.input_ids_BL[0], inputs.attention_mask_BL[row].bool()
        assert torch.equal(inputs.input_ids_BL[row, : len(text)], text)
        assert is_text.tolist() == (np.arange(len(is_text)) < len(text)).tolist()
        assert labels[row, len(text) - len(learned) : len(text)].tolist() == learned
        assert (labels[row] >= 0).sum() == len(learned)
        pixels.append(one.pixel_values_PC)
    assert 0 < is_real.all(axis=1).sum() < len(indices)
    assert torch.equal(inputs.pixel_values_PC, torch.cat(pixels))
    assert len(inputs.image_grid_N3) == len(indices) * len(data.cameras)


def test_every_epoch_sees_every_sample_once_and_processes_share_the_batches(folder):
    run = Run(settings(folder, "epochs"), never)
    count = len(run._source)
    batches = Batches(run._source, 4, 1, 0, Share())
    stream = np.concatenate([batches.indices(step) for step in range(count)])
    epochs = stream[: count * 4].reshape(4, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    whole = batches.at(3)[0]
    parts = [p for rank in (0, 1) for p in Batches(run._source, 4, 2, 0, Share(rank, 2)).at(3)]
    assert len(parts) == 4
    for name in ("noise_FTA", "tau_F", "actions_BTA", "keyframe_B3"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
    assert {(p.num_tokens, p.num_steps) for p in parts} == {(whole.num_tokens, whole.num_steps)}


def test_changed_images_move_and_change_their_light_alone():
    augment, size = Augment(shift=0.1, jitter=0.2), 20
    images = np.random.default_rng(1).integers(0, 256, (30, size, size, 3), np.uint8)
    before = images.copy()
    changes = augment.draw(np.random.default_rng(0), 30, size)
    found = changes(images)
    np.testing.assert_array_equal(images, before)
    assert (found.shape, found.dtype) == (images.shape, np.uint8)
    assert len(np.unique(changes.offset_F2, axis=0)) > 10
    assert changes.offset_F2.max() == 4
    moved = dataclasses.replace(changes, jitter_F2=np.zeros((30, 2)))(images)
    for image, source, (down, right) in zip(moved, images, changes.offset_F2 - 2, strict=True):
        rows, columns = np.arange(size) + down, np.arange(size) + right
        expected = source[rows.clip(0, size - 1)][:, columns.clip(0, size - 1)]
        np.testing.assert_array_equal(image, expected)
    # Light: a straight line through all levels, up to rounding and the ends of the scale.
    gain, offset = 1 + changes.jitter_F2[:, 0], 255 * changes.jitter_F2[:, 1]
    line = (moved - 127.5) * gain[:, None, None, None] + 127.5 + offset[:, None, None, None]
    assert np.abs(found - line.clip(0, 255)).max() <= 0.5 + 1e-9
    assert found.std() != moved.std()


def test_the_changes_of_a_batch_follow_from_seed_and_step_alone(folder):
    run = Run(settings(folder, "changes"), never)
    make = functools.partial(Batches, run._source, 4, augment=Augment(0.1, 0.1))
    whole = make(1, 0, Share()).at(3)[0].inputs
    plain = Batches(run._source, 4, 1, 0, Share()).at(3)[0].inputs
    parts = [p.inputs for rank in (0, 1) for p in make(2, 0, Share(rank, 2)).at(3)]
    patches = torch.cat([part.pixel_values_PC for part in parts])
    assert torch.equal(patches, whole.pixel_values_PC)
    assert not torch.equal(plain.pixel_values_PC, whole.pixel_values_PC)
    assert not torch.equal(
        make(1, 0, Share()).at(4)[0].inputs.pixel_values_PC, whole.pixel_values_PC
    )


PROTOCOL = """
embodiment: {robot}
checkpoints: [{{name: mine, folder: nowhere, head: flow}}]
tasks: ["put the {{object}} on the plate"]
seeds: {{start: 100000, count: 2}}
seconds: 0.6
video: none
"""


def test_checkpoints_are_tried_out_in_simulation_on_the_way(folder):
    protocol = folder / "short.yaml"
    protocol.write_text(PROTOCOL.format(robot="sim_widowx"))
    options = {"steps": 4, "export_every": 2, "trials": str(protocol)}
    metrics = Run(settings(folder, "tried", **options), never).train()
    shares = {"mine_normal_success": 0.0, "mine_normal_distractor": 0.0}
    assert metrics.items() >= shares.items()
    rows = [row for row in log.read(folder / "tried") if row["kind"] == "trials"]
    assert rows == [{"step": step, "kind": "trials", **shares} for step in (2, 4)]
    for name in ("checkpoints/step_2", "checkpoint"):
        lines = (folder / f"tried/{name}_trials/trials.jsonl").read_text().splitlines()
        assert [json.loads(line)["result"]["chunks"] for line in lines] == [3, 3]
    protocol.write_text(PROTOCOL.format(robot="widowx"))
    with pytest.raises(ValueError, match="expected a simulated robot, got widowx"):
        Run(settings(folder, "real", **options), never)


def test_trials_interrupted_after_training_are_finished_once(folder, monkeypatch):
    protocol = folder / "last.yaml"
    protocol.write_text(PROTOCOL.format(robot="sim_widowx"))
    options = settings(folder, "cut", steps=3, trials=str(protocol))
    calls = []

    def run(*arguments) -> dict[str, float]:
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"success": 0.5}

    monkeypatch.setattr(closed_loop, "run", run)
    with pytest.raises(KeyboardInterrupt):
        Run(options, never).train()
    monkeypatch.setenv("RANK", "1")
    assert finished(options)["step"] == 3
    assert len(calls) == 1
    monkeypatch.setenv("RANK", "0")
    for _ in range(2):
        assert finished(options)["step"] == 3
    assert calls == [(str(protocol), folder / "cut/checkpoint")] * 2
    assert log.read(folder / "cut")[-1] == {"step": 3, "kind": "trials", "success": 0.5}
    assert len(curve(folder / "cut")) == 3


# continuing


def test_a_stopped_run_continues_as_if_it_had_not_been(folder):
    options = {"ema": 0.9, "keyframe_weight": 0.3, "optimizer": "muon", "save_every": 4}
    options |= {"shift": 0.1, "jitter": 0.1}
    Run(settings(folder, "whole", **options), never).train()
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        Run(settings(folder, "parts", **options), lambda: next(asked)).train()
    Run(settings(folder, "parts", **options, resume=True), never).train()
    assert curve(folder / "parts") == curve(folder / "whole")
    assert len(curve(folder / "whole")) == 6
    for name, value in weights(folder / "whole").items():
        assert torch.equal(value, weights(folder / "parts")[name]), name


def command(options: Settings) -> list[str]:
    words = ["-m", "nora_training.sft.cli"]
    for name, value in options.to_json().items():
        if isinstance(value, bool):
            words += [f"--{'' if value else 'no-'}{name.replace('_', '-')}"]
        elif value is not None and name != "outcomes":
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def test_a_killed_run_continues_as_if_it_had_not_been(folder):
    options = {"steps": 24, "ema": 0.9, "save_every": 1, "resume": True, "log_every": 2}
    Run(settings(folder, "undisturbed", **options), never).train()
    killed, out = settings(folder, "killed", **options), folder / "killed"
    with subprocess.Popen([sys.executable, *command(killed)]) as process:
        while len(log.read(out)) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(np.random.default_rng().uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
    assert not (out / "checkpoint").exists()
    # And what was saved last is torn.
    newest = sorted((out / "state").glob("step_*"))[-1]
    with (newest / "optimizer.pt").open("r+b") as file:
        file.truncate(1000)
    Run(killed, never).train()
    assert curve(out) == curve(folder / "undisturbed")
    for name, value in weights(folder / "undisturbed").items():
        assert torch.equal(value, weights(out)[name]), name


def test_a_finished_run_says_so_and_another_is_refused(folder, monkeypatch, capsys):
    options = settings(folder, "done", steps=1, warmup=0)
    for expected in ("trained in", "finished"):
        assert nora_sft(monkeypatch, options) == 0
        assert expected in capsys.readouterr().out
    assert nora_sft(monkeypatch, dataclasses.replace(options, lr=0.5)) == 1
    assert "error: lr: expected 0.001 as at the start" in capsys.readouterr().err
    card = json.loads((folder / "done/checkpoint/card.json").read_text())
    assert card["bags"]["number"] == len(card["bags"]["sha256"]) > 1


@pytest.mark.parametrize(
    ("option", "file"),
    [
        ("dataset", "index.json"),
        ("init", "model.safetensors"),
        ("init", "fast/tokenizer.json"),
        ("fast", "tokenizer.json"),
    ],
)
def test_a_run_whose_inputs_were_replaced_is_refused(folder, tmp_path, option, file):
    shutil.copytree(folder / "data", tmp_path / "data")
    shutil.copytree(folder / "init", tmp_path / "init")
    shutil.copytree(folder / "init/fast", tmp_path / "fast")
    options = settings(tmp_path, "run", steps=3, fast=tmp_path / "fast", resume=True)
    with pytest.raises(Stopped):
        Run(options, lambda: True).train()
    assert finished(options) is None
    path = getattr(options, option) / file
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(ValueError, match=rf"^{option}: .*\['{file}'\] .* restore them, or start"):
        finished(options)
    path.write_bytes(content)
    Run(options, never).train()
    shutil.rmtree(getattr(options, option))
    assert finished(options)["step"] == 3


def test_a_run_of_an_older_version_goes_on_and_says_what_is_not_known(folder, caplog):
    options = settings(folder, "older", steps=3, resume=True)
    with pytest.raises(Stopped):
        Run(options, lambda: True).train()
    path = folder / "older/settings.json"
    path.write_text(json.dumps(options.to_json()))
    assert finished(options) is None
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: from an older version: inputs are not compared by content"
    ]
    Run(options, never).train()
    assert json.loads(path.read_text())["inputs"].keys() == {"dataset", "init"}


def test_a_kill_while_a_file_is_written_leaves_the_old_one(folder, monkeypatch):
    options = settings(folder, "torn", steps=3)
    with pytest.raises(Stopped):
        Run(options, lambda: True).train()
    again = dataclasses.replace(options, resume=True)
    path, card = folder / "torn/settings.json", folder / "torn/checkpoint/card.json"
    before, write = path.read_text(), Path.write_text

    def cut(path: Path, text: str, **options: str) -> int:
        if path.name.lstrip(".") not in torn:
            return write(path, text, **options)
        write(path, text[:40], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut)
        torn = {"settings.json"}
        with pytest.raises(KeyboardInterrupt):
            Run(again, never)
        assert path.read_text() == before
        torn = {"card.json"}
        with pytest.raises(KeyboardInterrupt):
            Run(again, never).train()
    assert finished(again) is None
    Run(again, never).train()
    assert finished(again)["step"] == 3
    assert not list(card.parent.glob(".*"))
    # As an older version would have left them.
    for file in (card, path):
        file.write_text(file.read_text()[:40])
        with pytest.raises(ValueError, match=f"{file}: not valid JSON: .*; remove it and repeat"):
            finished(again)


def test_a_run_that_saved_nothing_starts_over_with_other_options(folder):
    Run(settings(folder, "unborn", batch_size=8), never)
    options = settings(folder, "unborn", steps=3)
    assert finished(options) is None
    Run(options, never).train()
    assert finished(options)["settings"]["batch_size"] == 4


def test_a_warm_up_as_long_as_the_training_is_refused(folder):
    with pytest.raises(ValueError, match=r"^warmup: .* 500 of --steps, got 1000: .* --warmup$"):
        Settings(folder / "data", folder / "init", folder / "long", steps=500)


def nora_sft(monkeypatch, options: Settings) -> int:
    monkeypatch.setattr(sys, "argv", ["nora-sft", *command(options)[2:]])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        cli.main()
    except SystemExit as end:
        return end.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


# parts, processes, memory


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"checkpointing": True}], ids=str)
def test_saving_memory_changes_nothing(folder, changes):
    options = {"keyframe_weight": 0.3, "steps": 3, "shift": 0.1, "jitter": 0.1}
    if not (folder / "plain/checkpoint").is_dir():
        Run(settings(folder, "plain", **options), never).train()
    name = next(iter(changes))
    Run(settings(folder, name, **options, **changes), never).train()
    compare(folder / "plain", folder / name)


def compare(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=0, atol=tolerance, msg=name)
    for row, same in zip(curve(one), curve(other), strict=True):
        assert row == pytest.approx(same, rel=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one(folder, parallel):
    # Also between two steps, averaged weights are validated and forgotten.
    options = {"keyframe_weight": 0.3, "steps": 3, "val_every": 2, "ema": 0.5, "device": "cpu"}
    name = f"one_{parallel}"
    Run(settings(folder, name, **options), never).train()
    both = settings(folder, parallel, parallel=parallel, **options)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([sys.executable, *launch, *command(both)], check=True, timeout=100)
    compare(folder / name, folder / parallel)
    found = [log.read(folder / each)[-1] for each in (name, parallel)]
    assert found[0]["kind"] == "val"
    del found[0]["kind"], found[1]["kind"]
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-6)


def test_processes_that_find_different_states_stop(folder):
    """Two machines without a disk in common: the second has no state."""
    options = settings(folder, "machine0", steps=3, device="cpu")
    with pytest.raises(Stopped):
        Run(options, lambda: True).train()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    try:
        for rank in ("0", "1"):
            out = folder / f"machine{rank}"
            words = command(dataclasses.replace(options, out=out, resume=True))
            environment = os.environ | world | {"RANK": rank, "LOCAL_RANK": rank}
            started = [sys.executable, *words]
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(started, env=environment, stderr=pipe, text=True))
        for process in processes:
            _, errors = process.communicate(timeout=100)
            assert (
                "expected the same state in every process, got those after steps [1, 0]" in errors
            )
            assert process.returncode == 1
    finally:
        for process in processes:
            process.kill()


def test_the_estimate_counts_the_numbers_of_the_precision_in_use(folder):
    options = settings(folder, "memory")
    model = Run(options, never)._learner.model
    each = {
        is_bf16: [
            memory.estimate_bytes(Learner(model, "both", is_bf16=is_bf16), s, 100, 1)
            for s in (options, dataclasses.replace(options, batch_size=8))
        ]
        for is_bf16 in (False, True)
    }
    activations = {is_bf16: more - less for is_bf16, (less, more) in each.items()}
    assert activations[False] == 2 * activations[True] > 0


def test_validation_without_samples_is_skipped_and_says_so(tmp_path, caplog):
    """Episodes of 3 steps have no chunk of 5, which FAST tokens need."""
    data = Dataset.load(write_uneven(tmp_path / "data"))
    write_checkpoint(tmp_path / "init")
    (entry,) = (e for e in data.entries if data.split(e) == "val")
    assert entry.num_steps == 3
    run = Run(settings(tmp_path, "run", heads="fast", steps=3), never)
    assert "validation: skipped: none of its 1 episodes has a whole chunk of 5" in caplog.text
    assert run.train() == {}


def write_uneven(root: Path) -> Path:
    """Of two episodes, the one to validate is too short for a chunk."""
    for seed in range(100):
        data = write_dataset(root, lengths=(12, 3), val_fraction=0.5, seed=seed)
        if [data.split(entry) for entry in data.entries] == ["train", "val"]:
            return root
        shutil.rmtree(root)
    raise AssertionError("no seed splits the episodes so")


def test_adapters_train_what_they_say_and_are_merged(folder):
    run = Run(settings(folder, "lora", lora_rank=4, lr=1e-2, steps=3), never)
    learner = run._learner
    trained = {n for n, p in learner.named_parameters() if p.requires_grad}
    inside = {n for n in trained if n.startswith("model.vlm.")}
    assert inside
    assert all("lora_" in name or "trainable_tokens" in name for name in inside)
    expert = {n for n, _ in learner.named_parameters() if not n.startswith("model.vlm.")}
    assert expert <= trained
    run.train()
    before = load_file(folder / "init" / checkpoint.WEIGHTS)
    after = weights(folder / "lora")
    assert before.keys() == after.keys()
    config = learner.model.config
    first = config.action_token_min
    rows = slice(first, first + config.num_action_tokens)
    for name, value in after.items():
        changed = value - before[name]
        if "embed_tokens" in name:
            assert not changed[:first].any()
            assert not changed[rows.stop :].any()
            assert changed[rows].any()
            continue
        is_adapted = "language_model.layers" in name and "_proj.weight" in name
        is_expert = not name.startswith("vlm.")
        assert bool(changed.any()) == (is_adapted or is_expert), name
    indices = np.arange(4)
    inputs, labels = run._source.inputs(indices, has_target=True)
    exported = checkpoint.load(folder / "lora/checkpoint", torch.device("cpu"), torch.float32)
    with torch.no_grad():
        mine, other = (m.encode(inputs)[1] for m in (learner.model, exported))
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)
        loss = [m.token_loss(inputs, labels) for m in (learner.model, exported)]
    torch.testing.assert_close(*loss, rtol=1e-4, atol=1e-4)


# masks


def test_padding_and_what_follows_an_episode_change_nothing(folder):
    run = Run(settings(folder, "masks"), never)
    learner, source = run._learner, run._source
    batch = Batches(source, 8, 1, 0, Share()).at(2)[0]
    assert not batch.is_real_BT.all()
    with torch.no_grad():
        before = learner(batch)
        ids = batch.inputs.input_ids_BL
        padding = batch.inputs.attention_mask_BL == 0
        assert padding.any()
        other = dataclasses.replace(batch.inputs, input_ids_BL=ids + 7 * padding)
        padded = learner(dataclasses.replace(batch, inputs=other))
        prefix, _ = learner.model.encode(batch.inputs)
        visible = Prefix(prefix.keys, prefix.values, batch.expert_mask_BL)
        tau = batch.tau_F[:, None, None]
        mixed = tau * batch.noise_FTA + (1 - tau) * batch.actions_BTA
        velocity = learner.model.velocity(mixed, batch.tau_F, visible)
    error = (velocity - (batch.noise_FTA - batch.actions_BTA))[batch.is_real_BT]
    torch.testing.assert_close(before.flow, error.square().mean())
    assert torch.equal(padded.cross_entropy, before.cross_entropy)
    assert torch.equal(padded.flow, before.flow)


def test_the_expert_is_blind_to_tokens(folder):
    run = Run(settings(folder, "blind"), never)
    learner, source = run._learner, run._source
    batch = Batches(source, 8, 1, 0, Share()).at(2)[0]
    is_token = batch.labels_BL >= run._config.action_token_min
    assert is_token.any()
    ids = batch.inputs.input_ids_BL
    other = torch.where(is_token, run._config.action_token_min + 5, ids)
    with torch.no_grad():
        before = learner(batch)
        inputs = dataclasses.replace(batch.inputs, input_ids_BL=other)
        after = learner(dataclasses.replace(batch, inputs=inputs))
    torch.testing.assert_close(after.flow, before.flow, rtol=1e-6, atol=0)
    assert after.cross_entropy != before.cross_entropy


# learning


@pytest.mark.parametrize("heads", ALL)
def test_four_samples_are_learned_by_heart_and_the_policy_says_them(tmp_path, heads):
    data = write_dataset(tmp_path / "data", lengths=(5,) * 4, val_fraction=0.0, num_observed=1)
    fast = nora_dataset_fast(tmp_path / "data", tmp_path / "fast")
    write_checkpoint(tmp_path / "init")
    options = {"steps": 200, "batch_size": 4, "warmup": 5, "lr": 1e-2, "save_every": 1000}
    options |= {"optimizer": "muon", "muon_lr": 0.02, "fast": fast, "heads": heads}
    options |= {"flow_draws": 16}
    Run(settings(tmp_path, "run", **options), never).train()
    head = "fast" if heads == "fast" else "flow"
    policy = Policy.load(tmp_path / "run/checkpoint", data.embodiment, "cpu", seed=0, head=head)
    errors = []
    for entry in data.entries:
        images = tuple(data.images(entry, camera.name)[0] for camera in data.cameras)
        chunk = policy.infer(Observation(images, entry.instruction, 0))
        errors.append(np.abs(chunk.actions_TA - data.steps(entry).actions_NA)[:, :6].max())
    # Chance is 0.01: the widest range of an action is about that.
    assert np.median(errors) < 2e-3, errors


def nora_dataset_fast(data: Path, out: Path) -> Path:
    words = ["fast", str(data), "--out", str(out), "--vocab-size", "300"]
    run = "import sys; from nora_training.dataset_command import main; main()"
    done = subprocess.run([sys.executable, "-c", run, *words], capture_output=True, text=True)
    assert "tokens from" in done.stdout, done.stderr
    return out
