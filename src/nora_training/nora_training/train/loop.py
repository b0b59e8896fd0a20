"""The loop of every trainer: batches, gradients, optimizer steps, logs, states, exports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from nora_core.progress import progress
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
    """Training was asked to stop and can be resumed after `step` steps."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long a run trains and what it does on the way; `out` is its folder.

    The learning rate rises over `warmup` steps and falls to zero in a cosine. `clip` limits the
    norm of the gradients. `ema` is the decay of the averaged weights, 0 for none. `..._every` are
    in optimizer steps; 0 means only after the last one. `batch_size` is of one optimizer step.
    """

    out: Path
    steps: int
    batch_size: int
    lr: float
    warmup: int
    clip: float
    ema: float
    log_every: int
    save_every: int
    val_every: int
    export_every: int


class Batches(Protocol):
    """What is trained on, by step; each step is a sequence of parts."""

    def run(self, start: int, end: int) -> Iterable[Sequence[Any]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a particular kind of training does between steps.

    `validate()` returns metrics; None: there is nothing to validate on. `export(step, metrics)`
    writes a checkpoint with the weights that the module has at that moment and returns the
    results of its trials, if there were any. `is_stopped()` is asked after every step; the state
    is saved before `Stopped` is raised.
    """

    validate: Callable[[], dict[str, float]] | None
    export: Callable[[int, dict[str, float]], dict[str, float]]
    is_stopped: Callable[[], bool]


class Trainer:
    """Trains `module` on `batches`.

    `call` is what `Processes.prepare` returned for `module`: it takes a part of a batch and
    returns its losses, a tuple of scalars named by `losses`, whose `total` is minimised.
    """

    def __init__(
        self,
        module: nn.Module,
        call: nn.Module,
        *,
        losses: tuple[str, ...],
        optimizers: list[torch.optim.Optimizer],
        schedule: Schedule,
        batches: Batches,
        hooks: Hooks,
        processes: Processes,
    ) -> None:
        self._module, self._call, self._losses = module, call, losses
        self._schedule, self._batches, self._hooks = schedule, batches, hooks
        self._processes, self._optimizers = processes, optimizers
        self._average = Average(module, schedule.ema) if schedule.ema else None
        self._step, self._wall_s = 0, 0.0
        self._sums, self._logged_step = torch.zeros(len(losses) + 1), 0
        self._metrics: dict[str, float] = {}

    @property
    def wall_s(self) -> float:
        """Time spent on training, over all continuations."""
        return self._wall_s

    @property
    def step(self) -> int:
        return self._step

    def restore(self) -> None:
        """Continue from the newest state of the run, if there is one.

        Raises:
            ValueError: it is of another network, or differs between the processes.
        """
        found = states.load(self._schedule.out / STATE)
        steps = self._processes.each(0 if found is None else found.step)
        if len(set(steps)) > 1:
            raise ValueError(
                f"{self._schedule.out}: the processes find different states, those after steps "
                f"{steps}: --out must be on a disk that all machines share"
            )
        if found is None:
            return
        parameters = self._trained()
        if parameters.keys() != found.weights.keys():
            differing = sorted(parameters.keys() ^ found.weights.keys())
            raise ValueError(
                f"{self._schedule.out}: its state is of another network: {differing[:3]}"
            )
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
            Stopped: `is_stopped` said so.
            RuntimeError: the loss or the gradients are not finite.
        """
        schedule, start = self._schedule, self._step
        self._module.train()
        begin = time.perf_counter()
        wall_s, since = self._wall_s, (begin, start)
        is_main = self._processes.is_main
        with ExitStack() as stack:
            log = stack.enter_context(closing(Log(schedule.out, start))) if is_main else None
            bar = stack.enter_context(
                progress(schedule.steps, "step", initial=start, is_hidden=not is_main)
            )
            for parts in self._batches.run(start, schedule.steps):
                self._update(parts)
                self._wall_s = wall_s + time.perf_counter() - begin
                bar.update()
                if self._is_due(schedule.log_every):
                    row = self._row(since)
                    since = (time.perf_counter(), self._step)
                    bar.set_postfix(loss=f"{row['total']:.4f}")
                    _write(log, self._step, "train", row)
                self._between(log)
            return {**self._metrics, **self._export(log)}

    def _between(self, log: Log | None) -> None:
        """Whatever is due after a step. The state is saved last, so that nothing is repeated."""
        schedule = self._schedule
        if self._is_due(schedule.val_every):
            self._validate(log)
        is_last = self._step == schedule.steps
        if not is_last and schedule.export_every and self._step % schedule.export_every == 0:
            self._export(log)
        is_asked = self._processes.any(self._hooks.is_stopped())
        is_stopped = is_asked and not is_last
        if is_stopped or self._is_due(schedule.save_every):
            self.save()
        if is_stopped:
            raise Stopped(self._step)

    def _update(self, parts: Sequence[Any]) -> None:
        schedule = self._schedule
        share = optimizers.factor(self._step, schedule.steps, schedule.warmup)
        optimizers.set_rate(self._optimizers, share)
        for number, part in enumerate(parts, start=1):
            is_last = number == len(parts)
            with nullcontext() if is_last else self._processes.accumulate(self._call):
                losses = self._call(part)
                # Gradients are averaged over processes, but each process computes a part of a sum.
                (losses.total * self._processes.world).backward()
            self._sums[:-1] += torch.stack([x.detach().float() for x in losses]).cpu()
        norm = full(
            torch.nn.utils.clip_grad_norm_(
                self._module.parameters(), schedule.clip, error_if_nonfinite=True
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
        schedule, (then, step) = self._schedule, since
        means = (self._processes.sum(self._sums) / (self._step - self._logged_step)).tolist()
        self._sums.zero_()
        self._logged_step = self._step
        row = dict(zip((*self._losses, "gradient_norm"), means, strict=True))
        row["lr"] = schedule.lr * optimizers.factor(
            self._step - 1, schedule.steps, schedule.warmup
        )
        elapsed = max(time.perf_counter() - then, MIN_INTERVAL_S)
        row["samples_per_s"] = (self._step - step) * schedule.batch_size / elapsed
        return row

    def _validate(self, log: Log | None) -> None:
        if self._hooks.validate is not None:
            self._metrics = self._with_average(self._hooks.validate)
            _write(log, self._step, "val", self._metrics)

    def _with_average(self, call: Callable[[], Any]) -> Any:
        """`call()` while the module has the averaged weights, if they are kept."""
        if self._average is None:
            return call()
        self._average.swap()
        try:
            return call()
        finally:
            self._average.swap()

    def _export(self, log: Log | None) -> dict[str, float]:
        shares: dict[str, float] = self._with_average(
            lambda: self._hooks.export(self._step, self._metrics)
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
            states.save(self._schedule.out / STATE, state)
        self._processes.wait()

    def _trained(self) -> dict[str, torch.Tensor]:
        return {n: p.detach() for n, p in self._module.named_parameters() if p.requires_grad}

    def _is_due(self, every: int) -> bool:
        """Every so many steps, and after the last."""
        return self._step == self._schedule.steps or (every > 0 and self._step % every == 0)


def _write(log: Log | None, step: int, kind: str, values: dict[str, float]) -> None:
    """Only the first process has a log."""
    if log is not None:
        log.write(step, kind, values)
