"""Fine-tuning: batches, masks, exact continuation, parts and processes, and that it learns."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import write_checkpoint, write_dataset

from nora_core.types import Observation, Outcome
from nora_policy.checkpoints import checkpoint
from nora_policy.models.expert import Prefix
from nora_policy.policy import Policy
from nora_policy.preprocess import with_target
from nora_training.data.dataset import Dataset
from nora_training.sft import closed_loop, export
from nora_training.sft.augment import Augment
from nora_training.sft.batches import Batch, Batches, Share
from nora_training.sft.command import main
from nora_training.sft.examples import Examples
from nora_training.sft.losses import Learner
from nora_training.sft.material import Material
from nora_training.sft.run import Run, finished, make_learner
from nora_training.sft.settings import Settings
from nora_training.train import log
from nora_training.train.loop import Stopped
from nora_training.train.parallel import Processes

ALL_OUTCOMES = tuple(Outcome)


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
    paths = {"dataset": folder / "data", "init": folder / "init", "out": folder / name}
    return Settings(**paths, **(values | changes))


def curve(out: Path) -> list[dict]:
    rows = [row for row in log.read(out) if row["kind"] == "train"]
    left_out = ("kind", "samples_per_s")
    return [{k: v for k, v in row.items() if k not in left_out} for row in rows]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "checkpoint" / checkpoint.WEIGHTS)


def never() -> bool:
    return False


def train(options: Settings, is_stopped=never) -> dict[str, float]:
    run = Run(options, is_stopped)
    run.begin()
    return run.train()


@pytest.fixture(scope="module")
def material(folder) -> Material:
    return Material.read(settings(folder, "material"))


# batches


def test_a_batch_is_what_samples_and_preprocessor_make_one_by_one(material):
    examples, samples, data = material.training, material.training.samples, material.dataset
    indices = np.random.default_rng(0).permutation(len(examples))[:9]
    inputs, labels = examples.inputs(indices, has_target=True)
    pixels = []
    for row, index in enumerate(indices.tolist()):
        sample = samples[index]
        one, learned = material.preprocessor(sample.observation), []
        if sample.is_real_T.all():
            learned = material.preprocessor.target(material.fast.encode(sample.actions_TA))
            one = with_target(one, learned)[0]
        text, is_text = one.input_ids_BL[0], inputs.attention_mask_BL[row].bool()
        assert torch.equal(inputs.input_ids_BL[row, : len(text)], text)
        assert is_text.tolist() == (np.arange(len(is_text)) < len(text)).tolist()
        assert labels[row, len(text) - len(learned) : len(text)].tolist() == learned
        assert (labels[row] >= 0).sum() == len(learned)
        pixels.append(one.pixel_values_PC)
    assert 0 < samples.chunks(indices)[1].all(axis=1).sum() < len(indices)
    assert torch.equal(inputs.pixel_values_PC, torch.cat(pixels))
    assert len(inputs.image_grid_N3) == len(indices) * len(data.cameras)


def test_every_epoch_sees_every_sample_once_and_processes_share_the_batches(material):
    count = len(material.training)
    batches = Batches(material.training, batch_size=4)
    stream = np.concatenate([batches.indices(step) for step in range(count)])
    epochs = stream[: count * 4].reshape(4, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    whole = batches.at(3)[0]
    parts = parts_of(material.training)
    assert len(parts) == 4
    for name in ("noise_FTA", "tau_F", "actions_BTA"):
        found = [getattr(part.targets, name) for part in parts]
        assert torch.equal(torch.cat(found), getattr(whole.targets, name))
    assert torch.equal(torch.cat([part.keyframe_B3 for part in parts]), whole.keyframe_B3)
    counts = {(p.targets.num_tokens, p.targets.num_steps) for p in parts}
    assert counts == {(whole.targets.num_tokens, whole.targets.num_steps)}


def parts_of(examples: Examples, augment: Augment | None = None) -> list[Batch]:
    """Step 3 in two processes of two parts each."""
    options = {"batch_size": 4, "accumulate": 2, "augment": augment}
    return [
        part
        for rank in (0, 1)
        for part in Batches(examples, share=Share(rank, 2), **options).at(3)
    ]


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


def test_the_changes_of_a_batch_follow_from_seed_and_step_alone(material):
    augment = Augment(0.1, 0.1)

    def pixels(step: int, augment: Augment | None) -> torch.Tensor:
        batches = Batches(material.training, batch_size=4, augment=augment)
        return batches.at(step)[0].targets.inputs.pixel_values_PC

    whole = pixels(3, augment)
    parts = [part.targets.inputs.pixel_values_PC for part in parts_of(material.training, augment)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(pixels(3, None), whole)
    assert not torch.equal(pixels(4, augment), whole)


PROTOCOL = """
embodiment: {robot}
checkpoints:
  - {{name: mine, folder: trained, head: flow}}
  - {{name: other, folder: baseline, head: flow}}
