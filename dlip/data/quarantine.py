"""What datasets on disk share: faults are fatal or quarantined, and images can be had as they are stored."""

import hashlib
import os
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool

from tqdm import tqdm

from dlip.common.distributed import raised_by_all, run_on_main
from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data.annotation import Annotation
from dlip.data.batch import Example, Question
from dlip.data.dataset import DataSet
from dlip.data.transforms import read_image

SUFFIX_OF_FIRST_BYTES = {
    b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp", b"II*": ".tif",
    b"MM": ".tif",
}  # fmt: skip
"""First bytes of an image file -> its suffix."""


class EmptySplitError(UserError):
    """A split has no usable image."""


@dataclass
class EncodedItem:
    """One image as stored, not decoded, with its texts."""

    name: str
    image_id: int
    captions: list[str]
    questions: list[Question]
    data: bytes
    writers: dict[str, str] = field(default_factory=dict)
    """Caption -> name of the model that wrote it; others are human."""

    def decode(self) -> Example:
        """Raise UserError if the image cannot be decoded."""
        image = read_image(self.name, self.data)
        return Example(image, self.image_id, self.captions, self.questions, writers=self.writers)


class QuarantineMixin(DataSet):
    """Fault handling of a dataset: on_error "fatal" raises at the first faults, "skip" quarantines them in `faults`."""

    def __init__(self, name: str, where: str, split: str, on_error: str):
        """where: the dataset as the user named it. Raises UserError if `on_error` is neither "fatal" nor "skip"."""
        if on_error not in ("fatal", "skip"):
            raise UserError(f"on_error cannot be {on_error!r}; choose fatal or skip")
        self.name, self.where, self.split, self.on_error = name, where, split, on_error
        self.faults: list[str] = []
        """Quarantined faults, each beginning with the name of its image."""

    def image_fault(self, i: int) -> str | None:
        """Why image i cannot be used, beginning with its name; None if it can."""
        raise NotImplementedError

    def _keep(self, kept: list[int]) -> None:
        """Restrict the dataset to these images."""
        raise NotImplementedError

    @property
    def fields(self) -> frozenset[str]:
        counts = self.counts()
        return frozenset(noun for noun in ("captions", "questions") if counts[noun])

    def encoded_item(self, i: int) -> EncodedItem:
        """Image i as stored."""
        raise NotImplementedError

    def without_image(self, i: int) -> Example:
        item = self.encoded_item(i)
        return Example(None, item.image_id, item.captions, item.questions, writers=item.writers)

    def image_name(self, i: int) -> str:
        return self.encoded_item(i).name

    def image_bytes(self, i: int) -> bytes:
        return self.encoded_item(i).data

    def check_images(self, images: int | None = None) -> None:
        """Decode every image once, so that none fails later, and quarantine those that fail.

        images: where faults are fatal, decode only this many, the first ones. Skipped ones are replaced by later ones,
        so that all are decoded. Of several processes the main one decodes. Raises UserError if faults are fatal or
        nothing is left.
        """
        checked = range(len(self))[: images if self.on_error == "fatal" else None]
        faults = run_on_main(lambda: self._image_faults(checked))
        if len(faults) != len(checked):
            raise UserError(
                f"{self.where} has {len(checked):,} images here and {len(faults):,} in the first process; copy it again"
            )
        self._keep([i for i in range(len(self)) if i not in checked or faults[i] is None])
        with raised_by_all():
            self._report([fault for fault in faults if fault is not None])

    def _image_faults(self, checked: range) -> list[str | None]:
        with ThreadPool(os.cpu_count()) as pool:  # an executor would make an object for every image beforehand
            checks = pool.imap(self.image_fault, checked, chunksize=16)
            return list(tqdm(checks, "checking images", len(checked), leave=False, disable=None))

    def _report(self, faults: list[str]) -> None:
        """Quarantine faults. Raises UserError if they are fatal, EmptySplitError if nothing is left."""
        where = f"the {self.split} split of {self.where}"
        first = "; ".join(faults[:3]) + ("; ..." if len(faults) > 3 else "")
        if faults and self.on_error == "fatal":
            raise UserError(
                f"{where} has {plural(len(faults), 'fault')}: {first}: correct the data, or skip faults with "
                f"--on-error skip"
            )
        if not len(self):
            raise EmptySplitError(f"{where} has no usable image left: {first or 'it is empty'}")
        self.faults += faults


class AnnotatedImages(QuarantineMixin):
    """A dataset whose `annotations`, one for each image, are all in memory."""

    annotations: list[Annotation]

    def _keep(self, kept: list[int]) -> None:
        self.annotations = [self.annotations[i] for i in kept]

    def __len__(self) -> int:
        return len(self.annotations)

    def without_image(self, i: int) -> Example:
        """Image i's texts alone."""
        about = self.annotations[i]
        return Example(None, image_id_from_name(about.name), about.captions, about.questions, writers=about.writers)

    def counts(self) -> dict[str, int]:
        """Numbers of images, captions and questions."""
        captions = sum(len(about.captions) for about in self.annotations)
        questions = sum(len(about.questions) for about in self.annotations)
        return {"images": len(self), "captions": captions, "questions": questions}


def image_suffix(data: bytes) -> str:
    """Suffix for the format of an image file's content: .jpg, .png, ...; .img for an unknown one."""
    return next((suffix for start, suffix in SUFFIX_OF_FIRST_BYTES.items() if data.startswith(start)), ".img")


def image_id_from_name(name: str) -> int:
    """53 bits of the hash of an image's name: the same in every run, split and folder, and exact in JSON."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()) >> 11
