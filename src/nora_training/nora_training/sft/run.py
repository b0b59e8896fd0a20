"""A fine-tuning run put together: what it learns from, the network, the trainer, the result."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from nora_core.bags.provenance import git_revision
from nora_policy.checkpoints import checkpoint
from nora_policy.models.config import NoraConfig
from nora_training.sft import closed_loop, export, record
from nora_training.sft.batches import Batches, Share
from nora_training.sft.losses import Learner, Losses
from nora_training.sft.material import Material
from nora_training.sft.settings import Settings
from nora_training.sft.validation import Validation
from nora_training.train import log, lora, optimizer, recompute
from nora_training.train import state as states
from nora_training.train.loop import STATE, Hooks, Trainer
from nora_training.train.parallel import Processes, full, is_first

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CHECKPOINT, CHECKPOINTS = "checkpoint", "checkpoints"
METHODS = ("predict", "next_tokens")  # of `Learner`, called besides `forward`
GIB = 2**30

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
        return None  # there is nothing to lose
    record.check(settings)
    card = export.read_card(out / CHECKPOINT)
    if card is not None and settings.trials is not None and is_first():
        _finish_trials(settings.trials, out, card["step"])
    return card


class Run:
    """A run in this process, from its settings to its result.

    The constructor reads and builds, `begin` writes the run's folder, `train` trains.

    Raises:
        FileNotFoundError: a file of the data set or of the checkpoint is missing.
        ValueError: the settings do not fit together.
    """

    def __init__(self, settings: Settings, is_stopped: Callable[[], bool]) -> None:
        _limit_threads(settings.num_threads)
        self._settings = settings
        _require_new_folder(settings)
        self.material = Material.read(settings)
        self._processes = Processes(
            settings.parallel,
            settings.device,
            has_unused=not settings.keyframe_weight
            and _is_flow_alone(settings, self.material.config),
        )
        self.learner = make_learner(settings, self._processes.device)
        self._num_parameters = [(p.numel(), p.requires_grad) for p in self.learner.parameters()]
        self._validation = _validation(settings, self.material)
        self._trainer = self._make_trainer(is_stopped)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints."""
        return self._processes.is_main

    def begin(self) -> None:
        """Write the settings, and restore the newest state of a run that is resumed."""
        self._processes.wait()
        if self.is_main:
            record.write(self._settings)
        if self._settings.resume:
            self._trainer.restore()

    def describe(self) -> str:
        """What will be trained, on what, and for how long; one line each."""
        total = sum(count for count, _ in self._num_parameters)
        trained = sum(count for count, is_trained in self._num_parameters if is_trained)
        settings, material, processes = self._settings, self.material, self._processes
        count = len(material.training)
        epochs = settings.steps * settings.batch_size / count
        return "\n".join(
            [
                f"network: {material.config.kind}, {total:,} parameters, "
                f"{trained:,} trained, {processes.world} x {processes.device.type}",
                f"samples: {count:,} from {len(material.entries)} episodes, "
                f"{len(self._validation or ())} for validation",
                f"budget: {settings.steps:,} steps of {settings.batch_size} = "
                f"{epochs:.1f} epochs, from step {self._trainer.step}",
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
        peak = peak_bytes(self._processes.device) / GIB
        numbers = "\n".join(f"  {name:18} {value:.5f}" for name, value in metrics.items())
        return (
            f"{self._settings.out / CHECKPOINT}: trained in {self._trainer.wall_s:.0f} s, peak "
            f"memory {peak:.2f} GiB\n{numbers}"
        )

    def _make_trainer(self, is_stopped: Callable[[], bool]) -> Trainer:
        settings, learner, processes = self._settings, self.learner, self._processes
        batches = Batches(
            self.material.training,
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            seed=settings.seed,
            share=Share(processes.rank, processes.world),
            flow_draws=settings.flow_draws,
            augment=settings.augment,
        )
        validation = self._validation
        validate = None if validation is None else (lambda: validation.run(learner))
        call = processes.prepare(learner, learner.layers(), METHODS)
        return Trainer(
            learner,
            call,
            losses=Losses._fields,
            optimizers=optimizer.build(learner, settings.optimizer, settings.rates),
            schedule=settings.schedule,
            batches=batches,
            hooks=Hooks(validate=validate, export=self._export, is_stopped=is_stopped),
            processes=processes,
        )

    def _export(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """All processes must call it: sharded weights are gathered."""
        state, settings = full(lora.merged(self.learner.model)), self._settings
        results: dict[str, float] = {}
        if self.is_main:
            name = CHECKPOINT if step == settings.steps else f"{CHECKPOINTS}/step_{step}"
            folder = settings.out / name
            dtype = DTYPES[settings.export_dtype]
            model = export.rebuild(self.material.config, state, dtype)
            export.export(folder, model, self.material, self._card(step, metrics))
            if settings.trials is not None:
                results = closed_loop.run(settings.trials, folder)
        self._processes.wait()
        return results

    def _card(self, step: int, metrics: dict[str, float]) -> dict[str, Any]:
        material = self.material
        return {
            "description": f"{material.config.kind} fine-tuned on "
            f"{material.dataset.embodiment.name}",
            "step": step,
            "samples": step * self._settings.batch_size,
            "metrics": metrics,
            "bags": export.bags(material.entries),
            "settings": self._settings.to_json(),
            "git_revision": git_revision(),
            "torch": torch.__version__,
            "processes": self._processes.world,
            "wall_s": round(self._trainer.wall_s, 1),
        }


def make_learner(settings: Settings, device: torch.device) -> Learner:
    """The network of `init` on the CPU, its trained weights in float32."""
    torch.manual_seed(settings.seed)
    model = checkpoint.load(settings.init, torch.device("cpu"), torch.float32)
    is_bf16 = settings.precision == "bf16" or (
        settings.precision == "auto" and device.type == "cuda"
    )
    learner = Learner(
        model, settings.heads, keyframe_weight=settings.keyframe_weight, is_bf16=is_bf16
    )
    if settings.lora_rank:
        lora.add(model, settings.lora_rank, learner.learns_tokens)
        for parameter in model.parameters():
            if is_bf16 and not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    if settings.checkpointing:
        recompute.enable(learner.layers())
    return learner


def peak_bytes(device: torch.device) -> int:
    """The most memory used so far: allocated on a GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _limit_threads(num_threads: int) -> None:
    if num_threads:
        torch.set_num_threads(num_threads)
        threadpool_limits(num_threads)


def _require_new_folder(settings: Settings) -> None:
    if not settings.resume and (settings.out / STATE).is_dir():
        raise ValueError(f"out: {settings.out} already holds a run; --resume continues it")


def _is_flow_alone(settings: Settings, config: NoraConfig) -> bool:
    """The flow head reads nothing after the last keys and values of the backbone."""
    return settings.heads == "flow" or config.heads == ("flow",)


def _validation(settings: Settings, material: Material) -> Validation | None:
    if material.validation is None:
        return None
    return Validation(
        material.validation,
        material.statistics,
        material.dataset.embodiment.action.names,
        num_samples=settings.val_samples,
        batch_size=settings.batch_size // settings.accumulate,
    )


def _finish_trials(protocol: str, out: Path, step: int) -> None:
    """Run those of the last checkpoint, if the run was interrupted in them or had none."""
    if any(row["kind"] == "trials" and row["step"] == step for row in log.read(out)):
        return
    results = closed_loop.run(protocol, out / CHECKPOINT)
    with closing(log.Log(out, step)) as rows:
        rows.write(step, "trials", results)
