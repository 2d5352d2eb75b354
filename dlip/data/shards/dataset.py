"""WebDataset shards, on disk or on the web, with random access: any sample at any time, in an order set by a seed."""

import bisect
import hashlib
import logging
import os
from collections import Counter
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data.batch import Example
from dlip.data.quarantine import EmptySplitError, EncodedItem, QuarantineMixin, image_id_from_name
from dlip.data.shards.download import cache_folder, is_url, open_shard
from dlip.data.shards.naming import INDEX, shards
from dlip.data.shards.tar_index import parse_sample, sample_index

SHUFFLE_WINDOW = 10_000
"""Samples shuffled together; an epoch reads the shards in random order, window after window."""
MAX_OPEN = 32
"""Shards kept open."""


class BadSampleError(UserError):
    """A sample that cannot be used, while others can."""


class Shards(QuarantineMixin):
    """One split of a set of shards.

    Shards on disk are indexed when the dataset is opened; faults of texts are found then, faults of images by `verify`.
    A shard on the web is downloaded when one of its samples is first read, and its faults are found then: with on_error
    "skip" the fault is logged, and the next good sample always takes the place of the bad one.
    """

    def __init__(self, name: str | Path, split: str, on_error: str = "fatal"):
        """Raise UserError if the shards or the split do not exist or cannot be read."""
        super().__init__(Path(name).name or str(name), str(name), split, on_error)
        every = shards(name)
        self.shards = [shard for shard in every if shard.split == split]
        if not self.shards:
            counts = sorted(Counter(shard.split for shard in every).items())
            names = ", ".join(f"{other} ({plural(count, 'shard')})" for other, count in counts)
            raise UserError(f"{name} has no split {split!r}; choose one of: {names}")
        self._samples: dict[int, np.ndarray] = {}
        self._open = lru_cache(MAX_OPEN)(
            lambda place, shards=self.shards: open_shard(
                shards[place].source, (shards[place].indexed or {}).get("bytes")
            )
        )
        faults = []
        unknown = [place for place, shard in enumerate(self.shards) if not (is_url(shard.source) and shard.indexed)]
        for place in tqdm(unknown, "reading shards", leave=False, disable=None):
            faults += self._index(place)
        sizes = [
            len(self._samples[place]) if place in self._samples else shard.indexed["images"]
            for place, shard in enumerate(self.shards)
        ]
        self._starts = [0, *np.cumsum(sizes).tolist()]
        self._kept = np.arange(self._starts[-1])
        self._report(faults)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, i: int) -> Example:
        """Sample i with its image decoded. Raises UserError if it cannot be read or downloaded."""
        return self._usable(i)[1]

    def encoded_item(self, i: int) -> EncodedItem:
        """What `__getitem__` decodes, as it is stored. Raises as it does."""
        return self._usable(i)[0] if self.remote else self._stored(i)

    def _usable(self, i: int) -> tuple[EncodedItem, Example]:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        for place in chain(range(i, len(self)), range(i)):
            try:
                item = self._stored(place)
                return item, _decoded(item)
            except BadSampleError as fault:
                if self.on_error == "fatal":
                    raise
                logging.getLogger(__name__).warning("skipped: %s", fault)
        raise EmptySplitError(f"the {self.split} split of {self.where} has no usable image left; copy it again")

    def _stored(self, i: int) -> EncodedItem:
        """Sample i as stored. Raises UserError if its shard cannot be read, BadSampleError if the shard lacks it."""
        i = int(self._kept[i])
        place = bisect.bisect_right(self._starts, i) - 1
        shard, file = self.shards[place], self._open(place)
        if place not in self._samples:
            self._index(place)
        samples, row = self._samples[place], i - self._starts[place]
        if row >= len(samples):
            raise BadSampleError(
                f"{shard.label} has {plural(len(samples), 'usable image')}, fewer than {INDEX} says; copy it again"
            )
        key, _, _, *places = samples[row].item()
        data, about, text = _read_files(file, places)
        name = f"{shard.label}/{key.decode(errors='surrogatepass')}"
        texts, number = parse_sample(name, about, text)
        number = image_id_from_name(name) if number is None else number
        return EncodedItem(name, number, texts.captions, texts.questions, data, texts.writers)

    @property
    def remote(self) -> bool:
        """Whether some shards are on the web, so that their faults are found only when they are read."""
        return any(is_url(shard.source) for shard in self.shards)

    def check_images(self, images: int | None = None) -> None:
        """Check images, unless some shards are on the web."""
        if not self.remote:
            super().check_images(images)

    def order(self, seed: int, epoch: int) -> list[int]:
        """A permutation of the samples for one epoch; samples of one shard stay near each other."""
        rng = np.random.default_rng((seed, epoch))
        rank = rng.permutation(len(self.shards))
        order = np.argsort(rank[np.searchsorted(self._starts, self._kept, "right") - 1], kind="stable")
        for start in range(0, len(order), SHUFFLE_WINDOW):
            rng.shuffle(order[start : start + SHUFFLE_WINDOW])
        return order.tolist()

    def counts(self) -> dict[str, int]:
        """Numbers of images, captions and questions."""
        counts = {"images": len(self), "captions": 0, "questions": 0}
        for place, shard in enumerate(self.shards):
            first, last = np.searchsorted(self._kept, self._starts[place : place + 2])
            rows, samples = self._kept[first:last] - self._starts[place], self._samples.get(place)
            for noun in ("captions", "questions"):
                # a shard on the web may hold fewer samples than its index says
                counts[noun] += (
                    shard.indexed[noun] if samples is None else int(samples[noun][rows[rows < len(samples)]].sum())
                )
        return counts

    def fingerprint(self) -> str:
        """Hash of the shards' names, and of which samples are used; on disk also of sizes and times, on the web of
        addresses where no index tells sizes."""
        digest = hashlib.sha256(self._kept.tobytes())
        for shard in self.shards:
            if is_url(shard.source):
                about = None if shard.indexed else shard.source.partition("?")[0]
            else:
                stat = os.stat(shard.source)
                about = stat.st_size, stat.st_mtime_ns
            digest.update(repr((shard.label, shard.indexed, about)).encode())
        return digest.hexdigest()

    def image_fault(self, i: int) -> str | None:
        """Why the image of sample i cannot be decoded, None if it can. Raises what `_stored` raises."""
        item = self._stored(i)
        try:
            item.decode()
        except UserError as error:
            return f"{item.name} cannot be read ({error.__cause__})"
        return None

    def _keep(self, kept: list[int]) -> None:
        self._kept = self._kept[kept]

    def _index(self, place: int) -> list[str]:
        """Index the samples of a shard; returns its faults."""
        path, label = Path(self._open(place).name), self.shards[place].label
        self._samples[place], faults = sample_index(path, label, cache_folder() / "indexes")
        return faults


def _decoded(item: EncodedItem) -> Example:
    try:
        return item.decode()
    except UserError as error:
        raise BadSampleError(str(error)) from error


def _read_files(shard: BinaryIO, places: list[int]) -> list[bytes | None]:
    """The files of a sample; `places` has the offset and size of each, 0 for a file that the sample lacks."""
    return [
        os.pread(shard.fileno(), size, start) if start else None
        for start, size in zip(places[::2], places[1::2], strict=True)
    ]
