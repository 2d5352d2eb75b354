"""Rows of the library `datasets` as a stream, for data that do not fit on the disk."""

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.batch import Example
from dlip.data.dataset import DataSet
from dlip.data.hub.load import load, parse
from dlip.data.hub.rows import Rows
from dlip.data.transforms import read_image

SHUFFLE_BUFFER = 1000
"""Rows among which the library draws the next one."""
PEEKED_ROWS = 100
"""Rows among which captions and questions are looked for."""


class Stream(DataSet):
    """One split, to train on: its rows in the order of the library's shuffle buffer, each an image of its own.

    Faults are found when a row is read; with on_error "skip" they are logged, and the next row takes the place.
    """

    is_stream = True

    def __init__(self, name: str, split: str, on_error: str = "fatal"):
        """Raise UserError as `Table` does."""
        address, options = parse(name)
        self.name, self.where, self.split, self.on_error = Path(address).name, name, split, on_error
        self.data, self.faults, self._state = load(name, split), [], {}
        self._rows = Rows(name, self.data.column_names or list(next(iter(self.data))))
        known = (self.data.info.splits or {}).get(split)
        self._size = int(options["rows"]) if "rows" in options else known and known.num_examples

    def __len__(self) -> int:
        """Rows of an epoch. Raises UserError where neither the user nor the library knows it."""
        if not self._size:
            raise UserError(f"{self.where} does not say how many rows it has; add &rows=N, or --limit N")
        return self._size

    def __getitem__(self, i: int) -> Example:
        raise UserError(f"{self.where} is a stream, which can only be trained on, without caches; drop stream=true")

    @cached_property
    def fields(self) -> frozenset[str]:
        return frozenset[str]().union(*(self._rows.read([row])[1].fields for row in islice(self.data, PEEKED_ROWS)))

    def fingerprint(self) -> str:
        return f"{self.where} {self.split} {self._size}"

    def texts(self, images: int) -> Iterator[str]:
        for row in islice(self.data, images):
            yield from self._rows.read([row])[1].texts()

    def first(self, limit: int) -> "Stream":
        part = copy(self)
        part.data, part._size = self.data.take(limit), limit
        return part

    def state_dict(self) -> dict:
        """Where the stream is after the last example that was read; the library's shuffle buffer is not in it."""
        return self._state

    def load_state_dict(self, state: dict) -> None:
        self._state = state

    def examples(self, seed: int, rank: int, world: int, workers: int) -> Iterator[tuple[int, Example]]:
        """(epoch, example) without end, of process `rank` of `world`, decoded by `workers` threads.

        Raises UserError at a fault if faults are fatal, or if an epoch has no usable row.
        """
        from datasets.distributed import split_dataset_by_node

        data = split_dataset_by_node(self.data, rank, world).shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        epoch, resumed = self._state.get("epoch", 0), bool(self._state)
        if resumed:
            data.load_state_dict(self._state)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            while True:
                data.set_epoch(epoch)
                usable = False
                for example, state in self._usable(data, pool, ahead=4 * workers):
                    self._state, usable = state, True
                    yield epoch, example
                if not usable and not resumed:
                    raise UserError(f"the {self.split} split of {self.where} has no usable row; check its columns")
                epoch, resumed = epoch + 1, False

    def _usable(self, data, pool: ThreadPoolExecutor, ahead: int) -> Iterator[tuple[Example, dict]]:
        """The usable rows of an epoch, decoded, each with the place of the stream behind it."""
        pending, rows = deque(), enumerate(data)
        while True:
            for number, row in islice(rows, ahead + 1 - len(pending)):
                pending.append((pool.submit(self._example, number, row), data.state_dict()))
            if not pending:
                return
            future, state = pending.popleft()
            try:
                yield future.result(), state
            except UserError as fault:
                if self.on_error == "fatal":
                    raise
                if str(fault) not in self.faults:
                    self.faults.append(str(fault))
                    logging.getLogger(__name__).warning("skipped: %s", fault)

    def _example(self, number: int, row: dict) -> Example:
        about, example = self._rows.read([row], f"{self.name}/{self.split}/{number}")
        if not example.fields:
            raise UserError(f"{'; '.join(about.faults)}; correct the row, or skip faults with --on-error skip")
        return replace(example, image=read_image(about.name, self._rows.image(row, about.name)))
