"""Fine-tuning: batches, masks, exact continuation, parts and processes, and that it learns."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import write_checkpoint, write_dataset

from nora_policy.checkpoints import checkpoint
from nora_policy.preprocess import pad_left, with_target
from nora_training.samples import Samples
from nora_training.sft import log
from nora_training.sft.batches import Batches, Share
from nora_training.sft.run import Run
from nora_training.sft.settings import Settings
from nora_training.sft.trainer import Stopped

ALL = ("both", "flow", "fast")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    write_dataset(folder / "data")
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
    return [{k: v for k, v in row.items() if k != "samples_per_s"} for row in rows]


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
    rows = []
    for row, index in enumerate(indices.tolist()):
        sample = samples[index]
        np.testing.assert_array_equal(actions[row], sample.actions_TA)
        np.testing.assert_array_equal(is_real[row], sample.is_real_T)
        one, learned = run._preprocessor(sample.observation), []
        if sample.is_real_T.all():
            learned = run._preprocessor.target(run._fast.encode(sample.actions_TA))
            one = with_target(one, learned)[0]
        rows.append(one)
        length = labels.shape[1]
        assert labels[row, length - len(learned) :].tolist() == learned
        assert (labels[row, : length - len(learned)] < 0).all()
    assert 0 < is_real.all(axis=1).sum() < len(indices)
    expected = pad_left(rows, 0)
    for field in dataclasses.fields(expected):
        assert torch.equal(getattr(inputs, field.name), getattr(expected, field.name)), field.name


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
    for name in ("noise_BTA", "tau_B", "actions_BTA", "keyframe_B3"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
    assert {(p.num_tokens, p.num_steps) for p in parts} == {(whole.num_tokens, whole.num_steps)}


# continuing


def test_a_stopped_run_continues_as_if_it_had_not_been(folder):
    options = {"ema": 0.9, "keyframe_weight": 0.3, "optimizer": "muon", "save_every": 4}
    Run(settings(folder, "whole", **options), never).train()
    asked = iter([False, False, True])
    with pytest.raises(Stopped):
        Run(settings(folder, "parts", **options), lambda: next(asked)).train()
    Run(settings(folder, "parts", **options, resume=True), never).train()
    assert curve(folder / "parts") == curve(folder / "whole")
    assert len(curve(folder / "whole")) == 6
    for name, value in weights(folder / "whole").items():
        assert torch.equal(value, weights(folder / "parts")[name]), name
