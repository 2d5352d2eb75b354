"""Several datasets as one: captions may come from one and questions from another."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np

from dlip.data.annotation import image_id_from_name
from dlip.data.batch import Example
from dlip.data.dataset import DataSet


class JoinedDatasets(DataSet):
    """The same split of several datasets, one after the other.

    Image ids are made anew, so that no two datasets share one. Tags are dropped, since their meaning differs.
    """

    def __init__(self, datasets: list[DataSet]):
        self.datasets, self.split = datasets, datasets[0].split
        self.name = "+".join(dataset.name for dataset in datasets)

    @property
    def starts(self) -> list[int]:
        """Index of each dataset's first image, and the total length; `verify` may change them."""
        return [0, *accumulate(map(len, self.datasets))]

    @property
    def faults(self) -> list[str]:
        return list(chain.from_iterable(dataset.faults for dataset in self.datasets))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, i: int) -> Example:
        """Image i. Raises what its dataset raises."""
        which, place = self._locate(i)
        item = self.datasets[which][place]
        return replace(item, image_id=_joined_id(which, item.image_id), tags=None)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset[str]().union(*(dataset.fields for dataset in self.datasets)) - {"tags"}

    def without_image(self, i: int) -> Example:
        which, place = self._locate(i)
        item = self.datasets[which].without_image(place)
        return replace(item, image_id=_joined_id(which, item.image_id), tags=None)

    def image_name(self, i: int) -> str:
        which, place = self._locate(i)
        return self.datasets[which].image_name(place)

    def image_bytes(self, i: int) -> bytes:
        which, place = self._locate(i)
        return self.datasets[which].image_bytes(place)

    def check_images(self, images: int | None = None) -> None:
        """Check every data set; `images` counts over all of them."""
        for dataset, start in zip(self.datasets, self.starts, strict=False):
            dataset.check_images(None if images is None else max(0, images - start))

    def counts(self) -> dict[str, int]:
        """Numbers of images, captions and questions."""
        counts = [dataset.counts() for dataset in self.datasets]
        return {noun: sum(count[noun] for count in counts) for noun in counts[0]}

    def texts(self, images: int) -> Iterator[str]:
        """The texts of the first `images` images of each data set."""
        return chain.from_iterable(dataset.texts(images) for dataset in self.datasets)

    def first(self, limit: int) -> "JoinedDatasets":
        """An equal share of each data set, fewer images where one is smaller."""
        share, rest = divmod(limit, len(self.datasets))
        return JoinedDatasets([dataset.first(share + (i < rest)) for i, dataset in enumerate(self.datasets)])

    def fingerprint(self) -> str:
        """Hash of the datasets' fingerprints."""
        return hashlib.sha256(" ".join(dataset.fingerprint() for dataset in self.datasets).encode()).hexdigest()

    def order(self, seed: int, epoch: int) -> list[int]:
        """A permutation for one epoch: the datasets evenly mixed, each in its own order."""
        orders = []
        for which, (dataset, start) in enumerate(zip(self.datasets, self.starts, strict=False)):
            orders.append((which, start + np.asarray(dataset.order(seed, epoch), dtype=np.int64)))
        turns = np.repeat([which for which, _ in orders], [len(items) for _, items in orders])
        np.random.default_rng((seed, epoch)).shuffle(turns)
        mixed = np.empty(len(turns), np.int64)
        for which, items in orders:
            mixed[turns == which] = items
        return mixed.tolist()

    def _locate(self, i: int) -> tuple[int, int]:
        """Index of the dataset that has image i, and the image's index in it."""
        starts = self.starts
        if not 0 <= i < starts[-1]:
            raise IndexError(f"{self.name} {self.split} has images 0 to {starts[-1] - 1}, not {i}")
        which = bisect_right(starts, i) - 1
        return which, i - starts[which]


def _joined_id(which: int, image_id: int) -> int:
    return image_id_from_name(f"{which}:{image_id}")
