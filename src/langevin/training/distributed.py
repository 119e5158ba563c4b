"""Several processes, started by `torchrun`: what is said to torch.distributed. Alone, everything here does nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar, assert_never

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from langevin.training.blocks import blocks

T = TypeVar("T")


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Join the processes that torchrun has started, for the time of the block; yields this one's device.

    On the CPU they speak through gloo, GPUs through NCCL, one process a GPU. Alone, or inside such a block, nothing is
    done.
    """
    if active() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.startswith("cuda"):
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number; 0 writes, prints and draws."""
    return dist.get_rank() if active() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if active() else 1


def share(samples: Sequence[T]) -> list[T]:
    """This process's part of a list: the parts follow one another and are equally long."""
    each = len(samples) // world()
    return list(samples[rank() * each : (rank() + 1) * each])


def wait() -> None:
    """Until every process has come here."""
    if active():
        dist.barrier()


def anywhere(flag: bool) -> bool:
    """Whether it is so in any process: the same answer in all."""
    if not active():
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def mean(figures: Mapping[str, float]) -> dict[str, float]:
    """The mean over the processes of each figure."""
    if not active():
        return dict(figures)
    values = torch.tensor(list(figures.values()), dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(figures, (values / world()).tolist(), strict=True))


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes in the order of their numbers, W*B ..., from this one's B ...; gradients flow back."""
    if not active():
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(x.contiguous()))


class Runner(nn.Module):
    """Calls a function of the weights inside `forward`, where DistributedDataParallel and FSDP2 have their hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def spread(module: nn.Module, parallel: Literal["ddp", "fsdp"], device: str) -> nn.Module:
    """A `Runner` of the module over all processes. FSDP2 makes the module's own parameters sharded ones, by block."""
    runner = Runner(module)
    if world() == 1:
        return runner
    match parallel:
        case "ddp":
            # A loss may leave parameters out at some steps (a discriminator that starts late).
            return nn.parallel.DistributedDataParallel(runner, broadcast_buffers=False, find_unused_parameters=True)
        case "fsdp":
            shard(runner, device)
            return runner
        case _:
            assert_never(parallel)


def shard(module: nn.Module, device: str) -> None:
    """FSDP2: each block a unit of its own, the rest of the module another."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (world(),))
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def without_exchange(runner: nn.Module) -> AbstractContextManager[None]:
    """Gradients are only added up, not yet exchanged. (FSDP2 exchanges every time: it keeps no whole gradients.)"""
    held: AbstractContextManager[None] = (
        runner.no_sync() if isinstance(runner, nn.parallel.DistributedDataParallel) else nullcontext()
    )
    return held


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, in the same memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sharded tensors put together, which every process has to ask for; others as they are. All contiguous."""
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().contiguous() for name, t in tensors.items()
    }


def laid_out_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor cut as `reference` is and with its order in memory, if both have the same shape."""
    if tensor.shape != reference.shape or not tensor.ndim:
        return tensor
    if isinstance(reference, DTensor):
        return distribute_tensor(tensor.to(reference.device), reference.device_mesh, reference.placements)
    return torch.empty_like(reference, dtype=tensor.dtype).copy_(tensor)  # torch's fused AdamW takes it for granted
