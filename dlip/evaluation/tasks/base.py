"""What the tasks share: a walk over the pictures of a data set, and the form of what a task finds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from dlip.data.batch import Item

Progress = bool | Callable[[float], object]
"""Whether a bar on standard error shows what is done, or what is called with the share done, 0 to 1."""


class Unavailable(Exception):
    """Why a figure cannot be computed here."""


@dataclass
class Outcome:
    """What one task found of one model on one data set."""

    figures: dict
    """Percents by name; None for a metric that could not be computed."""
    rows: dict[str, list[dict]]
    """Table -> one row a picture, query or question, for paired bootstraps and to look at disagreements."""
    notes: dict[str, str] = field(default_factory=dict)
    """Name of a figure -> why it is None, or what to know about it."""


@contextmanager
def counted(total: int, label: str, progress: Progress) -> Iterator[Callable[[int], object]]:
    """Yields what is called with how many more of the `total` pictures are done."""
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress(done / total)

    if callable(progress):
        yield more
    else:
        with tqdm(total=total, desc=label, unit="picture", disable=not progress) as bar:
            yield bar.update


def within(progress: Progress, start: float, end: float) -> Progress:
    """Progress of what is done from `start` to `end` of the whole."""
    return (lambda share: progress(start + share * (end - start))) if callable(progress) else progress


def batches(dataset, size: int, label: str, progress: Progress) -> Iterator[list[Item]]:
    """The pictures of `dataset` in order, `size` at a time."""
    with counted(len(dataset), label, progress) as more:
        for start in range(0, len(dataset), size):
            items = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
            yield items
            more(len(items))


def percent(hits: list[float] | Tensor) -> float:
    """Mean of numbers from 0 to 1, as a percent."""
    return 100 * torch.as_tensor(hits, dtype=torch.float64).mean().item()
