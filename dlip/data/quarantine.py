"""What datasets on disk share: faults are fatal or quarantined, and images can be had as they are stored."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data.batch import Question

T = TypeVar("T")
SUFFIXES = {
    b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp", b"II*": ".tif",
    b"MM": ".tif",
}  # fmt: skip
"""First bytes of an image file -> its suffix."""


@dataclass
class EncodedItem:
    """One image as stored, not decoded, with its texts."""

    name: str
    image_id: int
    captions: list[str]
    questions: list[Question]
    data: bytes

    @property
    def suffix(self) -> str:
        """Suffix for the format of `data`: .jpg, .png, ...; .img for an unknown one."""
        return next((suffix for start, suffix in SUFFIXES.items() if self.data.startswith(start)), ".img")


class QuarantineMixin:
    """Fault handling of a dataset: on_error "fatal" raises at the first faults, "skip" quarantines them in `faults`."""

    def __init__(self, name: str, where: str, split: str, on_error: str):
        """where: the dataset as the user named it. Raises UserError if `on_error` is neither "fatal" nor "skip"."""
        if on_error not in ("fatal", "skip"):
            raise UserError(f"on_error cannot be {on_error!r}; choose fatal or skip")
        self.name, self.where, self.split, self.on_error = name, where, split, on_error
        self.faults: list[str] = []
        """Quarantined faults, each beginning with the name of its image."""

    def _report(self, faults: list[str]) -> None:
        """Quarantine faults. Raises UserError if they are fatal or no usable item is left."""
        where = f"the {self.split} split of {self.where}"
        first = "; ".join(faults[:3]) + ("; ..." if len(faults) > 3 else "")
        if faults and self.on_error == "fatal":
            raise UserError(
                f"{where} has {plural(len(faults), 'fault')}: {first}: correct the data, or skip faults with "
                f"--on-error skip"
            )
        if not len(self):
            raise UserError(f"{where} has no usable image left: {first or 'it is empty'}")
        self.faults += faults


def map_in_threads(
    find_fault: Callable[[T], str | None], items: Iterable[T], count: int, what: str = "checking images"
) -> list[str | None]:
    """`find_fault` of each of `count` items, in order, with a progress bar."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return list(tqdm(pool.map(find_fault, items), what, count, leave=False, disable=None))
    finally:
        pool.shutdown(cancel_futures=True)


def image_id_from_name(name: str) -> int:
    """53 bits of the hash of an image's name: the same in every run, split and folder, and exact in JSON."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()) >> 11
