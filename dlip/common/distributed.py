"""Several processes that learn from one batch together: what they gather of each other, and how they wait.

Inside `together` a loss is that of the batch of all processes; a process alone, or outside of it, sees its own batch
and sends nothing, so that one may measure a model while the others wait. Gradients are averaged over the processes
afterwards (DistributedDataParallel), so that each process's loss is scaled to make their mean the whole batch's loss.
"""

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
WAIT = timedelta(days=30)
"""How long processes wait for the main one, which may evaluate for hours; waits within a step have the usual limit."""
_joint = False


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which process this is, 0 being the main one."""
    return dist.get_rank() if dist.is_initialized() else 0


# --- within a step ----------------------------------------------------------------------------------------------------


@contextmanager
def together() -> Iterator[None]:
    """Within it all processes have one batch; each has as many rows of it, and captions of the same length."""
    global _joint
    before, _joint = _joint, processes() > 1
    try:
        yield
    finally:
        _joint = before


def sharers() -> int:
    """Processes that share the batch."""
    return processes() if _joint else 1


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(processes())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(processes())[rank()]


def gather(x: Tensor) -> Tensor:
    """Rows [B, ...] of every process in order of rank, [processes * B, ...]; each row's gradient goes back to it."""
    return _Gather.apply(x.contiguous()) if _joint else x


def total(x: Tensor) -> Tensor:
    """The sum over processes, with gradients."""
    return gather(x[None]).sum(0) if _joint else x


def mean(summed: Tensor, count: Tensor) -> Tensor:
    """`summed` / `count` over the batch of all processes: the mean over processes of what each gets; 0 of nothing."""
    return summed * sharers() / total(count).clamp(min=1)


def mains(x: Tensor) -> Tensor:
    """What the main process has in place of `x`, which has the same shape in all."""
    if _joint:
        dist.broadcast(x, 0)
    return x


# --- between steps ----------------------------------------------------------------------------------------------------


@cache
def _patient() -> dist.ProcessGroup:
    return dist.new_group(backend="gloo", timeout=WAIT)


def on_main(function: Callable[[], T]) -> T:
    """What `function` returns in the main process, to all of them; the others wait, however long it takes.

    Raises in all of them the UserError or OSError that it raises.
    """
    if processes() == 1:
        return function()
    box: list = [None, None]
    group = _patient()
    if rank() == 0:
        try:
            box[0] = function()
        except (UserError, OSError) as mistake:
            box[1] = mistake
    dist.broadcast_object_list(box, 0, group)
    if box[1] is not None:
        raise box[1]
    return box[0]


def to_main(value: T) -> list[T] | None:
    """Every process's value by rank in the main process, None in the others."""
    if processes() == 1:
        return [value]
    found = [None] * processes() if rank() == 0 else None
    dist.gather_object(value, found, 0, _patient())
    return found
