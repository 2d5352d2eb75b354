"""Several data sets as one: captions may come from one and questions from another."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from dlip.data.annotation import image_id_from_name
from dlip.data.batch import Example
from dlip.data.dataset import DataSet, View


class Joined(View):
    """The same split of several data sets, one after the other.

    Image ids are made anew, so that no two data sets share one. Tags are dropped, since their meaning differs.
    """

    def __init__(self, datasets: list[DataSet]):
        self.datasets, self.split = datasets, datasets[0].split
        self.name = "+".join(dataset.name for dataset in datasets)

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def locate(self, i: int) -> tuple[DataSet, int]:
        place = i
        for dataset in self.datasets:
            if 0 <= place < len(dataset):
                return dataset, place
            place -= len(dataset)
        raise IndexError(f"{self.name} {self.split} has images 0 to {len(self) - 1}, not {i}")

    def __getitem__(self, i: int) -> Example:
        return self._renamed(i, super().__getitem__(i))

    def without_image(self, i: int) -> Example:
        return self._renamed(i, super().without_image(i))

    def _renamed(self, i: int, example: Example) -> Example:
        which = self.datasets.index(self.locate(i)[0])
        return replace(example, image_id=image_id_from_name(f"{which}:{example.image_id}"), tags=None)

    @property
    def fields(self) -> frozenset[str]:
        return frozenset[str]().union(*(dataset.fields for dataset in self.datasets)) - {"tags"}

    @property
    def faults(self) -> list[str]:
        return list(chain.from_iterable(dataset.faults for dataset in self.datasets))

    def check_images(self, images: int | None = None) -> None:
        for dataset in self.datasets:
            dataset.check_images(images)

    def texts(self, images: int) -> Iterator[str]:
        """The texts of the first `images` images of each data set."""
        return chain.from_iterable(dataset.texts(images) for dataset in self.datasets)

    def first(self, limit: int) -> "Joined":
        """An equal share of each data set, fewer images where one is smaller."""
        share, rest = divmod(limit, len(self.datasets))
        return Joined([dataset.first(share + (i < rest)) for i, dataset in enumerate(self.datasets)])

    def fingerprint(self) -> str:
        return hashlib.sha256(" ".join(dataset.fingerprint() for dataset in self.datasets).encode()).hexdigest()

    def order(self, seed: int, epoch: int) -> list[int]:
        """A permutation for one epoch: the data sets evenly mixed, each in its own order."""
        lengths = list(map(len, self.datasets))
        turns = np.repeat(range(len(lengths)), lengths)
        np.random.default_rng((seed, epoch)).shuffle(turns)
        mixed = np.empty(len(turns), np.int64)
        for which, dataset in enumerate(self.datasets):
            mixed[turns == which] = sum(lengths[:which]) + np.asarray(dataset.order(seed, epoch), np.int64)
        return mixed.tolist()
