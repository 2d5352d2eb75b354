"""The order of the training pictures: a pure function of the seed, the same for a run that was stopped and resumed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset

from dlip.common.errors import UserError
from dlip.data.batch import Batch
from dlip.data.collate import Collate


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the items, another one every epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(length, generator=generator).tolist()


class ResumableBatchSampler:
    """Sampler of (epoch, item) pairs from step `start` on; process `rank` of `world` gets its part of each batch.

    The parts put together in order of rank are the batch that one process alone would get. A batch never spans two
    epochs; the items left at an epoch's end sit it out. `order(seed, epoch)` permutes the items, by default as
    `epoch_order` does.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        order: Callable[[int, int], list[int]] | None = None,
    ):
        self.batch_size, self.steps, self.seed, self.start = batch_size, steps, seed, start
        self.rank, self.world = rank, world
        self.order = order or partial(epoch_order, length)
        self.per_epoch = length // batch_size

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, epoch = [], -1
        for step in range(self.start, self.steps):
            if step // self.per_epoch != epoch:
                epoch = step // self.per_epoch
                order = self.order(self.seed, epoch)
            share = self.batch_size // self.world
            at = step % self.per_epoch * self.batch_size + self.rank * share
            yield [(epoch, i) for i in order[at : at + share]]


class EpochItems(Dataset):
    """Items keyed by (epoch, index), so that what is drawn for an item may depend on the epoch."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]):
        epoch, index = key
        try:
            return epoch, index, self.dataset[index]
        except (UserError, OSError) as fault:  # a worker would raise it with its traceback for a sentence
            return epoch, index, fault


def train_loader(dataset, batches: ResumableBatchSampler, collate: Collate, workers: int = 0) -> DataLoader:
    """Batches in the order of `batches`, each drawn for its own epoch; `sound` raises what could not be drawn."""

    def collate_epoch(drawn: list) -> Batch | Exception:
        epochs, rows, items = zip(*drawn, strict=True)
        if faults := [item for item in items if isinstance(item, Exception)]:
            return faults[0]
        return replace(replace(collate, epoch=epochs[0])(list(items)), rows=torch.tensor(rows))

    return DataLoader(
        EpochItems(dataset), batch_sampler=batches, collate_fn=collate_epoch, num_workers=workers,
        pin_memory=torch.cuda.is_available(), multiprocessing_context="fork" if workers else None,
    )  # fmt: skip


@contextmanager
def explain_killed_worker() -> Iterator[None]:
    """Within it a loader's worker that is killed, of which torch tells in any line, is a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            "a process that draws pictures was killed, perhaps for want of memory; take fewer --workers, or none"
        ) from error


def raise_faults(stream: Iterator[Batch | Exception]) -> Iterator[Batch]:
    """The batches of a `train_loader`. Raises the UserError or OSError that drawing one has raised."""
    for batch in stream:
        if isinstance(batch, Exception):
            raise batch
        yield batch
