"""The loop: batches, gradients, optimizer steps, and what happens between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nora_training.sft import optimizer as optimizers
from nora_training.sft import state as states
from nora_training.sft.batches import Batch, Batches
from nora_training.sft.log import Log
from nora_training.sft.losses import Learner, Losses
from nora_training.sft.optimizer import Average
from nora_training.sft.settings import Settings
from nora_training.sft.state import State
from nora_training.sft.validation import Validation

STATE = "state"
MIN_INTERVAL_S = 1e-9


@dataclass(frozen=True, slots=True)
class Stopped(Exception):
    """Training was asked to stop and can be continued after `step` steps."""

    step: int


class Trainer:
    """Trains `learner` on `batches`.

    `export(step, metrics)` writes a checkpoint with the weights that the learner then has.
    `is_stopped()` is asked after every step; the state is saved before `Stopped` is raised.
    """

    def __init__(
        self,
        settings: Settings,
        learner: Learner,
        batches: Batches,
        validation: Validation | None,
        export: Callable[[int, dict[str, float]], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        self._settings, self._learner, self._batches = settings, learner, batches
        self._validation, self._export, self._is_stopped = validation, export, is_stopped
        self._optimizers = optimizers.build(learner, settings)
        self._average = Average(learner, settings.ema) if settings.ema else None
        self._device = learner.model.device
        self._step, self._wall_s = 0, 0.0
        self._sums, self._logged_step = torch.zeros(len(Losses._fields) + 1), 0
        self._metrics: dict[str, float] = {}

    @property
    def wall_s(self) -> float:
        """Time spent on training, over all continuations."""
        return self._wall_s

    @property
    def step(self) -> int:
        return self._step

    def restore(self) -> None:
        """Go on from the newest state of the run, if there is one.

        Raises:
            ValueError: it is that of another network.
        """
        found = states.load(self._settings.out / STATE)
        if found is None:
            return
        parameters = dict(self._learner.named_parameters())
        if parameters.keys() != found.weights.keys():
            differing = sorted(parameters.keys() ^ found.weights.keys())
            raise ValueError(f"{self._settings.out}: state of another network: {differing[:3]}")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(found.weights[name])
        if self._average is not None and found.average is not None:
            self._average.load(found.average)
        for optimizer, saved in zip(self._optimizers, found.optimizers, strict=True):
            optimizer.load_state_dict(saved)
        self._step, self._wall_s = found.step, found.progress["wall_s"]
        self._logged_step = found.progress["logged_step"]
        self._sums = torch.tensor(found.progress["sums"])
        self._metrics = found.progress["metrics"]

    def run(self) -> dict[str, float]:
        """Train to the end; the metrics of the last validation.

        Raises:
            Stopped: it was asked to.
            RuntimeError: the loss or the gradients are not finite.
        """
        settings, start = self._settings, self._step
        self._learner.train()
        begin = time.perf_counter()
        wall_s = self._wall_s
        with (
            closing(Log(settings.out, start)) as log,
            tqdm(total=settings.steps, initial=start, unit="step", disable=None) as bar,
        ):
            since = (time.perf_counter(), start)
            for parts in self._batches.run(start, settings.steps):
                self._update(parts)
                self._wall_s = wall_s + time.perf_counter() - begin
                bar.update()
                if self._is_due(settings.log_every):
                    row = self._row(since)
                    since = (time.perf_counter(), self._step)
                    log.write(self._step, "train", row)
                    bar.set_postfix(loss=f"{row['total']:.4f}")
                self._between(log)
        return self._metrics

    def _between(self, log: Log) -> None:
        """What is due after a step. The state is saved last, so that nothing is done twice."""
        settings = self._settings
        if self._is_due(settings.val_every):
            self._validate(log)
        if settings.export_every and self._step % settings.export_every == 0:
            self._with_average(lambda: self._export(self._step, self._metrics))
        is_stopped = self._is_stopped() and self._step < settings.steps
        if is_stopped or self._is_due(settings.save_every):
            self.save()
        if is_stopped:
            raise Stopped(self._step)

    def _update(self, parts: Sequence[Batch]) -> None:
        settings = self._settings
        share = optimizers.factor(self._step, settings.steps, settings.warmup)
        optimizers.set_rate(self._optimizers, share)
        for part in parts:
            losses = self._learner(part)
            losses.total.backward()
            self._sums[:-1] += torch.stack([x.detach().float() for x in losses]).cpu()
        norm = torch.nn.utils.clip_grad_norm_(
            self._learner.parameters(), settings.clip, error_if_nonfinite=True
        )
        self._sums[-1] += float(norm)
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self._average is not None:
            self._average.update(self._step)
        self._step += 1

    def _row(self, since: tuple[float, int]) -> dict[str, float]:
        """Means since the last row, and rates."""
        settings, (then, step) = self._settings, since
        means = (self._sums / (self._step - self._logged_step)).tolist()
        self._sums.zero_()
        self._logged_step = self._step
        row = dict(zip((*Losses._fields, "gradient_norm"), means, strict=True))
        row["lr"] = settings.lr * optimizers.factor(
            self._step - 1, settings.steps, settings.warmup
        )
        elapsed = max(time.perf_counter() - then, MIN_INTERVAL_S)
        row["samples_per_s"] = (self._step - step) * settings.batch_size / elapsed
        return row

    def _validate(self, log: Log) -> None:
        validation = self._validation
        if validation is None:
            return
        self._metrics = self._with_average(lambda: validation.run(self._learner))
        log.write(self._step, "val", self._metrics)

    def _with_average(self, call: Callable[[], Any]) -> Any:
        """`call()` while the learner has the averaged weights, if there are any."""
        if self._average is None:
            return call()
        self._average.swap()
        try:
            return call()
        finally:
            self._average.swap()

    def finish(self) -> None:
        """Write the last checkpoint."""
        self._with_average(lambda: self._export(self._step, self._metrics))

    def save(self) -> Path:
        progress = {
            "wall_s": self._wall_s,
            "logged_step": self._logged_step,
            "sums": self._sums.tolist(),
            "metrics": self._metrics,
        }
        weights = dict(self._learner.named_parameters())
        average = self._average.values if self._average else None
        state = State(
            self._step, weights, average, [o.state_dict() for o in self._optimizers], progress
        )
        return states.save(self._settings.out / STATE, state)

    def _is_due(self, every: int) -> bool:
        """Every so many steps, and after the last."""
        return self._step == self._settings.steps or (every > 0 and self._step % every == 0)
