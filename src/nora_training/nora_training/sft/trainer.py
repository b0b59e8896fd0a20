"""The loop: batches, gradients, optimizer steps, and what happens between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from nora_training.sft.batches import Batch, Batches
from nora_training.sft.losses import Learner, Losses
from nora_training.sft.settings import Settings
from nora_training.sft.validation import Validation
from nora_training.train import optimizer as optimizers
from nora_training.train import state as states
from nora_training.train.log import Log
from nora_training.train.optimizer import Average
from nora_training.train.parallel import Processes, fill, full, load_optimizer
from nora_training.train.state import State

STATE = "state"
MIN_INTERVAL_S = 1e-9


@dataclass(frozen=True, slots=True)
class Stopped(Exception):
    """Training was asked to stop and can be continued after `step` steps."""

    step: int


class Trainer:
    """Trains `learner` on `batches`.

    `export(step, metrics)` writes a checkpoint with the weights that the learner then has, and
    tells how it did in trials, if there were any.
    `is_stopped()` is asked after every step; the state is saved before `Stopped` is raised.
    """

    def __init__(
        self,
        settings: Settings,
        learner: Learner,
        batches: Batches,
        validation: Validation | None,
        export: Callable[[int, dict[str, float]], dict[str, float]],
        is_stopped: Callable[[], bool],
        processes: Processes,
    ) -> None:
        self._settings, self._learner, self._batches = settings, learner, batches
        self._validation, self._export, self._is_stopped = validation, export, is_stopped
        self._processes = processes
        self._call = processes.prepare(learner)
        self._optimizers = optimizers.build(learner, settings)
        self._average = Average(learner, settings.ema) if settings.ema else None
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
            ValueError: it is that of another network, or not that of the other processes.
        """
        found = states.load(self._settings.out / STATE)
        steps = self._processes.each(0 if found is None else found.step)
        if len(set(steps)) > 1:
            raise ValueError(
                f"{self._settings.out}: expected the same state in every process, got those after "
                f"steps {steps}: --out must be on a disk that all machines share"
            )
        if found is None:
            return
        parameters = self._trained()
        if parameters.keys() != found.weights.keys():
            differing = sorted(parameters.keys() ^ found.weights.keys())
            raise ValueError(f"{self._settings.out}: state of another network: {differing[:3]}")
        for name, parameter in parameters.items():
            fill(parameter, found.weights[name])
        if self._average is not None and found.average is not None:
            self._average.load(found.average)
        for optimizer, saved in zip(self._optimizers, found.optimizers, strict=True):
            load_optimizer(optimizer, saved)
        self._step, self._wall_s = found.step, found.progress["wall_s"]
        self._logged_step = found.progress["logged_step"]
        if self._processes.is_main:
            self._sums = torch.tensor(found.progress["sums"])
        self._metrics = found.progress["metrics"]

    def run(self) -> dict[str, float]:
        """Train to the end and write the last checkpoint; the metrics of the last validation.

        Raises:
            Stopped: it was asked to.
            RuntimeError: the loss or the gradients are not finite.
        """
        settings, start = self._settings, self._step
        self._learner.train()
        begin = time.perf_counter()
        wall_s, since = self._wall_s, (begin, start)
        is_main = self._processes.is_main
        hidden = None if is_main else True  # None: where there is no terminal
        with ExitStack() as stack:
            log = stack.enter_context(closing(Log(settings.out, start))) if is_main else None
            bar = stack.enter_context(
                tqdm(total=settings.steps, initial=start, unit="step", disable=hidden)
            )
            for parts in self._batches.run(start, settings.steps):
                self._update(parts)
                self._wall_s = wall_s + time.perf_counter() - begin
                bar.update()
                if self._is_due(settings.log_every):
                    row = self._row(since)
                    since = (time.perf_counter(), self._step)
                    bar.set_postfix(loss=f"{row['total']:.4f}")
                    _write(log, self._step, "train", row)
                self._between(log)
            return {**self._metrics, **self._try_out(log)}

    def _between(self, log: Log | None) -> None:
        """What is due after a step. The state is saved last, so that nothing is done twice."""
        settings = self._settings
        if self._is_due(settings.val_every):
            self._validate(log)
        is_last = self._step == settings.steps
        if not is_last and settings.export_every and self._step % settings.export_every == 0:
            self._try_out(log)
        is_asked = self._processes.any(self._is_stopped())
        is_stopped = is_asked and not is_last
        if is_stopped or self._is_due(settings.save_every):
            self.save()
        if is_stopped:
            raise Stopped(self._step)

    def _update(self, parts: Sequence[Batch]) -> None:
        settings = self._settings
        share = optimizers.factor(self._step, settings.steps, settings.warmup)
        optimizers.set_rate(self._optimizers, share)
        for number, part in enumerate(parts, start=1):
            is_last = number == len(parts)
            with nullcontext() if is_last else self._processes.accumulate(self._call):
                losses = self._call(part)
                # Gradients are averaged over the processes, but each has its part of a sum.
                (losses.total * self._processes.world).backward()
            self._sums[:-1] += torch.stack([x.detach().float() for x in losses]).cpu()
        norm = full(
            torch.nn.utils.clip_grad_norm_(
                self._learner.parameters(), settings.clip, error_if_nonfinite=True
            )
        )
        self._sums[-1] += float(norm) / self._processes.world
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self._average is not None:
            self._average.update(self._step)
        self._step += 1

    def _row(self, since: tuple[float, int]) -> dict[str, float]:
        """Means since the last row, and rates."""
        settings, (then, step) = self._settings, since
        means = (self._processes.sum(self._sums) / (self._step - self._logged_step)).tolist()
        self._sums.zero_()
        self._logged_step = self._step
        row = dict(zip((*Losses._fields, "gradient_norm"), means, strict=True))
        row["lr"] = settings.lr * optimizers.factor(
            self._step - 1, settings.steps, settings.warmup
        )
        elapsed = max(time.perf_counter() - then, MIN_INTERVAL_S)
        row["samples_per_s"] = (self._step - step) * settings.batch_size / elapsed
        return row

    def _validate(self, log: Log | None) -> None:
        validation = self._validation
        if validation is None:
            return
        self._metrics = self._with_average(lambda: validation.run(self._learner))
        _write(log, self._step, "val", self._metrics)

    def _with_average(self, call: Callable[[], Any]) -> Any:
        """`call()` while the learner has the averaged weights, if there are any."""
        if self._average is None:
            return call()
        self._average.swap()
        try:
            return call()
        finally:
            self._average.swap()

    def _try_out(self, log: Log | None) -> dict[str, float]:
        shares: dict[str, float] = self._with_average(
            lambda: self._export(self._step, self._metrics)
        )
        if shares:
            _write(log, self._step, "trials", shares)
        return shares

    def save(self) -> None:
        """All processes must call it; the first writes."""
        progress = {
            "wall_s": self._wall_s,
            "logged_step": self._logged_step,
            "sums": self._processes.sum(self._sums).tolist(),
            "metrics": self._metrics,
        }
        average = full(self._average.values) if self._average else None
        moments = [full(optimizer.state_dict()) for optimizer in self._optimizers]
        state = State(self._step, full(self._trained()), average, moments, progress)
        if self._processes.is_main:
            states.save(self._settings.out / STATE, state)
        self._processes.wait()

    def _trained(self) -> dict[str, torch.Tensor]:
        return {n: p.detach() for n, p in self._learner.named_parameters() if p.requires_grad}

    def _is_due(self, every: int) -> bool:
        """Every so many steps, and after the last."""
        return self._step == self._settings.steps or (every > 0 and self._step % every == 0)


def _write(log: Log | None, step: int, kind: str, values: dict[str, float]) -> None:
    """Only the first process has a log."""
    if log is not None:
        log.write(step, kind, values)
