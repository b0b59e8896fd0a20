"""Training in one process or in many, with DDP or FSDP2.

`accelerate launch` or `torchrun` start many; in a single process these functions do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

Parallel = Literal["ddp", "fsdp"]
# The other processes wait for the first while it runs trials, which can take hours. The default
# of NCCL would end them after 10 minutes.
TIMEOUT = timedelta(days=7)


class Processes:
    """This process among those of the run.

    Args:
        parallel: ddp gives every process the network, fsdp a part of each layer.
        device: auto takes a GPU if there is one.
        has_unused: whether some trained parameters get no gradients.
    """

    def __init__(
        self, parallel: Parallel, device: Literal["auto", "cpu", "cuda"], *, has_unused: bool
    ) -> None:
        has_cuda = torch.cuda.is_available()
        if device == "cuda" and not has_cuda:
            raise ValueError("device: there is no CUDA GPU; use auto or cpu")
        ddp = DistributedDataParallelKwargs(find_unused_parameters=has_unused)
        self._accelerator = Accelerator(
            cpu=device == "cpu" or not has_cuda,
            mixed_precision="no",
            kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=TIMEOUT)],
        )
        self._is_sharded = parallel == "fsdp"
        if self._is_sharded and self.world == 1:
            raise ValueError("parallel: fsdp needs several processes; start them with torchrun")

    @property
    def rank(self) -> int:
        return int(self._accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self._accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        device: torch.device = self._accelerator.device
        return device

    def prepare(
        self, module: nn.Module, layers: Sequence[nn.Module], methods: Sequence[str]
    ) -> nn.Module:
        """Move `module` to the device and return what to call instead of it in training.

        `layers` are sharded one by one; `methods` are called besides `forward`. FSDP2 comes from
        torch itself: accelerate offers it on GPUs only.
        """
        if not self._is_sharded:
            wrapped: nn.Module = self._accelerator.prepare_model(module)
            return wrapped
        module.to(self.device)
        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        # By default the root stays unsharded until a backward pass: after a validation of averaged
        # weights, the next step would train those.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for name in methods:
            register_fsdp_forward_method(module, name)
        return module

    @contextmanager
    def accumulate(self, wrapped: nn.Module) -> Iterator[None]:
        """Within the block gradients are not exchanged between processes."""
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(False)
            yield
            wrapped.set_requires_gradient_sync(True)
        else:
            with self._accelerator.no_sync(wrapped):
                yield

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the processes, on the CPU."""
        if self.world == 1:
            return x
        total: torch.Tensor = self._accelerator.reduce(x.to(self.device, copy=True), "sum")
        return total.cpu()

    def any(self, flag: bool) -> bool:
        """Whether it is set in one of the processes."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def each(self, number: int) -> list[int]:
        """The numbers of all processes, by rank."""
        numbers = torch.zeros(self.world, dtype=torch.int64)
        numbers[self.rank] = number
        return [int(x) for x in self.sum(numbers)]

    def wait(self) -> None:
        """Block until every process is here."""
        self._accelerator.wait_for_everyone()

    def end(self) -> None:
        """Leave the process group; nothing can be exchanged afterwards."""
        self._accelerator.end_training()


def is_first() -> bool:
    """Whether torchrun or `accelerate launch` started this process as the first one."""
    return os.environ.get("RANK", "0") == "0"


def full(x: Any) -> Any:
    """`x` with every sharded tensor gathered; all processes must call it."""
    if isinstance(x, DTensor):
        return x.full_tensor()
    if isinstance(x, dict):
        return {key: full(value) for key, value in x.items()}
    if isinstance(x, list):
        return [full(value) for value in x]
    return x


@torch.no_grad()
def fill(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """Copy a full tensor into a parameter that may be sharded."""
    parameter.copy_(_like(value, parameter))


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Restore an optimizer state of full tensors, sharding them where needed."""
    optimizer.load_state_dict(saved)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    optimizer.state[parameter][key] = _like(value, parameter)


def _like(value: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    if not isinstance(reference, DTensor):
        return value
    whole = value.to(reference.device)
    return distribute_tensor(whole, reference.device_mesh, reference.placements)