tasks: ["put the {{object}} on the plate"]
seeds: {{start: 100000, count: 1}}
seconds: 0.6
video: none
"""


def test_checkpoints_are_tried_out_in_simulation_on_the_way(folder):
    protocol = folder / "short.yaml"
    protocol.write_text(PROTOCOL.format(robot="sim_widowx"))
    options = {"steps": 4, "export_every": 2, "trials": str(protocol)}
    metrics = train(settings(folder, "tried", **options))
    shares = {"mine_normal_success": 0.0, "mine_normal_distractor": 0.0}
    assert metrics.items() >= shares.items()
    rows = [row for row in log.read(folder / "tried") if row["kind"] == "trials"]
    assert rows == [{"step": step, "kind": "trials", **shares} for step in (2, 4)]
    for name in ("checkpoints/step_2", "checkpoint"):
        lines = (folder / f"tried/{name}_trials/trials.jsonl").read_text().splitlines()
        assert [json.loads(line)["result"]["chunks"] for line in lines] == [3]
        card = json.loads((folder / "tried" / name / "card.json").read_text())
        assert card["trials"]["short"]["command"] == f"nora-sft --trials {protocol}"
        (found,) = card["trials"]["short"]["results"]
        assert (found["head"], found["condition"]) == ("flow", "normal")
        assert (found["successes"], found["trials"]) == (0, 1)
        assert found["wilson_95"] == pytest.approx([0.0, 0.7935], abs=1e-4)
    assert "wilson_95" not in json.loads((folder / "init/card.json").read_text())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sim_widowx", "widowx", "is for widowx, which is not simulated"),
        ("flow}\n  - {name: other", "slow}\n  - {name: other", "head: "),
        ("folder: trained, head: flow", "folder: trained, head: fast", "only flow"),
    ],
)
def test_a_protocol_that_does_not_fit_is_refused_before_the_data_is_read(
    folder, tmp_path, old, new, message
):
    text = PROTOCOL.format(robot="sim_widowx")
    assert old in text
    protocol = tmp_path / "misfit.yaml"
    protocol.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message):
        closed_loop.check(str(protocol), Dataset.load(folder / "data").embodiment, ("flow",))


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
        train(options)
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
    train(settings(folder, "whole", **options))
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        train(settings(folder, "parts", **options), lambda: next(asked))
    train(settings(folder, "parts", **options, resume=True))
    assert curve(folder / "parts") == curve(folder / "whole")
    assert len(curve(folder / "whole")) == 6
    for name, value in weights(folder / "whole").items():
        assert torch.equal(value, weights(folder / "parts")[name]), name


def command(options: Settings) -> list[str]:
    values = options.to_json()
    words = ["-m", "nora_training.sft.command", values.pop("dataset")]
    for name, value in values.items():
        if isinstance(value, bool):
            words += [f"--{'' if value else 'no-'}{name.replace('_', '-')}"]
        elif value is not None and name != "outcomes":
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def test_a_killed_run_continues_as_if_it_had_not_been(folder):
    options = {"steps": 24, "ema": 0.9, "save_every": 1, "resume": True, "log_every": 2}
    train(settings(folder, "undisturbed", **options))
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
    train(killed)
    assert curve(out) == curve(folder / "undisturbed")
    for name, value in weights(folder / "undisturbed").items():
        assert torch.equal(value, weights(out)[name]), name


def test_a_finished_run_says_so_and_another_is_refused(folder, monkeypatch, capsys):
    options = settings(folder, "done", steps=1, warmup=0)
    for expected in ("trained in", "finished"):
        assert nora_sft(monkeypatch, options) == 0
        assert expected in capsys.readouterr().out
    assert nora_sft(monkeypatch, dataclasses.replace(options, lr=0.5)) == 2
    assert f"error: lr: {options.out} was started with 0.001, got 0.5" in capsys.readouterr().err
    card = json.loads((folder / "done/checkpoint/card.json").read_text())
    assert card["bags"] == export.bags(Dataset.load(folder / "data").select("train", ALL_OUTCOMES))


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
        train(options, lambda: True)
    assert finished(options) is None
    path = getattr(options, option) / file
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(ValueError, match=rf"^{option}: .*\['{file}'\] .* restore them, or choose"):
        finished(options)
    path.write_bytes(content)
    train(options)
    shutil.rmtree(getattr(options, option))
    assert finished(options)["step"] == 3


def test_a_run_of_an_older_version_goes_on_and_says_what_is_not_known(folder, caplog):
    options = settings(folder, "older", steps=3, resume=True)
    with pytest.raises(Stopped):
        train(options, lambda: True)
    path = folder / "older/settings.json"
    path.write_text(json.dumps(options.to_json()))
    assert finished(options) is None
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: from an older version: the contents of its inputs are not compared"
    ]
    train(options)
    assert json.loads(path.read_text())["inputs"].keys() == {"dataset", "init"}


def test_a_kill_while_a_file_is_written_leaves_the_old_one(folder, monkeypatch):
    options = settings(folder, "torn", steps=3)
    with pytest.raises(Stopped):
        train(options, lambda: True)
    again = dataclasses.replace(options, resume=True)
    path, card = folder / "torn/settings.json", folder / "torn/checkpoint/card.json"
    before, write = path.read_text(), Path.write_text

    def cut(path: Path, text: str, **options: str) -> int:
        if path.name.lstrip(".").removesuffix(".partial") not in torn:
            return write(path, text, **options)
        write(path, text[:40], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", cut)
        torn = {"settings.json"}
        with pytest.raises(KeyboardInterrupt):
            Run(again, never).begin()
        assert path.read_text() == before
        torn = {"card.json"}
        with pytest.raises(KeyboardInterrupt):
            train(again)
    assert finished(again) is None
    train(again)
    assert finished(again)["step"] == 3
    assert not list(card.parent.glob(".*"))
    # As an older version would have left them.
    for file in (card, path):
        file.write_text(file.read_text()[:40])
        with pytest.raises(ValueError, match=f"{file}: not valid JSON: .*; remove it and repeat"):
            finished(again)


def test_a_run_that_saved_nothing_starts_over_with_other_options(folder):
    Run(settings(folder, "unborn", batch_size=8), never).begin()
    options = settings(folder, "unborn", steps=3)
    assert finished(options) is None
    train(options)
    assert finished(options)["settings"]["batch_size"] == 4


def test_the_warm_up_follows_the_number_of_steps_and_leaves_room_for_training(folder):
    paths = {"dataset": folder / "data", "init": folder / "init", "out": folder / "long"}
    warmups = [Settings(**paths, steps=steps).schedule.warmup for steps in (1, 6, 500, 10_000)]
    assert warmups == [0, 0, 50, 1000]
    assert Settings(**paths, steps=100_000).schedule.warmup == 1000
    for warmup, message in ((500, "less than the 500 of --steps, got 500"), (-1, "at least 0")):
        with pytest.raises(ValueError, match=f"^warmup: must be {message}"):
            Settings(**paths, steps=500, warmup=warmup)


def nora_sft(monkeypatch, options: Settings) -> int:
    monkeypatch.setattr(sys, "argv", ["nora-sft", *command(options)[2:]])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        main()
    except SystemExit as end:
        return end.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0


# parts and processes


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"checkpointing": True}], ids=str)
def test_saving_memory_changes_nothing(folder, changes):
    options = {"keyframe_weight": 0.3, "steps": 3, "shift": 0.1, "jitter": 0.1}
    if not (folder / "plain/checkpoint").is_dir():
        train(settings(folder, "plain", **options))
    name = next(iter(changes))
    train(settings(folder, name, **options, **changes))
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
    options |= {"resume": True}  # the processes compare their states
    name = f"one_{parallel}"
    train(settings(folder, name, **options))
    both = settings(folder, parallel, parallel=parallel, **options)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([sys.executable, *launch, *command(both)], check=True, timeout=100)
    compare(folder / name, folder / parallel)
    found = [log.read(folder / each)[-1] for each in (name, parallel)]
    assert found[0]["kind"] == "val"
    del found[0]["kind"], found[1]["kind"]
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-6)


def test_processes_that_find_different_states_stop(folder, monkeypatch):
    """Two machines without a disk in common: the second has no state."""
    options = settings(folder, "machine", steps=3, resume=True)
    with pytest.raises(Stopped):
        train(options, lambda: True)
    monkeypatch.setattr(Processes, "each", lambda self, step: [step, 0])
    with pytest.raises(ValueError, match=r"find different states, those after steps \[1, 0\]"):
        train(options)


def test_validation_without_samples_is_skipped_and_says_so(tmp_path, caplog):
    """Episodes of 3 steps have no chunk of 5, which FAST tokens need."""
    data = Dataset.load(write_uneven(tmp_path / "data"))
    write_checkpoint(tmp_path / "init")
    (entry,) = (e for e in data.entries if data.split(e) == "val")
    assert entry.num_steps == 3
    options = settings(tmp_path, "run", heads="fast", steps=3)
    material = Material.read(options)
    assert "validation: skipped: none of its 1 episodes has a whole chunk of 5" in caplog.text
    assert material.validation is None
    assert train(options) == {}


def test_a_data_set_without_validation_episodes_is_mentioned(tmp_path, folder, caplog):
    write_dataset(tmp_path / "data", val_fraction=0.0)
    options = dataclasses.replace(settings(folder, "none"), dataset=tmp_path / "data")
    assert Material.read(options).validation is None
    assert f"validation: skipped: {tmp_path / 'data'} has no validation episodes" in caplog.text


def test_what_is_cheap_to_check_is_refused_before_anything_is_read(folder, tmp_path, monkeypatch):
    def read(*arguments):
        raise AssertionError("too late")

    monkeypatch.setattr(Dataset, "steps", read)
    monkeypatch.setattr(checkpoint, "load", read)
    options = settings(tmp_path, "run", fast=tmp_path / "none")
    options = dataclasses.replace(options, dataset=folder / "data", init=folder / "init")
    for changes, message in (
        ({"dataset": tmp_path / "nowhere"}, "nowhere"),
        ({"init": tmp_path / "nowhere"}, "nowhere"),
        ({}, "none"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            Run(dataclasses.replace(options, **changes), never)
    config = checkpoint.load_config(folder / "init")
    other = dataclasses.replace(config, action_dim=8)
    monkeypatch.setattr(checkpoint, "load_config", lambda folder: other)
    with pytest.raises(ValueError, match="init: the network has 8 action dimensions"):
        Run(options, never)


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
    learner = run.learner
    trained = {n for n, p in learner.named_parameters() if p.requires_grad}
    inside = {n for n in trained if n.startswith("model.vlm.")}
    assert inside
    assert all("lora_" in name or "trainable_tokens" in name for name in inside)
    expert = {n for n, _ in learner.named_parameters() if not n.startswith("model.vlm.")}
    assert expert <= trained
    run.begin()
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
    inputs, labels = run.material.training.inputs(indices, has_target=True)
    exported = checkpoint.load(folder / "lora/checkpoint", torch.device("cpu"), torch.float32)
    with torch.no_grad():
        mine, other = (m.encode(inputs)[1] for m in (learner.model, exported))
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4)
        loss = [m.token_loss(inputs, labels) for m in (learner.model, exported)]
    torch.testing.assert_close(*loss, rtol=1e-4, atol=1e-4)


# masks


@pytest.fixture(scope="module")
def learner(folder) -> Learner:
    return make_learner(settings(folder, "masks"), torch.device("cpu"))


@pytest.fixture(scope="module")
def batch(material) -> Batch:
    return Batches(material.training, batch_size=8).at(2)[0]


def with_ids(batch: Batch, ids_BL: torch.Tensor) -> Batch:
    inputs = dataclasses.replace(batch.targets.inputs, input_ids_BL=ids_BL)
    return dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, inputs=inputs))


def test_padding_and_what_follows_an_episode_change_nothing(learner, batch):
    targets = batch.targets
    assert not targets.is_real_BT.all()
    with torch.no_grad():
        before = learner(batch)
        padding = targets.inputs.attention_mask_BL == 0
        assert padding.any()
        padded = learner(with_ids(batch, targets.inputs.input_ids_BL + 7 * padding))
        prefix, _ = learner.model.encode(targets.inputs)
        visible = Prefix(prefix.keys, prefix.values, targets.expert_mask_BL)
        tau = targets.tau_F[:, None, None]
        mixed = tau * targets.noise_FTA + (1 - tau) * targets.actions_BTA
        velocity = learner.model.velocity(mixed, targets.tau_F, visible)
    error = (velocity - (targets.noise_FTA - targets.actions_BTA))[targets.is_real_BT]
    torch.testing.assert_close(before.flow, error.square().mean())
    assert torch.equal(padded.cross_entropy, before.cross_entropy)
    assert torch.equal(padded.flow, before.flow)


def test_the_expert_is_blind_to_tokens(material, learner, batch):
    first = material.config.action_token_min
    is_token = batch.targets.labels_BL >= first
    assert is_token.any()
    other = torch.where(is_token, first + 5, batch.targets.inputs.input_ids_BL)
    with torch.no_grad():
        before, after = learner(batch), learner(with_ids(batch, other))
    torch.testing.assert_close(after.flow, before.flow, rtol=1e-6, atol=0)
    assert after.cross_entropy != before.cross_entropy


# learning


def test_four_samples_are_learned_by_heart_and_both_heads_reproduce_them(tmp_path):
    data = write_dataset(tmp_path / "data", lengths=(5,) * 4, val_fraction=0.0, num_observed=1)
    fast = nora_dataset_fast(tmp_path / "data", tmp_path / "fast")
    write_checkpoint(tmp_path / "init")
    options = {"steps": 200, "batch_size": 4, "warmup": 5, "lr": 1e-2, "save_every": 1000}
    options |= {"optimizer": "muon", "muon_lr": 0.02, "fast": fast, "flow_draws": 16}
    train(settings(tmp_path, "run", **options))
    for head in ("flow", "fast"):
        policy = Policy.load(
            tmp_path / "run/checkpoint", data.embodiment, "cpu", seed=0, head=head
        )
        errors = []
        for entry in data.entries:
            images = tuple(data.images(entry, camera.name)[0] for camera in data.cameras)
            chunk = policy.infer(Observation(images, entry.instruction, 0))
            errors.append(np.abs(chunk.actions_TA - data.steps(entry).actions_NA)[:, :6].max())
        # Chance is 0.01: the widest range of an action is about that.
        assert np.median(errors) < 2e-3, (head, errors)


@pytest.mark.parametrize(("heads", "other"), [("flow", "cross_entropy"), ("fast", "flow")])
def test_one_head_alone_is_learned(folder, heads, other):
    train(settings(folder, heads, heads=heads, steps=30, lr=5e-3, log_every=10))
    rows = curve(folder / heads)
    assert all(row[other] == 0.0 for row in rows)
    assert rows[-1]["total"] < 0.9 * rows[0]["total"]
    before, after = load_file(folder / "init" / checkpoint.WEIGHTS), weights(folder / heads)
    changed = {name.split(".")[0] for name, x in after.items() if not torch.equal(x, before[name])}
    assert ("action_expert" in changed) == (heads == "flow")
    assert "vlm" in changed


def nora_dataset_fast(data: Path, out: Path) -> Path:
    words = ["fast", str(data), "--out", str(out), "--vocab-size", "300"]
    run = "import sys; from nora_training.dataset_command import main; main()"
    done = subprocess.run([sys.executable, "-c", run, *words], capture_output=True, text=True)
    assert "tokens from" in done.stdout, done.stderr
    return out
