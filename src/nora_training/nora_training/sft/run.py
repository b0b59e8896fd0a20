"""A training run put together: its files, what it learns from, and its result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from nora_core.bags.provenance import git_revision
from nora_policy.checkpoints import checkpoint
from nora_policy.models.config import NoraConfig
from nora_policy.models.fast import FastTokenizer
from nora_policy.preprocess import Preprocessor
from nora_training.data.dataset import Dataset, Entry
from nora_training.evaluation import closed_loop
from nora_training.sft import export, memory, record
from nora_training.sft.batches import Batches, Share, Source
from nora_training.sft.losses import Learner
from nora_training.sft.settings import Settings
from nora_training.sft.trainer import STATE, Trainer
from nora_training.sft.validation import Validation
from nora_training.train import log, lora, recompute
from nora_training.train import state as states
from nora_training.train.parallel import Processes, full, is_first

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHECKPOINT, CHECKPOINTS = "checkpoint", "checkpoints"

logger = logging.getLogger(__name__)


def finished(settings: Settings) -> dict[str, Any] | None:
    """The card of the run's checkpoint, if it was trained to its end with these settings.

    Trials of it that are missing are run first.

    Raises:
        ValueError: the folder holds another run, or a file that was cut off.
    """
    out = settings.out
    results = (out / CHECKPOINT, out / CHECKPOINTS)
    if not states.exists(out / STATE) and not any(map(Path.is_dir, results)):
        return None  # it has nothing to lose
    record.check(settings)
    card = export.read_card(out / CHECKPOINT)
    if card is not None and settings.trials is not None and is_first():
        _finish_trials(settings.trials, out, card["step"])
    return card


class Run:
    """Everything of one run.

    Raises:
        FileNotFoundError: a file of the data set or of the checkpoint is not there.
        ValueError: what is given does not fit together.
    """

    def __init__(self, settings: Settings, is_stopped: Callable[[], bool]) -> None:
        if settings.num_threads:
            torch.set_num_threads(settings.num_threads)
            threadpool_limits(settings.num_threads)
        if settings.trials is not None:
            closed_loop.check(settings.trials)
        self._settings = settings
        self._data = Dataset.load(settings.dataset)
        has_unused = not settings.keyframe_weight and _is_flow_alone(settings)
        self._processes = Processes(settings.parallel, settings.device, has_unused)
        self._device = self._processes.device
        self._learner = _learner(settings, self._device)
        self._config = self._learner.model.config
        self._tokenizer = checkpoint.load_tokenizer(settings.init, self._config)
        self._fast = _fast(settings, self._config)
        self._preprocessor = Preprocessor(self._config, self._tokenizer, self._data.cameras)
        self._entries = self._data.select("train", settings.outcomes)
        if not self._entries:
            available = sorted({entry.outcome for entry in self._data.entries})
            wanted = [outcome.name for outcome in settings.outcomes]
            raise ValueError(
                f"outcomes: expected episodes to train on with {wanted}, available: {available}"
            )
        self._statistics = self._data.statistics(self._entries)
        self._source = self._read(self._entries)
        self._validation = self._validate_on(self._data.select("val", settings.outcomes))
        share = Share(self._processes.rank, self._processes.world)
        batches = Batches(
            self._source,
            settings.batch_size,
            settings.accumulate,
            settings.seed,
            share,
            settings.flow_draws,
            settings.augment,
        )
        self._num_parameters = [(p.numel(), p.requires_grad) for p in self._learner.parameters()]
        self._estimate = self._estimated()
        self._trainer = Trainer(
            settings,
            self._learner,
            batches,
            self._validation,
            self._export,
            is_stopped,
            self._processes,
        )
        self._begin()

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that talks."""
        return self._processes.is_main

    def describe(self) -> str:
        """What will be trained, on what, and what it takes; one line each."""
        trained = sum(count for count, is_trained in self._num_parameters if is_trained)
        settings, count = self._settings, len(self._source)
        epochs = settings.steps * settings.batch_size / count
        return "\n".join(
            [
                f"network: {self._config.kind}, {self._total_parameters:,} parameters, "
                f"{trained:,} trained, {self._processes.world} x {self._device.type}",
                f"samples: {count:,} of {len(self._entries)} episodes, "
                f"{len(self._validation or ())} to validate",
                f"budget: {settings.steps:,} steps of {settings.batch_size} = "
                f"{epochs:.1f} epochs, from step {self._trainer.step}",
                f"memory: {self._estimate / memory.GIB:.2f} GiB by estimate",
            ]
        )

    def train(self) -> dict[str, float]:
        """Raises as `Trainer.run`."""
        metrics = self._trainer.run()
        if self.is_main:
            log.plot(self._settings.out)
        self._processes.end()
        return metrics

    def outcome(self, metrics: dict[str, float]) -> str:
        peak = memory.peak_bytes(self._device) / memory.GIB
        numbers = "\n".join(f"  {name:18} {value:.5f}" for name, value in metrics.items())
        return (
            f"{self._settings.out / CHECKPOINT}: trained in {self._trainer.wall_s:.0f} s, memory "
            f"{peak:.2f} GiB at its peak ({self._estimate / memory.GIB:.2f} by estimate)\n"
            f"{numbers}"
        )

    def _read(self, entries: Sequence[Entry]) -> Source:
        learner = self._learner
        return Source(
            self._data,
            entries,
            self._statistics,
            self._config,
            self._preprocessor,
            self._fast if learner.learns_tokens else None,
            only_complete=not learner.learns_flow,
        )

    def _validate_on(self, entries: Sequence[Entry]) -> Validation | None:
        """None without such episodes, or samples of them."""
        if not entries:
            return None
        source = self._read(entries)
        if not len(source):
            if self.is_main:
                logger.warning(
                    "validation: skipped: none of its %d episodes has a whole chunk of %d steps",
                    len(entries),
                    self._config.horizon,
                )
            return None
        settings, names = self._settings, self._data.embodiment.action.names
        size = settings.batch_size // settings.accumulate
        return Validation(source, self._statistics, names, settings.val_samples, size)

    def _begin(self) -> None:
        settings = self._settings
        if not settings.resume and (settings.out / STATE).is_dir():
            raise ValueError(
                f"out: expected a new folder, {settings.out} holds a run: --resume continues it"
            )
        self._processes.wait()
        if self.is_main:
            record.write(settings)
        if settings.resume:
            self._trainer.restore()

    def _estimated(self) -> int:
        tokens = len(self._source.prompt(0)) + len(self._source.target(0))
        world = self._processes.world
        return memory.estimate_bytes(self._learner, self._settings, tokens, world)

    @property
    def _total_parameters(self) -> int:
        return sum(count for count, _ in self._num_parameters)

    def _export(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """All processes must call it: their parts are put together."""
        state, settings = full(lora.merged(self._learner.model)), self._settings
        shares: dict[str, float] = {}
        if self.is_main:
            is_last = step == settings.steps
            name = CHECKPOINT if is_last else f"{CHECKPOINTS}/step_{step}"
            model = export.rebuild(self._config, state, DTYPES[settings.export_dtype])
            folder, tokenizer, fast = settings.out / name, self._tokenizer, self._fast
            card = self._card(step, metrics, folder)
            export.export(folder, model, tokenizer, fast, self._data, self._statistics, card)
            if settings.trials is not None:
                shares = closed_loop.run(settings.trials, folder)
        self._processes.wait()
        return shares

    def _card(self, step: int, metrics: dict[str, float], folder: Path) -> dict[str, Any]:
        return {
            "description": f"{self._config.kind} fine-tuned on {self._data.embodiment.name}",
            "step": step,
            "samples": step * self._settings.batch_size,
            "metrics": metrics,
            "bags": export.bags(self._entries, folder),
            "settings": self._settings.to_json(),
            "git_revision": git_revision(),
            "torch": torch.__version__,
            "processes": self._processes.world,
            "wall_s": round(self._trainer.wall_s, 1),
        }


def _is_flow_alone(settings: Settings) -> bool:
    """The flow head reads nothing behind the last keys and values of the backbone."""
    heads = checkpoint.load_config(settings.init).heads
    return settings.heads == "flow" or heads == ("flow",)


def _learner(settings: Settings, device: torch.device) -> Learner:
    """On the CPU, its trained weights in float32."""
    torch.manual_seed(settings.seed)
    model = checkpoint.load(settings.init, torch.device("cpu"), torch.float32)
    is_bf16 = settings.precision == "bf16" or (
        settings.precision == "auto" and device.type == "cuda"
    )
    learner = Learner(model, settings.heads, settings.keyframe_weight, is_bf16)
    if settings.lora_rank:
        lora.add(model, settings.lora_rank, learner.learns_tokens)
        for parameter in model.parameters():
            if is_bf16 and not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    if settings.checkpointing:
        recompute.enable(learner.layers())
    return learner


def _fast(settings: Settings, config: NoraConfig) -> FastTokenizer | None:
    """Of the option, else of the checkpoint; None for a network without token head."""
    if config.token_head is None:
        return None
    if settings.fast is None:
        return checkpoint.load_fast(settings.init, config)
    found = FastTokenizer.load(settings.fast)
    if found.vocab_size > config.num_action_tokens:
        raise ValueError(
            f"fast: expected at most {config.num_action_tokens} tokens, got {found.vocab_size}"
        )
    return found


def _finish_trials(protocol: str, out: Path, step: int) -> None:
    """Those of the last checkpoint, if the run was interrupted in them or had none."""
    if any(row["kind"] == "trials" and row["step"] == step for row in log.read(out)):
        return
    shares = closed_loop.run(protocol, out / CHECKPOINT)
    with closing(log.Log(out, step)) as rows:
        rows.write(step, "trials", shares)
