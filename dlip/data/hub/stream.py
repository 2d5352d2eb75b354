"""Rows of the library `datasets` as a stream, for data that do not fit on the disk."""

import hashlib
import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy
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
        loaded = load(address, options)
        if split not in loaded:
            raise UserError(f"{name} has no split {split!r}; choose one of: {', '.join(sorted(loaded))}")
        self.data, self.faults, self._size, self._state = loaded[split], [], None, {}
        self._rows = Rows(self.data.column_names or list(next(iter(self.data))), options, address, name)
        if rows := options.get("rows"):
            if not rows.isdecimal() or not int(rows):
                raise UserError(f"rows={rows} is no number of rows; give how many an epoch of {name} has")
            self._size = int(rows)

    def __len__(self) -> int:
        """Rows of an epoch. Raises UserError where neither the user nor the library knows it."""
        known = (self.data.info.splits or {}).get(self.split)
        size = self._size or (known.num_examples if known else None)
        if not size:
            raise UserError(f"{self.where} does not say how many rows it has; add &rows=N, or --limit N")
        return size

    def __getitem__(self, i: int) -> Example:
        raise UserError(f"{self.where} is a stream, which can only be trained on, without caches; drop stream=true")

    @cached_property
    def fields(self) -> frozenset[str]:
        texts = [self._rows.texts("", [row]) for row in islice(self.data, PEEKED_ROWS)]
        return frozenset(noun for noun in ("captions", "questions") if any(getattr(about, noun) for about in texts))

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self.where, self.split, self._size)).encode()).hexdigest()

    def texts(self, images: int) -> Iterator[str]:
        for row in islice(self.data, images):
            about = self._rows.texts("", [row])
            yield from about.captions
            for question in about.questions:
                yield from (question.text, *question.answers)

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
        epoch = self._state.get("epoch", 0)
        if resumed := bool(self._state):
            data.load_state_dict(self._state)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            while True:
                data.set_epoch(epoch)
                usable, pending = 0, deque()
                rows = enumerate(data)
                while True:
                    for number, row in islice(rows, max(0, 4 * workers + 1 - len(pending))):
                        pending.append((pool.submit(self._example, number, row), data.state_dict()))
                    if not pending:
                        break
                    future, state = pending.popleft()
                    try:
                        example = future.result()
                    except UserError as fault:
                        if self.on_error == "fatal":
                            raise
                        if str(fault) not in self.faults:
                            self.faults.append(str(fault))
                            logging.getLogger(__name__).warning("skipped: %s", fault)
                        continue
                    self._state, usable = state, usable + 1
                    yield epoch, example
                if not usable and not resumed:
                    raise UserError(f"the {self.split} split of {self.where} has no usable row; check its columns")
                epoch, resumed = epoch + 1, False

    def _example(self, number: int, row: dict) -> Example:
        name = self._rows.name(row, f"{self.name}/{self.split}/{number}")
        about = self._rows.texts(name, [row])
        if not about.captions and not about.questions:
            raise UserError(f"{'; '.join(about.faults)}; correct the row, or skip faults with --on-error skip")
        image = read_image(name, self._rows.image(row, name))
        return Example(image, self._rows.image_id(row, name), about.captions, about.questions)
