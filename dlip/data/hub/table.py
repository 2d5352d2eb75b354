"""Rows of the library `datasets` as a data set with random access: Arrow tables on disk, mapped into memory."""

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from dlip.common.errors import UserError
from dlip.data.annotation import Annotation
from dlip.data.batch import Example
from dlip.data.dataset import fields_of
from dlip.data.hub.load import MADE, load, makes_splits, parse
from dlip.data.hub.rows import Rows
from dlip.data.stored import Stored
from dlip.data.transforms import read_image

PEEKED_IMAGES = 1000
"""Images among which captions and questions are looked for."""


class Table(Stored):
    """One split; rows with the same `id` are one image with all their texts. Faults are found by `verify`."""

    def __init__(self, name: str, split: str, on_error: str = "fatal"):
        """Raise UserError if the data set, the split, a named column or the library does not exist."""
        super().__init__(Path(parse(name)[0]).name, name, split, on_error)
        self.data = load(name, split)
        from datasets import Value  # not before `load`, which explains a missing library

        self.rows = Rows(name, self.data.column_names)
        kind = self.data.features[self.rows.images[0]]
        self._names_files = isinstance(kind, Value) and kind.dtype in ("string", "large_string")
        if self._names_files and "id" not in self.rows.columns:  # rows of one file are one image
            self.rows.columns["id"] = self.rows.images[0]
            self.rows.text_columns.append(self.rows.images[0])
        self._texts = self.data.select_columns(self.rows.text_columns)
        self._images = self._group(self.rows.columns.get("id"))
        if makes_splits(*parse(name)):
            warnings.warn(
                f"{name} names no splits: of each ten images eight are train, one val, one test", stacklevel=2
            )
            self.keep([i for i in range(len(self._images)) if i % 10 in MADE[split]])

    def _group(self, column: str | None) -> Sequence[Sequence[int]]:
        """The rows of each image: int64 [images, 1], or lists where the data have ids."""
        if column is None:
            return np.arange(len(self.data))[:, None]
        groups: dict[object, list[int]] = {}
        for row, number in enumerate(self._texts[column]):
            groups.setdefault(("row", row) if number is None else number, []).append(row)
        return list(groups.values())

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> Example:
        about, example = self._read(i)
        return replace(example, image=read_image(about.name, self._bytes(i, about.name)))

    @cached_property
    def fields(self) -> frozenset[str]:
        return fields_of(self, PEEKED_IMAGES)

    def without_image(self, i: int) -> Example:
        return self._read(i)[1]

    def image_name(self, i: int) -> str:
        return self._read(i)[0].name

    def image_bytes(self, i: int) -> bytes:
        return self._bytes(i, self.image_name(i))

    def text_faults(self, i: int) -> list[str]:
        return self._read(i)[0].faults

    def keep(self, kept: list[int]) -> None:
        images = self._images
        self._images = images[kept] if isinstance(images, np.ndarray) else [images[i] for i in kept]

    def fingerprint(self) -> str:
        """Hash of the library's fingerprint, of the columns, of the rows used, and of image files beside them."""
        digest = hashlib.sha256(repr((self.data._fingerprint, self.rows.columns)).encode())
        for rows in self._images:
            digest.update(np.asarray(rows).tobytes())
            if self._names_files:
                with suppress(OSError, ValueError):
                    stat = (self.rows.folders[0] / self._texts[int(rows[0])][self.rows.images[0]]).stat()
                    digest.update(repr((stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()

    def _read(self, i: int) -> tuple[Annotation, Example]:
        """The texts of image i with their faults, and the example without its image."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        try:
            rows = [self._texts[int(row)] for row in self._images[i]]
        except ValueError as error:
            raise UserError(f"{self.where} cannot be read ({error}); write it again") from error
        return self.rows.read(rows, f"{self.name}/{self.split}/{self._images[i][0]}")

    def _bytes(self, i: int, name: str) -> bytes:
        return self.rows.image(self.data[int(self._images[i][0])], name)
