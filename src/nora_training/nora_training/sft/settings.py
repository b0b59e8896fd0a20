"""What a training run is made of, from the command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nora_core.types import Outcome
from nora_training.sft.augment import Augment

Heads = Literal["both", "flow", "fast"]
Precision = Literal["auto", "fp32", "bf16"]
# May differ between the start of a run and its continuation: they do not move a weight.
OPERATIONAL = frozenset(
    {
        "out",
        "resume",
        "save_every",
        "log_every",
        "val_every",
        "export_every",
        "trials",
        "num_threads",
    }
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Fine-tune a checkpoint on a data set; `--resume` continues a run that was stopped.

    Attributes:
        dataset: made by `nora-dataset build`.
        init: checkpoint folder to start from, in our layout.
        out: folder of the run; the result is its `checkpoint`.
        outcomes: episodes to learn from, by how they ended.
        heads: what to train: flow head, token head, or `both` (each that the network has).
        fast: FAST vocabulary for the checkpoint, of `nora-dataset fast`; that of `init` if none.
        steps: optimizer steps.
        batch_size: samples per optimizer step, over all processes.
        accumulate: parts that a process makes of its batch, to save memory.
        optimizer: `muon` takes the matrices inside of layers and leaves the rest to AdamW.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon.
        warmup: steps of linear warm-up, fewer than `steps`; then a cosine to zero.
        weight_decay: of matrices; norms and biases have none.
        clip: largest norm of the gradients.
        ema: decay of the average of the weights that is validated and exported; 0 for none.
        keyframe_weight: of an auxiliary loss that is no part of NORA-1.5: the prompt's last
            hidden state tells how far the tool moves until the gripper's next command. 0 for none.
        flow_draws: of noise and flow time per sample; the expert is cheap beside the backbone.
        shift: images are moved by up to this share of their side, at random; 0 for not.
        jitter: contrast and brightness change by up to this share, at random; 0 for not.
        lora_rank: of adapters in the language model, which is frozen otherwise, like the vision
            tower; rows of action tokens and expert are trained in full. 0: train everything.
        checkpointing: compute activations again in the backward pass, to save memory.
        precision: bf16 computes in bfloat16, weights stay float32; auto: bf16 on a GPU.
        device: auto takes a GPU if there is one.
        parallel: under `accelerate launch` or `torchrun`: ddp copies the network to every
            process, fsdp (FSDP2) spreads it over them.
        export_dtype: of the weights in the checkpoint.
        resume: continue from the newest state in `out`, or start if there is none.
        save_every: steps between states to resume from.
        log_every: steps between lines of the log.
        val_every: steps between validations, 0 for none but the last.
        val_samples: samples of the validation split, always the same.
        export_every: steps between checkpoints in `out/checkpoints`, 0 for none.
        trials: protocol of `nora-trials`, in simulation, for these checkpoints and the last one.
        num_threads: on the CPU, 0: as torch likes.
        seed: of data order, noise and flow times.
    """

    dataset: Path
    init: Path
    out: Path
    outcomes: tuple[Outcome, ...] = (Outcome.SUCCESS,)
    heads: Heads = "both"
    fast: Path | None = None
    steps: int = 10_000
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 5e-5
    muon_lr: float = 3e-3
    warmup: int = 1000
    weight_decay: float = 1e-8
    clip: float = 1.0
    ema: float = 0.0
    keyframe_weight: float = 0.0
    flow_draws: int = 1
    shift: float = 0.0
    jitter: float = 0.0
    checkpointing: bool = False
    lora_rank: int = 0
    precision: Precision = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    export_dtype: Literal["fp32", "bf16"] = "fp32"
    resume: bool = False
    save_every: int = 500
    log_every: int = 10
    val_every: int = 1000
    val_samples: int = 256
    export_every: int = 0
    trials: str | None = None
    num_threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulate", "save_every", "log_every", "val_samples")
        self._check((*counts, "flow_draws"), "at least 1", lambda x: x >= 1)
        counts = ("warmup", "val_every", "export_every", "num_threads", "seed", "lora_rank")
        weights = ("weight_decay", "keyframe_weight")
        self._check((*counts, *weights), "at least 0", lambda x: 0 <= x < math.inf)
        self._check(("lr", "muon_lr", "clip"), "a number above 0", lambda x: 0 < x < math.inf)
        self._check(("ema", "shift", "jitter"), "0 ... 1, below 1", lambda x: 0 <= x < 1)
        if self.parallel == "fsdp" and (self.lora_rank or self.optimizer == "muon"):
            raise ValueError("parallel: expected ddp with adapters or muon, got fsdp")
        if self.warmup >= self.steps:
            raise ValueError(
                f"warmup: expected fewer than the {self.steps} of --steps, got {self.warmup}: "
                "the learning rate would never fall; choose a smaller --warmup"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate: expected a divisor of batch_size {self.batch_size}, "
                f"got {self.accumulate}"
            )

    def _check(self, names: Sequence[str], wanted: str, holds: Callable[[float], bool]) -> None:
        for name in names:
            if not holds(getattr(self, name)):
                raise ValueError(f"{name}: expected {wanted}, got {getattr(self, name)}")

    @property
    def augment(self) -> Augment | None:
        """None for images as they are."""
        return Augment(self.shift, self.jitter) if self.shift or self.jitter else None

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        for name in ("dataset", "init", "out", "fast"):
            data[name] = None if data[name] is None else str(data[name])
        data["outcomes"] = [outcome.name for outcome in self.outcomes]
        return data

    def what_counts(self) -> dict[str, Any]:
        """What must be the same when a run is continued."""
        return {key: x for key, x in self.to_json().items() if key not in OPERATIONAL}
