"""A checkpoint that answers observations with action chunks in physical units.

Normalised actions do not leave this file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nora_core.embodiment import Embodiment
from nora_core.normalization import Statistics, denormalize, denormalize_all
from nora_core.types import ActionChunk, Float64, Observation
from nora_policy.checkpoints import checkpoint, layout
from nora_policy.models.expert import Prefix
from nora_policy.models.grammar import DecodingState, Grammar
from nora_policy.models.nora import Nora
from nora_policy.models.nora15 import Nora15
from nora_policy.preprocess import Preprocessor

GRIPPER_THRESHOLD = 0.5  # of the opening, 0 closed ... 1 open


class Policy:
    """A network of the NORA family for one embodiment.

    Not thread-safe: call it from one thread.
    """

    def __init__(
        self,
        *,
        name: str,
        model: Nora,
        preprocessor: Preprocessor,
        statistics: Statistics,
        embodiment: Embodiment,
        grammar: Grammar | None = None,
        seed: int | None = None,
        is_legacy: bool = False,
    ) -> None:
        self.name = name
        self._model, self._preprocessor = model, preprocessor
        self._statistics, self._embodiment = statistics, embodiment
        self._grammar, self._is_legacy = grammar, is_legacy
        self._gripper = embodiment.action.gripper_index
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)

    @classmethod
    def load(
        cls,
        folder: Path,
        embodiment: Embodiment,
        device: str = "auto",
        *,
        seed: int | None = None,
        head: str | None = None,
        is_legacy: bool = False,
    ) -> Policy:
        """Read the checkpoint in `folder` for the robot described by `embodiment`.

        Args:
            folder: our layout, or a published one with `tokenizer.json` and `norm_stats.json`.
            embodiment: must agree with the one that the checkpoint was trained for.
            device: "cuda" (bfloat16), "cpu" (float32), or "auto": CUDA where there is one.
            seed: of the sampling noise; random when None.
            head: "flow" (action expert) or "fast" (tokens); None: as the embodiment says.
            is_legacy: scale the gripper and clip nothing, as the reference code does for NORA. For
                comparisons only.

        Raises:
            FileNotFoundError: names the files that are missing.
            ValueError: names what does not fit, one line.
        """
        torch_device = _device(device)
        head = head or embodiment.action.head
        found, statistics = _read(folder, embodiment, head)
        dtype = torch.bfloat16 if torch_device.type == "cuda" else torch.float32
        tokenizer = checkpoint.load_tokenizer(folder, found.config)
        return cls(
            name=folder.resolve().name,
            grammar=_grammar(found) if head == "fast" else None,
            preprocessor=Preprocessor(found.config, tokenizer, embodiment.cameras),
            model=checkpoint.load_network(found, torch_device, dtype),
            statistics=statistics,
            embodiment=embodiment,
            seed=seed,
            is_legacy=is_legacy,
        )

    @property
    def head(self) -> str:
        """`flow` or `fast`."""
        return "flow" if self._grammar is None else "fast"

    @property
    def device(self) -> torch.device:
        return self._model.device

    def infer(self, observation: Observation) -> ActionChunk:
        """One chunk: sampled by the flow head, or the greedy tokens of the token head.

        Raises:
            ValueError: the observation cannot be used.
            RuntimeError: the model's output cannot.
        """
        return self._chunks(observation, 1, temperature=0.0)[0]

    def sample(
        self, observation: Observation, k: int, temperature: float = 1.0
    ) -> tuple[ActionChunk, ...]:
        """`k` chunks drawn independently; image and prompt are encoded once.

        `temperature` is that of the token head; 0 decodes greedily. Raises as `infer`.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature: expected >= 0 and finite, got {temperature}")
        return self._chunks(observation, k, temperature)

    def reseed(self, seed: int) -> None:
        """Begin the sampling noise anew, as if loaded with this seed."""
        self._random.manual_seed(seed)

    def warm_up(self) -> None:
        """Answer a black image twice; draws no noise, so that seeded runs stay the same."""
        config = self._model.config
        black = np.zeros((config.image_size, config.image_size, 3), np.uint8)
        observation = Observation((black,) * len(self._embodiment.cameras), "warm up", 0)
        state = self._random.get_state()
        for _ in range(2):
            self.infer(observation)
        self._random.set_state(state)

    @torch.inference_mode()
    def _chunks(
        self, observation: Observation, k: int, temperature: float
    ) -> tuple[ActionChunk, ...]:
        prefix, hidden_BLE = self._model.encode(self._preprocessor(observation))
        if self._grammar is None:
            actions_KTA, num_tokens = self._flow(prefix, k), [0] * k
        else:
            states = self._generate(prefix, hidden_BLE, self._grammar, k, temperature)
            actions_KTA = [self._grammar.decode(state.ids) for state in states]
            num_tokens = [len(state.ids) for state in states]
        action = self._embodiment.action
        return tuple(
            ActionChunk(
                actions_TA=self._physical(actions_TA),
                step_period_s=action.step_period_s,
                stamp_ns=observation.stamp_ns,
                instruction=observation.instruction,
                action_names=action.names,
                frame=action.frame,
                num_tokens=count,
            )
            for actions_TA, count in zip(actions_KTA, num_tokens, strict=True)
        )

    def _flow(self, prefix: Prefix, k: int) -> Sequence[np.ndarray]:
        assert isinstance(self._model, Nora15), "only it has a flow head"
        config = self._model.config
        shape = (1, config.horizon, config.action_dim)
        # Drawn one by one: in one go the values would depend on k.
        noise = [torch.randn(shape, generator=self._random) for _ in range(k)]
        actions_KTA = self._model.sample(prefix, torch.cat(noise).to(self.device))
        return list(actions_KTA.cpu().numpy())

    def _generate(
        self,
        prefix: Prefix,
        hidden_BLE: torch.Tensor,
        grammar: Grammar,
        k: int,
        temperature: float,
    ) -> list[DecodingState]:
        states = [DecodingState(grammar) for _ in range(k)]
        if temperature == 0:
            self._model.generate(prefix, hidden_BLE, states)
            return states
        seeds = torch.randint(2**62, (k,), generator=self._random).tolist()
        randoms = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._model.generate(prefix, hidden_BLE, states, randoms, temperature)
        return states

    def _physical(self, normalised_TA: np.ndarray) -> Float64:
        """Physical units, within the quantiles of training and a gripper of 0 ... 1.

        Tokens know open and closed grippers only, and rounding blurs them: the value before any
        scaling decides.
        """
        is_bad = ~np.isfinite(normalised_TA)
        if is_bad.any():
            raise RuntimeError(
                f"model output: expected finite actions, got {is_bad.sum()} of {is_bad.size} "
                "NaN or infinite"
            )
        if self._is_legacy:
            return denormalize_all(normalised_TA, self._statistics)
        actions_TA = denormalize(normalised_TA, self._statistics)
        gripper_T = np.clip(actions_TA[:, self._gripper], 0.0, 1.0)
        if self.head == "fast":
            gripper_T = (normalised_TA[:, self._gripper] > GRIPPER_THRESHOLD).astype(np.float64)
        actions_TA[:, self._gripper] = gripper_T
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


def _read(folder: Path, embodiment: Embodiment, head: str) -> tuple[layout.Layout, Statistics]:
    """The layout and the statistics of a checkpoint that fits the robot; raises as `load`."""
    checkpoint.require(folder, checkpoint.WEIGHTS, checkpoint.TOKENIZER, checkpoint.STATISTICS)
    found = layout.require_horizon(layout.read(folder))
    statistics, unusable = layout.read_statistics(folder / checkpoint.STATISTICS)
    if reasons := layout.misfits(found, statistics, embodiment, head):
        if embodiment.action.statistics_key not in statistics:
            reasons += unusable
        raise ValueError(f"checkpoint {folder}: {'; '.join(reasons)}")
    return found, statistics[embodiment.action.statistics_key]


def _grammar(found: layout.Layout) -> Grammar:
    tokenizer = checkpoint.load_fast(found.folder, found.config)
    return Grammar(tokenizer, found.config.horizon, found.config.action_dim)
