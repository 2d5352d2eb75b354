"""WebDataset's shards, on disk or on the web: any sample at any time, in an order that a seed gives."""

import bisect
import hashlib
import logging
import os
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data.batch import Item
from dlip.data.quarantine import EncodedItem, QuarantineMixin, image_id_from_name, map_in_threads
from dlip.data.shards.download import Handle, cache_folder, is_url, open_shard
from dlip.data.shards.naming import INDEX, shards
from dlip.data.shards.tar_index import index, read_texts
from dlip.data.transforms import read_image

WINDOW = 10_000
"""Samples that are shuffled together; an epoch goes through shards in random order, one window after the other."""
OPEN = 32
"""Shards that are kept open."""


class Broken(UserError):
    """A sample that cannot be used, while others can."""


class Shards(QuarantineMixin):
    """A split of shards. Those on disk are indexed when opened, those on the web fetched when they are reached.

    Faults of texts are found on opening and those of pictures by `verify`, as `Folder` does. On the web both are found
    when a sample is read: with on_error "skip" the next good one stands in for it, whoever reads it and whenever, and
    it is named on standard error.
    """

    def __init__(self, name: str | Path, split: str, on_error: str = "fatal"):
        """Raises UserError where there are no such shards or no such split, or where they cannot be read or fetched."""
        super().__init__(Path(name).name or str(name), str(name), split, on_error)
        every = shards(name)
        self.shards = [shard for shard in every if shard.split == split]
        if not self.shards:
            counted = sorted(Counter(shard.split for shard in every).items())
            names = ", ".join(f"{other} ({plural(count, 'shard')})" for other, count in counted)
            raise UserError(f"{name} has no split {split!r}; choose one of those it has: {names}")
        self._samples: dict[int, np.ndarray] = {}
        self._handles: dict[int, Handle] = {}
        faults = []
        unknown = [place for place, shard in enumerate(self.shards) if not (is_url(shard.source) and shard.promised)]
        for place in tqdm(unknown, "reading shards", leave=False, disable=None):
            faults += self._index(place)
        sizes = [
            len(self._samples[place]) if place in self._samples else shard.promised["images"]
            for place, shard in enumerate(self.shards)
        ]
        self._starts = [0, *np.cumsum(sizes).tolist()]
        self._kept = np.arange(self._starts[-1])
        self._report(faults)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, i: int) -> Item:
        """Sample i, its picture decoded. Raises UserError where it cannot be read or fetched."""
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        for place in chain(range(i, len(self)), range(i)):
            try:
                return self._item(place)
            except Broken as fault:
                if self.on_error == "fatal":
                    raise
                logging.getLogger(__name__).warning("skipped: %s", fault)
        raise UserError(f"the {self.split} split of {self.where} has no usable picture left; copy it again")

    def encoded_item(self, i: int) -> EncodedItem:
        """Sample i as its shard holds it. Raises UserError where it cannot be fetched, Broken where it is not there."""
        i = int(self._kept[i])
        place = bisect.bisect_right(self._starts, i) - 1
        shard = self.shards[place]
        handle = self._open(place)
        if place not in self._samples:
            self._index(place)
        samples, row = self._samples[place], i - self._starts[place]
        if row >= len(samples):
            raise Broken(f"{shard.label} has {len(samples)} usable pictures, not all that {INDEX} names; copy it again")
        key, _, _, *places = samples[row].item()
        data, about, text = _read(handle.file, places)
        captions, questions, number, _ = read_texts(about, text)
        name = f"{shard.label}/{key.decode(errors='surrogatepass')}"
        number = image_id_from_name(name) if number is None else number
        return EncodedItem(name, number, captions, questions, data)

    @property
    def remote(self) -> bool:
        """Whether shards are on the web, so that their pictures are known when they are read."""
        return any(is_url(shard.source) for shard in self.shards)

    def verify(self) -> None:
        """Reads every picture on this disk once, so that none fails later.

        Raises UserError, as opening does, where faults are fatal or nothing is left.
        """
        if self.remote:
            return
        faults = map_in_threads(self.fault, range(len(self)), len(self))
        self._kept = self._kept[[fault is None for fault in faults]]
        self._report([fault for fault in faults if fault])

    def order(self, seed: int, epoch: int) -> list[int]:
        """A permutation of the samples, another one every epoch, in which those of a shard come near each other."""
        rng = np.random.default_rng((seed, epoch))
        rank = rng.permutation(len(self.shards))
        order = np.argsort(rank[np.searchsorted(self._starts, self._kept, "right") - 1], kind="stable")
        for start in range(0, len(order), WINDOW):
            rng.shuffle(order[start : start + WINDOW])
        return order.tolist()

    def counts(self) -> dict[str, int]:
        """Pictures, captions and questions."""
        counts = {"images": len(self), "captions": 0, "questions": 0}
        for place, shard in enumerate(self.shards):
            first, last = np.searchsorted(self._kept, self._starts[place : place + 2])
            rows, known = self._kept[first:last] - self._starts[place], self._samples.get(place)
            for noun in ("captions", "questions"):
                # a shard on the web may hold fewer than its index says
                held = shard.promised[noun] if known is None else int(known[noun][rows[rows < len(known)]].sum())
                counts[noun] += held
        return counts

    def fingerprint(self) -> str:
        """A hash of the shards' names, sizes and, on disk, times, and of which samples are used."""
        digest = hashlib.sha256(self._kept.tobytes())
        for shard in self.shards:
            stat = None if is_url(shard.source) else os.stat(shard.source)
            digest.update(repr((shard.label, shard.promised, stat and (stat.st_size, stat.st_mtime_ns))).encode())
        return digest.hexdigest()

    def _index(self, place: int) -> list[str]:
        """Finds out what a shard holds; returns its faults."""
        shard = self.shards[place]
        self._samples[place], faults = index(self._open(place).path, shard.label, cache_folder() / "indexes")
        return faults

    def _open(self, place: int) -> Handle:
        """A shard, kept open while it is one of the `OPEN` opened last."""
        handle = self._handles.get(place)
        if handle is None:
            handle = self._handles[place] = open_shard(self.shards[place].source)
            for oldest in list(self._handles)[:-OPEN]:
                self._handles.pop(oldest, None)
        return handle

    def _item(self, i: int) -> Item:
        encoded = self.encoded_item(i)
        try:
            image = read_image(encoded.name, encoded.data)
        except UserError as error:
            raise Broken(str(error)) from error
        return Item(image, encoded.image_id, encoded.captions, encoded.questions)

    def fault(self, i: int) -> str | None:
        """Why the picture of sample i cannot be used, if so. Raises what `encoded_item` raises."""
        encoded = self.encoded_item(i)
        try:
            read_image(encoded.name, encoded.data)
        except UserError as error:
            return f"{encoded.name} cannot be read ({error.__cause__})"
        return None


def _read(file: int, places: list[int]) -> list[bytes | None]:
    """The files of a sample, and nothing that lies between: `places` has the start and size of each, 0 for none."""
    return [os.pread(file, size, start) if start else None for start, size in zip(*[iter(places)] * 2, strict=True)]
