"""What a run learns from, read and checked before any network weight is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from nora_core.normalization import Statistics
from nora_policy.checkpoints import checkpoint
from nora_policy.models.config import NoraConfig
from nora_policy.models.fast import FastTokenizer
from nora_policy.preprocess import Preprocessor
from nora_training.data.dataset import Dataset, Entry
from nora_training.data.samples import Samples
from nora_training.sft import closed_loop
from nora_training.sft.examples import Examples
from nora_training.sft.losses import learned
from nora_training.sft.settings import Settings
from nora_training.train.parallel import is_first

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """The data set, the tokenizers of the checkpoint, and the examples made from both.

    `entries`: the training episodes, by which actions are normalised. `validation`: None when the
    data set has no validation episodes, or none that can be used.
    """

    dataset: Dataset
    entries: tuple[Entry, ...]
    statistics: Statistics
    config: NoraConfig
    tokenizer: Tokenizer
    fast: FastTokenizer | None
    preprocessor: Preprocessor
    training: Examples
    validation: Examples | None

    @classmethod
    def read(cls, settings: Settings) -> Material:
        """Raises `FileNotFoundError` or `ValueError`; what is cheap to check comes first."""
        config = checkpoint.load_config(settings.init)
        learns_tokens, learns_flow = learned(config, settings.heads)
        checkpoint.require(settings.init, checkpoint.WEIGHTS, checkpoint.TOKENIZER)
        dataset = Dataset.load(settings.dataset)
        _require_fitting(settings, dataset, config)
        tokenizer = checkpoint.load_tokenizer(settings.init, config)
        fast = _fast(settings, config)
        preprocessor = Preprocessor(config, tokenizer, dataset.cameras)
        entries = _training_entries(settings, dataset)
        statistics = dataset.statistics(entries)

        def examples(of: Sequence[Entry]) -> Examples:
            return Examples(
                Samples(dataset, of, statistics, config.horizon, only_complete=not learns_flow),
                preprocessor,
                fast=fast if learns_tokens else None,
                image_size=config.image_size,
            )

        return cls(
            dataset=dataset,
            entries=entries,
            statistics=statistics,
            config=config,
            tokenizer=tokenizer,
            fast=fast,
            preprocessor=preprocessor,
            training=examples(entries),
            validation=_usable(examples(dataset.select("val", settings.outcomes)), settings),
        )


def _require_fitting(settings: Settings, dataset: Dataset, config: NoraConfig) -> None:
    num_actions = len(dataset.embodiment.action.names)
    if config.action_dim != num_actions:
        raise ValueError(
            f"init: the network has {config.action_dim} action dimensions, but the robot of "
            f"{settings.dataset}, {dataset.embodiment.name}, has {num_actions}"
        )
    if settings.trials is not None:
        closed_loop.check(settings.trials, dataset.embodiment, config.heads)


def _training_entries(settings: Settings, dataset: Dataset) -> tuple[Entry, ...]:
    entries = dataset.select("train", settings.outcomes)
    if not entries:
        available = sorted({entry.outcome for entry in dataset.entries})
        wanted = ", ".join(outcome.name for outcome in settings.outcomes)
        raise ValueError(
            f"outcomes: no training episode ended in {wanted}; the episodes of "
            f"{settings.dataset} have {available}"
        )
    return entries


def _usable(examples: Examples, settings: Settings) -> Examples | None:
    """`examples`, or None with a warning when there are none."""
    if len(examples):
        return examples
    samples = examples.samples
    if samples.entries:
        reason = (
            f"none of its {len(samples.entries)} episodes has a whole chunk of "
            f"{samples.horizon} steps"
        )
    else:
        reason = (
            f"{settings.dataset} has no validation episodes (`nora-dataset build "
            "--val-fraction` makes some)"
        )
    if is_first():
        logger.warning("validation: skipped: %s", reason)
    return None


def _fast(settings: Settings, config: NoraConfig) -> FastTokenizer | None:
    """From the option, else from the checkpoint; None for a network without token head."""
    if config.token_head is None:
        return None
    if settings.fast is None:
        return checkpoint.load_fast(settings.init, config)
    found = FastTokenizer.load(settings.fast)
    if found.vocab_size > config.num_action_tokens:
        raise ValueError(
            f"fast: the network has room for {config.num_action_tokens} tokens, "
            f"got {found.vocab_size}"
        )
    return found
