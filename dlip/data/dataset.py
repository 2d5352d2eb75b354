"""What a data set is: a class with a few members of its own, and defaults for the rest."""

import hashlib
import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from dlip.common.text import one_line, plural
from dlip.data.batch import Example
from dlip.data.transforms import as_pil, load_image

if TYPE_CHECKING:
    from dlip.data.scenes.world import Scene

LISTED_FAULTS = 10
"""Faults that a warning or an error names."""


class DataSet(ABC):
    """One split of a data set. A subclass has the three attributes and the three abstract methods."""

    name: str
    split: str
    fields: frozenset[str]
    """Which of "captions", "questions" and "tags" it has, for all images or for some."""
    faults: Sequence[str] = ()
    """Images and texts that were skipped, each beginning with the image's name."""
    has_scenes = False
    """Whether `scene` knows the ground truth of every image."""
    is_stream = False
    """Whether it can only be trained on, in the order of its own `examples`."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def __getitem__(self, i: int) -> Example:
        """Image i with its texts. Raises UserError if it cannot be read, IndexError beyond the last."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes with the images and their texts; caches are named by it."""

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def without_image(self, i: int) -> Example:
        """The texts of image i; a subclass that stores images need not read this one."""
        return replace(self[i], image=None)

    def image_name(self, i: int) -> str:
        """What faults call image i."""
        return f"{self.split}-{i}"

    def image_bytes(self, i: int) -> bytes:
        """Image i as a file, by default a PNG of its pixels."""
        data = io.BytesIO()
        as_pil(self[i].image).save(data, "PNG")
        return data.getvalue()

    def scene(self, i: int) -> "Scene | None":
        """The ground truth of image i, where it is known."""
        return None

    def order(self, seed: int, epoch: int) -> list[int]:
        """A permutation of the images for one epoch."""
        return epoch_order(len(self), seed, epoch)

    def counts(self) -> dict[str, int]:
        """Numbers of images, captions and questions."""
        counts = {"images": len(self), "captions": 0, "questions": 0}
        for i in range(len(self)):
            example = self.without_image(i)
            counts["captions"] += len(example.captions)
            counts["questions"] += len(example.questions)
        return counts

    def texts(self, images: int) -> Iterator[str]:
        """Captions, questions and answers of the first `images` images."""
        for i in range(min(images, len(self))):
            yield from self.without_image(i).texts()

    def first(self, limit: int) -> "DataSet":
        """The first `limit` images."""
        return FirstN(self, limit)

    def first_with(self, noun: str, count: int) -> "DataSet":
        """The first images, as many as hold `count` with "captions" or "questions"."""
        indices = (i for i in range(len(self)) if noun in self.without_image(i).fields)
        return self.first(next((i + 1 for i in islice(indices, count - 1, None)), len(self)))

    def state_dict(self) -> dict:
        """What a resumed run needs to continue in the data, as JSON; nothing where images are read by index."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state_dict` was called."""
        return None

    def check_images(self, images: int | None = None) -> None:
        """Decode the first `images` images, or all, so that none fails later; by default they are known to be good."""
        return None

    def verify(self) -> Sequence[str]:
        """Check every image. Returns the faults that were skipped, and warns of them.

        Raises UserError if faults are fatal or no image is left.
        """
        self.check_images()
        if self.faults:
            more = "; ..." * (len(self.faults) > LISTED_FAULTS)
            named = one_line("; ".join(self.faults[:LISTED_FAULTS]) + more)
            skipped = plural(len(self.faults), "fault")
            warnings.warn(f"skipped {skipped} in the {self.split} split of {self.name}: {named}", stacklevel=2)
        return self.faults


class View(DataSet):
    """Images of other data sets."""

    @abstractmethod
    def locate(self, i: int) -> tuple[DataSet, int]:
        """The data set of image i, and its place there. Raises IndexError beyond the last."""

    def __getitem__(self, i: int) -> Example:
        dataset, place = self.locate(i)
        return dataset[place]

    def without_image(self, i: int) -> Example:
        dataset, place = self.locate(i)
        return dataset.without_image(place)

    def image_name(self, i: int) -> str:
        dataset, place = self.locate(i)
        return dataset.image_name(place)

    def image_bytes(self, i: int) -> bytes:
        dataset, place = self.locate(i)
        return dataset.image_bytes(place)

    def scene(self, i: int) -> "Scene | None":
        dataset, place = self.locate(i)
        return dataset.scene(place)


class FirstN(View):
    """The first `limit` images of a data set."""

    def __init__(self, dataset: DataSet, limit: int):
        self.dataset, self.limit, self.name, self.split = dataset, limit, dataset.name, dataset.split
        self.has_scenes = dataset.has_scenes

    def __len__(self) -> int:
        return min(self.limit, len(self.dataset))

    def locate(self, i: int) -> tuple[DataSet, int]:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.dataset, i

    @property
    def fields(self) -> frozenset[str]:
        return self.dataset.fields & (fields_of(self, len(self)) | {"tags"})

    @property
    def faults(self) -> Sequence[str]:
        return self.dataset.faults

    def fingerprint(self) -> str:
        return f"{self.dataset.fingerprint()} {len(self)}"

    def order(self, seed: int, epoch: int) -> list[int]:
        """The data set's own order, without the other images."""
        return [i for i in self.dataset.order(seed, epoch) if i < self.limit]

    def check_images(self, images: int | None = None) -> None:
        self.dataset.check_images(len(self) if images is None else min(images, len(self)))


class Examples(DataSet):
    """A list of examples as a data set; those without an `image_id` are numbered."""

    def __init__(self, examples: Iterable[Example], name: str = "examples", split: str = "train"):
        self.name, self.split = name, split
        self.examples = [
            replace(example, image_id=i) if example.image_id is None else example for i, example in enumerate(examples)
        ]
        self.fields = frozenset[str]().union(*(example.fields for example in self.examples))

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.examples[i]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(repr(replace(example, image=None)).encode(errors="surrogatepass"))
            if example.image is not None:
                digest.update(np.asarray(load_image(example.image)).tobytes())
        return digest.hexdigest()


def fields_of(dataset: DataSet, images: int) -> frozenset[str]:
    """Which of "captions" and "questions" the first `images` images have."""
    found: frozenset[str] = frozenset()
    for i in range(min(images, len(dataset))):
        found |= dataset.without_image(i).fields
        if {"captions", "questions"} <= found:
            break
    return found


def epoch_order(length: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the items, another one every epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(length, generator=generator).tolist()
