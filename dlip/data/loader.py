"""Training batches in an order that is a function of the seed, equal in a resumed run."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch.utils.data import DataLoader, Dataset

from dlip.common.errors import UserError
from dlip.data.batch import Batch
from dlip.data.collate import Collate
from dlip.data.dataset import DataSet, epoch_order


@dataclass
class ResumableBatchSampler:
    """(epoch, item) pairs of the micro-batches of each step from `start` on; process `rank` of `world` gets its part.

    A step's `batch_size` items are those of `accumulate` micro-batches, and a micro-batch's those of all processes in
    order of rank. A step never spans two epochs; the remaining items of an epoch are dropped. `order(seed, epoch)`
    permutes the items, by default `epoch_order`.
    """

    length: int
    batch_size: int
    steps: int
    seed: int
    accumulate: int = 1
    start: int = 0
    rank: int = 0
    world: int = 1
    order: Callable[[int, int], list[int]] | None = None

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        new_order, order, epoch = self.order or partial(epoch_order, self.length), [], -1
        micro = self.batch_size // self.accumulate
        size = micro // self.world
        for step in range(self.start, self.steps):
            step_epoch, place = divmod(step, self.length // self.batch_size)
            if step_epoch != epoch:
                epoch, order = step_epoch, new_order(self.seed, step_epoch)
            for i in range(self.accumulate):
                first = place * self.batch_size + i * micro + self.rank * size
                yield [(epoch, item) for item in order[first : first + size]]


class EpochItems(Dataset):
    """Items with the key (epoch, index), so that `Collate` knows their epoch."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]):
        epoch, index = key
        try:
            return epoch, index, self.dataset[index]
        except (UserError, OSError) as fault:  # raised in a worker, its message would be a traceback
            return epoch, index, fault


def train_loader(
    dataset: DataSet, batches: ResumableBatchSampler, collate: Collate, workers: int = 0
) -> Iterable[Batch | Exception]:
    """Batches in the order of `batches`, or in a stream's own; iterate over `raise_faults` of it."""
    if dataset.is_stream:
        return stream_batches(dataset, batches, collate, workers)

    def collate_epoch(samples: list) -> Batch | Exception:
        epochs, indices, items = zip(*samples, strict=True)
        if faults := [item for item in items if isinstance(item, Exception)]:
            return faults[0]
        return replace(replace(collate, epoch=epochs[0])(list(items)), index=torch.tensor(indices))

    return DataLoader(
        EpochItems(dataset),
        batch_sampler=batches,
        collate_fn=collate_epoch,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context="fork" if workers else None,
    )


def stream_batches(dataset: DataSet, batches: ResumableBatchSampler, collate: Collate, workers: int) -> Iterator[Batch]:
    """As many batches as `batches` has, each of the next images of this process's part of a stream."""
    examples = dataset.examples(batches.seed, batches.rank, batches.world, workers)
    size = batches.batch_size // batches.accumulate // batches.world
    for _ in range(len(batches)):
        epochs, drawn = zip(*islice(examples, size), strict=True)
        yield replace(collate, epoch=epochs[0])(list(drawn))


def raise_faults(loader: Iterable[Batch | Exception]) -> Iterator[Batch]:
    """The batches of a `train_loader`. Raises the UserError or OSError of an item that could not be read."""
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        yield batch


@contextmanager
def explain_killed_worker() -> Iterator[None]:
    """Raise UserError for the RuntimeError with which torch reports, anywhere, that a loader's worker was killed."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError("a data worker was killed, perhaps out of memory; use fewer --workers, or 0") from error
