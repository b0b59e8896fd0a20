"""A data set of a few episodes on disk and a tiny checkpoint to start from, made in a moment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from nora_core.embodiment import Embodiment
from nora_core.normalization import Statistics
from nora_policy.checkpoints import checkpoint
from nora_policy.checkpoints.untrained import make_config, make_fast_tokenizer, make_tokenizer
from nora_policy.models.fast import FastTokenizer
from nora_policy.models.nora15 import build
from nora_training.data import dataset
from nora_training.data.dataset import NO_IMAGE, Dataset, Entry, Settings

CONFIG = Path(__file__).parents[1] / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
SIZE = 56
WORDS = ("put the red cube on the plate", "reach the blue one", "lift")


def write_dataset(
    root: Path,
    lengths: tuple[int, ...] = (9, 12, 7, 15),
    val_fraction: float = 0.3,
    seed: int = 0,
    num_observed: int | None = None,
) -> Dataset:
    """Random pictures and smooth random actions; the gripper shuts in the middle.

    Only the first `num_observed` steps of an episode have pictures.
    """
    random = np.random.default_rng(seed)
    root.mkdir(parents=True)
    (root / dataset.EMBODIMENT).write_text(CONFIG.read_text())
    embodiment = Embodiment.load(CONFIG)
    entries = []
    for number, length in enumerate(lengths):
        digest = hashlib.sha256(f"{seed} {number}".encode()).hexdigest()
        words = WORDS[number % len(WORDS)]
        entry = Entry(digest, f"bag{number}", words, "SUCCESS", "command", length, length, length)
        folder = root / dataset.EPISODES / entry.folder
        folder.mkdir(parents=True)
        actions = random.normal(scale=0.004, size=(length, 7)).cumsum(axis=0)
        actions[:, 6] = np.arange(length) < length // 2
        stamps = np.arange(length) * 200_000_000
        np.savez(
            folder / "steps.npz",
            stamps_N=stamps,
            image_stamps_N=np.where(
                np.arange(length) < (num_observed or length), stamps, NO_IMAGE
            ),
            actions_NA=actions,
            measured_N6=actions[:, :6],
            positions_N3=actions[:, :3].cumsum(axis=0) - actions[:, :3],
        )
        (folder / "episode.json").write_text(json.dumps({}))
        for camera in embodiment.cameras:
            images = random.integers(0, 256, (length, SIZE, SIZE, 3), np.uint8)
            np.save(folder / f"{camera.name}.npy", images)
        entries.append(entry)
    sha256 = hashlib.sha256(CONFIG.read_bytes()).hexdigest()
    dataset.write_index(root, Settings(SIZE, "command", sha256), entries, val_fraction)
    return Dataset.load(root)


def write_checkpoint(folder: Path, fast: FastTokenizer | None = None) -> Path:
    """A random NORA-1.5 for images of `SIZE`, half as wide as the tiny one."""
    tokenizer = make_tokenizer()
    config = make_config(tokenizer)
    text = dataclasses.replace(
        config.text_config,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    vision = dataclasses.replace(config.vision_config, hidden_size=32, out_hidden_size=64)
    expert = dataclasses.replace(
        config.expert, hidden_size=32, intermediate_size=64, num_key_value_heads=1
    )
    config = dataclasses.replace(
        config, text_config=text, vision_config=vision, expert=expert, image_size=SIZE
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(config).eval()
    checkpoint.save(folder, model, tokenizer, fast or make_fast_tokenizer())
    statistics = Statistics(-np.ones(7), np.ones(7), np.arange(7) < 6)
    facts = {"sim_widowx": {"action": statistics.to_json()}}
    checkpoint.save_facts(folder, CONFIG, facts, {"description": "random"})
    return folder
