"""What the tasks share: batches of a data set with progress, and the form of a result."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from dlip.data.batch import Example

Progress = bool | Callable[[float], object]
"""Whether to show a bar on standard error, or a function that is called with the fraction done, 0 to 1."""


class MetricUnavailable(Exception):
    """Why a metric cannot be computed."""


@dataclass
class TaskResult:
    """Metrics of a model on one task, with the items behind them."""

    metrics: dict
    """Percents by name; None for a metric that could not be computed."""
    items: dict[str, list[dict]]
    """Table -> one row for each image, caption or question, for paired bootstraps and disagreements."""
    notes: dict[str, str] = field(default_factory=dict)
    """Name of a metric -> why it is None, or what limits it."""


@contextmanager
def counter(total: int, label: str, progress: Progress) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with the number of images done since its last call."""
    done = 0

    def update(count: int) -> None:
        nonlocal done
        done += count
        progress(done / total)

    if callable(progress):
        yield update
    else:
        with tqdm(total=total, desc=label, unit="image", disable=not progress) as bar:
            yield bar.update


def subrange(progress: Progress, start: float, end: float) -> Progress:
    """Progress of a part that goes from the fraction `start` to `end` of the whole."""
    return (lambda fraction: progress(start + fraction * (end - start))) if callable(progress) else progress


def batches(dataset, size: int, label: str, progress: Progress) -> Iterator[list[Example]]:
    """The items of `dataset` in order, `size` at a time."""
    with counter(len(dataset), label, progress) as update:
        for start in range(0, len(dataset), size):
            items = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
            yield items
            update(len(items))


def percent(values: list[float] | Tensor) -> float:
    """Mean of values from 0 to 1, as a percent."""
    return 100 * torch.as_tensor(values, dtype=torch.float64).mean().item()
