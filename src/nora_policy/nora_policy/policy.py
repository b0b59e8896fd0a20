"""A checkpoint that answers observations with action chunks in physical units.

Normalised actions do not leave this file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from nora_policy.embodiment import Embodiment
from nora_policy.models import checkpoint
from nora_policy.models.nora15 import Nora15
from nora_policy.normalization import Statistics, denormalize
from nora_policy.preprocess import Preprocessor
from nora_policy.types import ActionChunk, Float64, Observation


class Policy:
    """NORA-1.5's flow head for one embodiment. Not thread-safe: call it from one thread."""

    def __init__(
        self,
        name: str,
        model: Nora15,
        preprocessor: Preprocessor,
        statistics: Statistics,
        embodiment: Embodiment,
        seed: int | None,
    ) -> None:
        self.name = name
        self._model, self._preprocessor = model, preprocessor
        self._statistics, self._embodiment = statistics, embodiment
        self._gripper = embodiment.action.names.index("gripper")
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)

    @classmethod
    def load(
        cls, folder: Path, embodiment: Embodiment, device: str = "auto", seed: int | None = None
    ) -> Policy:
        """Read the checkpoint in `folder` for the robot described by `embodiment`.

        Args:
            folder: our layout, or the published one with `tokenizer.json` and `norm_stats.json`.
            embodiment: must agree with the checkpoint's own in what the network was taught.
            device: "cuda" (bfloat16), "cpu" (float32), or "auto": CUDA where there is one.
            seed: of the sampling noise; random when None.

        Raises:
            FileNotFoundError: names the files that are not there.
            ValueError: names what does not fit, one line.
        """
        if embodiment.action.head != "flow":
            raise ValueError(
                f"{embodiment.name}: action.head: {embodiment.action.head} is not available yet, "
                "use head: flow"
            )
        torch_device = _device(device)
        checkpoint.require(folder, checkpoint.WEIGHTS, checkpoint.TOKENIZER, checkpoint.STATISTICS)
        _check_taught(folder, embodiment)
        key = embodiment.action.statistics_key
        statistics = Statistics.load(folder / checkpoint.STATISTICS, key)
        config = checkpoint.load_config(folder)
        num_actions = len(embodiment.action.names)
        for name, got in (
            ("config.json: action_dim", config.action_dim),
            (f"norm_stats.json: {key}", statistics.q01_A.size),
        ):
            if got != num_actions:
                raise ValueError(f"checkpoint {folder}: {name}: expected {num_actions}, got {got}")
        tokenizer = checkpoint.load_tokenizer(folder, config)
        dtype = torch.bfloat16 if torch_device.type == "cuda" else torch.float32
        model = checkpoint.load(folder, torch_device, dtype)
        preprocessor = Preprocessor(config, tokenizer, embodiment.cameras)
        return cls(folder.resolve().name, model, preprocessor, statistics, embodiment, seed)

    @property
    def device(self) -> torch.device:
        return self._model.device

    def infer(self, observation: Observation) -> ActionChunk:
        """One chunk. Raises `ValueError` (bad input) or `RuntimeError` (bad output)."""
        return self.sample(observation, 1)[0]

    def sample(self, observation: Observation, k: int) -> tuple[ActionChunk, ...]:
        """`k` chunks drawn independently; image and prompt are encoded once."""
        config = self._model.config
        shape = (1, config.horizon, config.action_dim)
        # Drawn one by one: in one go the values would depend on k.
        noise = [torch.randn(shape, generator=self._random) for _ in range(k)]
        return self._sample(observation, torch.cat(noise))

    def warm_up(self) -> None:
        """Answer a black image twice; draws no noise, so that seeded runs stay the same."""
        config = self._model.config
        black = np.zeros((config.image_size, config.image_size, 3), np.uint8)
        observation = Observation((black,) * len(self._embodiment.cameras), "warm up", 0)
        for _ in range(2):
            self._sample(observation, torch.zeros(1, config.horizon, config.action_dim))

    @torch.inference_mode()
    def _sample(
        self, observation: Observation, noise_KTA: torch.Tensor
    ) -> tuple[ActionChunk, ...]:
        prefix, _ = self._model.encode(self._preprocessor(observation))
        normalised_KTA = self._model.sample(prefix, noise_KTA.to(self.device)).cpu().numpy()
        action = self._embodiment.action
        return tuple(
            ActionChunk(
                actions_TA=self._physical(normalised_TA),
                step_period_s=action.step_period_s,
                stamp_ns=observation.stamp_ns,
                instruction=observation.instruction,
                action_names=action.names,
                frame=action.frame,
            )
            for normalised_TA in normalised_KTA
        )

    def _physical(self, normalised_TA: np.ndarray) -> Float64:
        """Physical units, within the quantiles of training and a gripper of 0 ... 1."""
        is_bad = ~np.isfinite(normalised_TA)
        if is_bad.any():
            raise RuntimeError(
                f"model output: expected finite actions, got {is_bad.sum()} of {is_bad.size} "
                "NaN or infinite"
            )
        actions_TA = denormalize(normalised_TA, self._statistics)
        actions_TA[:, self._gripper] = np.clip(actions_TA[:, self._gripper], 0.0, 1.0)
        return actions_TA


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda, got {name!r}")
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ValueError(
            f"device: expected a CUDA GPU, got none usable by torch {torch.__version__}; "
            "use auto or cpu"
        )
    return torch.device("cuda" if has_cuda and name != "cpu" else "cpu")


def _check_taught(folder: Path, embodiment: Embodiment) -> None:
    """Compare with the embodiment that the checkpoint was trained for, if it says which."""
    path = folder / checkpoint.EMBODIMENT
    if not path.is_file():
        return
    taught, got = _taught(Embodiment.load(path)), _taught(embodiment)
    differences = [
        f"{name}: expected {taught[name]}, got {got[name]}"
        for name in taught
        if taught[name] != got[name]
    ]
    if differences:
        raise ValueError(
            f"checkpoint {folder} was trained for another robot than {embodiment.name}: "
            + "; ".join(differences)
        )


def _taught(embodiment: Embodiment) -> dict[str, object]:
    action = dataclasses.asdict(embodiment.action)
    names = ("names", "frame", "step_period_s", "statistics_key")
    return {
        **{f"action.{name}": action[name] for name in names},
        "cameras": [camera.name for camera in embodiment.cameras],
    }
