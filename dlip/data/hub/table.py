"""Rows of the library `datasets` as a data set with random access: Arrow tables on disk, mapped into memory."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from dlip.common.errors import UserError
from dlip.data.annotation import Annotation
from dlip.data.batch import Example
from dlip.data.dataset import fields_of
from dlip.data.hub.load import image_folders, load, parse
from dlip.data.hub.rows import Rows
from dlip.data.stored import Stored
from dlip.data.transforms import read_image

PEEKED_IMAGES = 1000
"""Images among which captions and questions are looked for."""


class Table(Stored):
    """One split; rows with the same `id` are one image with all their texts. Faults are found by `verify`."""

    def __init__(self, name: str, split: str, on_error: str = "fatal"):
        """Raise UserError if the data set, the split, a named column or the library does not exist."""
        address, options = parse(name)
        super().__init__(Path(address).name, name, split, on_error)
        loaded = load(address, options)
        if split not in loaded:
            raise UserError(f"{name} has no split {split!r}; choose one of: {', '.join(sorted(loaded))}")
        self.data = loaded[split]
        self.rows = Rows(self.data.column_names, options, address, name)
        if self._images_are_files:
            self.rows.columns.setdefault("id", self.rows.images[0])
            self.rows.text_columns = list(dict.fromkeys([*self.rows.text_columns, self.rows.columns["id"]]))
        self._texts = self.data.select_columns(self.rows.text_columns)
        self._groups = self._group()
        self._root = image_folders(address)[0]

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, i: int) -> Example:
        about, row = self._annotation(i)
        image = read_image(about.name, self.rows.image(self.data[int(self._groups[i][0])], about.name))
        return Example(image, self.rows.image_id(row, about.name), about.captions, about.questions)

    @cached_property
    def fields(self) -> frozenset[str]:
        return fields_of(self, PEEKED_IMAGES)

    def without_image(self, i: int) -> Example:
        about, row = self._annotation(i)
        return Example(None, self.rows.image_id(row, about.name), about.captions, about.questions)

    def image_name(self, i: int) -> str:
        return self._annotation(i)[0].name

    def image_bytes(self, i: int) -> bytes:
        name = self.image_name(i)
        return self.rows.image(self.data[int(self._groups[i][0])], name)

    def text_faults(self, i: int) -> list[str]:
        return self._annotation(i)[0].faults

    def fingerprint(self) -> str:
        """Hash of the library's fingerprint, of the columns, of the rows used, and of the image files beside them."""
        rows = self._groups.tobytes() if isinstance(self._groups, np.ndarray) else repr(self._groups).encode()
        known = repr((self.data._fingerprint, self.rows.columns, [*self._files()])).encode()
        return hashlib.sha256(rows + known).hexdigest()

    def keep(self, kept: list[int]) -> None:
        groups = self._groups
        self._groups = groups[kept] if isinstance(groups, np.ndarray) else [groups[i] for i in kept]

    @property
    def _images_are_files(self) -> bool:
        """Whether the column of images holds paths; rows of one path are then one image."""
        kind = self.data.features[self.rows.images[0]]
        return not self.rows.in_shards and "dtype" in vars(kind) and kind.dtype in ("string", "large_string")

    def _group(self) -> Sequence[Sequence[int]]:
        """The rows of each image: int64 [images, 1], or lists where the data have ids."""
        column = self.rows.columns.get("id")
        if column is None:
            return np.arange(len(self.data))[:, None]
        groups: dict[object, list[int]] = {}
        for row, number in enumerate(self._texts[column]):
            groups.setdefault(("row", row) if number is None else number, []).append(row)
        return list(groups.values())

    def _annotation(self, i: int) -> tuple[Annotation, dict]:
        """The texts of image i, and its first row without the image."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        try:
            rows = [self._texts[int(row)] for row in self._groups[i]]
        except ValueError as error:
            raise UserError(f"{self.where} cannot be read ({error}); write it again") from error
        name = self.rows.name(rows[0], f"{self.name}/{self.split}/{self._groups[i][0]}")
        return self.rows.texts(name, rows), rows[0]

    def _files(self) -> Iterator[tuple[str, int, int]]:
        """Path, size and time of each image file beside the rows; none if the rows hold their images."""
        if self._images_are_files:
            for rows in self._groups:
                path = self._texts[int(rows[0])][self.rows.images[0]]
                with suppress(OSError, ValueError):
                    about = (self._root / path).stat()
                    yield path, about.st_size, about.st_mtime_ns
