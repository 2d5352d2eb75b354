"""Several data sets as one: what some have no captions of others may ask questions about."""

import hashlib
from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np

from dlip.data.batch import Item
from dlip.data.loader import epoch_order
from dlip.data.quarantine import EncodedItem, image_id_from_name
from dlip.data.shards.write import encoded_item


class JoinedDatasets:
    """The same split of several data sets, one after the other.

    A picture's number is another than in its own set, so that no two sets share one. Tags, which mean something else
    in every set, are left out. Raises IndexError beyond the last picture.
    """

    def __init__(self, datasets: list):
        self.datasets, self.split = datasets, datasets[0].split
        self.name = "+".join(dataset.name for dataset in datasets)

    @property
    def starts(self) -> list[int]:
        """The place of each set's first picture, and in the end that behind the last; `verify` may change them."""
        return [0, *accumulate(map(len, self.datasets))]

    @property
    def faults(self) -> list[str]:
        return list(chain.from_iterable(dataset.faults for dataset in self.datasets))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, i: int) -> Item:
        """Picture i. Raises what its own set raises."""
        which, place = self._find(i)
        item = self.datasets[which][place]
        return replace(item, image_id=_number(which, item.image_id), tags=None)

    def encoded_item(self, i: int) -> EncodedItem:
        """Picture i as its file holds it."""
        which, place = self._find(i)
        picture = encoded_item(self.datasets[which], place)
        return replace(picture, image_id=_number(which, picture.image_id))

    def verify(self) -> None:
        """Raises UserError as the sets do."""
        for dataset in self.datasets:
            dataset.verify()

    def counts(self) -> dict[str, int]:
        """Pictures, captions and questions."""
        counts = [dataset.counts() for dataset in self.datasets]
        return {noun: sum(count[noun] for count in counts) for noun in counts[0]}

    def fingerprint(self) -> str:
        """A hash of the sets'."""
        return hashlib.sha256(" ".join(dataset.fingerprint() for dataset in self.datasets).encode()).hexdigest()

    def order(self, seed: int, epoch: int) -> list[int]:
        """A permutation, another one every epoch: the sets mixed evenly, each in an order of its own."""
        orders = []
        for which, (dataset, start) in enumerate(zip(self.datasets, self.starts, strict=False)):
            own = getattr(dataset, "order", None)
            drawn = own(seed, epoch) if own else epoch_order(len(dataset), seed, epoch)
            orders.append((which, start + np.asarray(drawn, dtype=np.int64)))
        turns = np.repeat([which for which, _ in orders], [len(drawn) for _, drawn in orders])
        np.random.default_rng((seed, epoch)).shuffle(turns)
        mixed = np.empty(len(turns), np.int64)
        for which, drawn in orders:
            mixed[turns == which] = drawn
        return mixed.tolist()

    def _find(self, i: int) -> tuple[int, int]:
        """Picture i as a set and a place in it."""
        starts = self.starts
        if not 0 <= i < starts[-1]:
            raise IndexError(f"{self.name} {self.split} has pictures 0 to {starts[-1] - 1}, not {i}")
        which = bisect_right(starts, i) - 1
        return which, i - starts[which]


def _number(which: int, own: int) -> int:
    return image_id_from_name(f"{which}:{own}")
