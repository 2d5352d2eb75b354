"""Training with several processes: collectives within a step, and waits between steps.

Within `global_batch` a loss is that of the batches of all processes together. Outside of it, or with one process, the
collectives return their input and communicate nothing, so the main process can evaluate a model while the others wait.
DistributedDataParallel averages gradients over the processes, so each process scales its loss such that the mean over
processes is the loss of the global batch.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dlip.common.errors import UserError

T = TypeVar("T")
MAIN_TIMEOUT = timedelta(days=30)
"""How long processes wait for the main one, which may evaluate for hours; collectives within a step keep torch's."""
_in_global_batch = False


def join() -> None:
    """Join the other processes that `accelerate launch` or `torchrun` started, as `Accelerator` does later."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState  # takes a second
        from accelerate.utils import parse_flag_from_env

        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        PartialState(cpu=cpu)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; 0 is the main one."""
    return dist.get_rank() if dist.is_initialized() else 0


# --- within a step ----------------------------------------------------------------------------------------------------


@contextmanager
def global_batch() -> Iterator[None]:
    """The batches of all processes form one batch; each has the same number of rows and the same caption length."""
    global _in_global_batch
    before, _in_global_batch = _in_global_batch, world_size() > 1
    try:
        yield
    finally:
        _in_global_batch = before


def batch_world_size() -> int:
    """Number of processes that share the batch: 1 outside of `global_batch`."""
    return world_size() if _in_global_batch else 1


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


def all_gather(x: Tensor) -> Tensor:
    """Rows [B, ...] of every process in order of rank, [world_size * B, ...]; gradients flow back to their process."""
    return _AllGather.apply(x.contiguous()) if _in_global_batch else x


def all_sum(x: Tensor) -> Tensor:
    """Sum over processes, with gradients."""
    return all_gather(x[None]).sum(0) if _in_global_batch else x


def global_mean(summed: Tensor, count: Tensor) -> Tensor:
    """`summed` / `count` over the global batch, times the number of processes, over which DDP takes the mean.

    0 for count 0.
    """
    return summed * batch_world_size() / all_sum(count).clamp(min=1)


def broadcast_from_main(x: Tensor) -> Tensor:
    """Overwrite `x` with the main process's tensor of the same shape."""
    if _in_global_batch:
        dist.broadcast(x, 0)
    return x


# --- between steps ----------------------------------------------------------------------------------------------------


@contextmanager
def raised_by_all() -> Iterator[None]:
    """Mark an error raised within as `shared`: every process raises it, and one reports it."""
    try:
        yield
    except (UserError, OSError) as error:
        error.shared = True
        raise


@cache
def _long_timeout_group() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=MAIN_TIMEOUT)


def run_on_main(function: Callable[[], T]) -> T:
    """Call `function` in the main process and return its result in all; the others wait up to `MAIN_TIMEOUT`.

    A UserError or OSError that it raises is raised in all of them, marked as `shared`.
    """
    if world_size() == 1:
        return function()
    result: list = [None, None]
    if rank() == 0:
        try:
            result[0] = function()
        except (UserError, OSError) as error:
            result[1] = error
    dist.broadcast_object_list(result, 0, _long_timeout_group())
    if result[1] is not None:
        with raised_by_all():
            raise result[1]
    return result[0]


def gather_to_main(value: T) -> list[T] | None:
    """Every process's value by rank in the main process, None in the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values, 0, _long_timeout_group())
    return values
