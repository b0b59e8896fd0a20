"""The options of a fine-tuning run, as given on the command line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from nora_core.types import Outcome
from nora_training.sft.augment import Augment
from nora_training.train.loop import Schedule
from nora_training.train.optimizer import Kind, Rates
from nora_training.train.parallel import Parallel

Heads = Literal["both", "flow", "fast"]
Precision = Literal["auto", "fp32", "bf16"]
# May differ between the start of a run and its continuation: these change no weight.
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
AT_LEAST_1 = ("steps", "batch_size", "accumulate", "save_every", "log_every", "val_samples")
AT_LEAST_0 = ("val_every", "export_every", "num_threads", "seed", "lora_rank", "weight_decay")
MAX_WARMUP = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Fine-tune a checkpoint on a data set; `--resume` continues a run that was stopped.

    Attributes:
        dataset: folder made by `nora-dataset build`.
        init: checkpoint folder to start from.
        out: folder of the run; the result is its subfolder `checkpoint`.
        outcomes: learn from episodes that ended in one of these ways.
        heads: train the flow head, the token head (fast), or both (each that the network has).
        fast: FAST vocabulary of the checkpoint, made by `nora-dataset fast`; by default that of
            `init`.
        steps: optimizer steps.
        batch_size: samples per optimizer step, over all processes.
        accumulate: split the batch of a process into this many parts, to save memory.
        optimizer: `muon` trains the matrices inside of layers and AdamW the rest.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon.
        warmup: steps over which the learning rate rises linearly, before it falls to zero in a
            cosine; by default a tenth of the steps, at most 1000.
        weight_decay: of matrices; norms and biases have none.
        clip: largest norm of the gradients.
        ema: decay of the averaged weights that are validated and exported; 0: no average.
        keyframe_weight: weight of an auxiliary loss that is not part of NORA-1.5: the prompt's
            last hidden state predicts how far the tool moves until the next gripper command.
        flow_draws: draws of noise and flow time per sample; the expert is cheap.
        shift: move images at random by up to this fraction of their side.
        jitter: change contrast and brightness at random by up to this fraction.
        lora_rank: rank of adapters (LoRA) in the language model, which is frozen otherwise, like
            the vision tower; action tokens and expert are trained in full. 0: train everything.
        checkpointing: recompute activations in the backward pass, to save memory.
        precision: bf16 computes in bfloat16 with float32 weights; auto: bf16 on a GPU.
        device: auto uses a GPU if there is one.
        parallel: under `accelerate launch` or `torchrun`: ddp copies the network to every
            process, fsdp (FSDP2) shards it.
        export_dtype: data type of the weights in the checkpoint.
        resume: continue from the newest state in `out`, or start if there is none.
        save_every: steps between states to resume from.
        log_every: steps between lines of the log.
        val_every: steps between validations; 0: only after the last step.
        val_samples: number of validation samples, always the same ones.
        export_every: steps between checkpoints in `out/checkpoints`; 0: only the last one.
        trials: run this protocol of `nora-trials` in simulation with every checkpoint exported.
            The exported checkpoint takes the place of the first one in the protocol, with each of
            the heads that the protocol lists for it; other checkpoints are left out.
        num_threads: threads on the CPU; 0: the default of torch.
        seed: of the data order, noise and flow times.
    """

    dataset: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DATASET")]]
    init: Path
    out: Path
    outcomes: tuple[Outcome, ...] = (Outcome.SUCCESS,)
    heads: Heads = "both"
    fast: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    steps: int = 10_000
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Kind = "adamw"
    lr: float = 5e-5
    muon_lr: float = 3e-3
    warmup: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
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
    parallel: Parallel = "ddp"
    export_dtype: Literal["fp32", "bf16"] = "fp32"
    resume: bool = False
    save_every: int = 500
    log_every: int = 10
    val_every: int = 1000
    val_samples: int = 256
    export_every: int = 0
    trials: Annotated[str | None, tyro.conf.arg(metavar="PROTOCOL")] = None
    num_threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for names, wanted, holds in (
            ((*AT_LEAST_1, "flow_draws"), "at least 1", lambda x: x >= 1),
            ((*AT_LEAST_0, "keyframe_weight"), "at least 0", lambda x: 0 <= x < math.inf),
            (("lr", "muon_lr", "clip"), "a number above 0", lambda x: 0 < x < math.inf),
            (("ema", "shift", "jitter"), "from 0 to below 1", lambda x: 0 <= x < 1),
        ):
            self._check(names, wanted, holds)
        if self.num_warmup < 0:
            raise ValueError(f"warmup: must be at least 0, got {self.warmup}")
        if self.parallel == "fsdp" and (self.lora_rank or self.optimizer == "muon"):
            raise ValueError("parallel: fsdp works with neither adapters nor muon; use ddp")
        if self.num_warmup >= self.steps:
            raise ValueError(
                f"warmup: must be less than the {self.steps} of --steps, got {self.warmup}: "
                "the learning rate would never fall; choose a smaller --warmup"
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate: must divide batch_size {self.batch_size}, got {self.accumulate}"
            )

    def _check(self, names: Sequence[str], wanted: str, holds: Callable[[float], bool]) -> None:
        for name in names:
            if not holds(getattr(self, name)):
                raise ValueError(f"{name}: must be {wanted}, got {getattr(self, name)}")

    @property
    def num_warmup(self) -> int:
        """`warmup`, or its default for the number of steps."""
        return min(MAX_WARMUP, self.steps // 10) if self.warmup is None else self.warmup

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            out=self.out,
            steps=self.steps,
            batch_size=self.batch_size,
            lr=self.lr,
            warmup=self.num_warmup,
            clip=self.clip,
            ema=self.ema,
            log_every=self.log_every,
            save_every=self.save_every,
            val_every=self.val_every,
            export_every=self.export_every,
        )

    @property
    def rates(self) -> Rates:
        return Rates(lr=self.lr, muon_lr=self.muon_lr, weight_decay=self.weight_decay)

    @property
    def augment(self) -> Augment | None:
        """How training images are changed; None: not at all."""
        return Augment(self.shift, self.jitter) if self.shift or self.jitter else None

    def to_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self)
        for name in ("dataset", "init", "out", "fast"):
            data[name] = None if data[name] is None else str(data[name])
        data["warmup"] = self.num_warmup
        data["outcomes"] = [outcome.name for outcome in self.outcomes]
        return data

    def what_counts(self) -> dict[str, Any]:
        """The options that must be the same when a run is continued."""
        return {key: x for key, x in self.to_json().items() if key not in OPERATIONAL}
