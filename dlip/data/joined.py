"""Several datasets as one: captions may come from one and questions from another."""

import hashlib
from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np

from dlip.data.batch import Example
from dlip.data.loader import epoch_order
from dlip.data.quarantine import EncodedItem, encoded_item, image_id_from_name, without_image


class JoinedDatasets:
    """The same split of several datasets, one after the other.

    Image ids are made anew, so that no two datasets share one. Tags are dropped, since their meaning differs.
    """

    def __init__(self, datasets: list):
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

    def encoded_item(self, i: int) -> EncodedItem:
        """Image i as stored."""
        which, place = self._locate(i)
        item = encoded_item(self.datasets[which], place)
        return replace(item, image_id=_joined_id(which, item.image_id))

    def text_item(self, i: int) -> Example:
        """Image i's texts alone."""
        which, place = self._locate(i)
        item = without_image(self.datasets[which], place)
        return replace(item, image_id=_joined_id(which, item.image_id), tags=None)

    def verify(self, images: int | None = None) -> None:
        """Verify every dataset; `images` counts over all of them. Raises UserError as they do."""
        for dataset, start in zip(self.datasets, self.starts, strict=False):
            dataset.verify(None if images is None else max(0, images - start))

    def counts(self) -> dict[str, int]:
        """Numbers of images, captions and questions."""
        counts = [dataset.counts() for dataset in self.datasets]
        return {noun: sum(count[noun] for count in counts) for noun in counts[0]}

    def fingerprint(self) -> str:
        """Hash of the datasets' fingerprints."""
        return hashlib.sha256(" ".join(dataset.fingerprint() for dataset in self.datasets).encode()).hexdigest()

    def order(self, seed: int, epoch: int) -> list[int]:
        """A permutation for one epoch: the datasets evenly mixed, each in its own order."""
        orders = []
        for which, (dataset, start) in enumerate(zip(self.datasets, self.starts, strict=False)):
            own = getattr(dataset, "order", None)
            items = own(seed, epoch) if own else epoch_order(len(dataset), seed, epoch)
            orders.append((which, start + np.asarray(items, dtype=np.int64)))
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
