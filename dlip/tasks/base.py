"""What the tasks share: a walk over the pictures of a data set, and the form of what a task finds."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from dlip.data.batch import Item


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


def batches(dataset, size: int, label: str, progress: bool) -> Iterator[list[Item]]:
    """The pictures of `dataset` in order, `size` at a time, under a progress bar on standard error."""
    with tqdm(total=len(dataset), desc=label, unit="picture", disable=not progress) as bar:
        for start in range(0, len(dataset), size):
            items = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
            yield items
            bar.update(len(items))


def percent(hits: list[float] | Tensor) -> float:
    """Mean of numbers from 0 to 1, as a percent."""
    return 100 * torch.as_tensor(hits, dtype=torch.float64).mean().item()
