"""What data sets on disk share: what they do with what cannot be used, and a picture as it is stored."""

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
"""How files of a kind begin."""


@dataclass
class EncodedItem:
    """One picture as it lies on disk, not decoded, with all that is said and asked of it."""

    name: str
    image_id: int
    captions: list[str]
    questions: list[Question]
    data: bytes

    @property
    def suffix(self) -> str:
        """Of the kind of file that the data are: .jpg, .png, ...; .img for one that is not known."""
        return next((kind for start, kind in SUFFIXES.items() if self.data.startswith(start)), ".img")


class QuarantineMixin:
    """A split of a data set that may have faults: on_error "fatal" stops at them, "skip" leaves them out."""

    def __init__(self, name: str, where: str, split: str, on_error: str):
        """where: what the user calls it. Raises UserError where `on_error` is neither."""
        if on_error not in ("fatal", "skip"):
            raise UserError(f"on_error cannot be {on_error!r}; choose fatal or skip")
        self.name, self.where, self.split, self.on_error = name, where, split, on_error
        self.faults: list[str] = []
        """faults skipped, each with its picture's name"""

    def _report(self, faults: list[str]) -> None:
        """Keeps the faults, or raises UserError where they are fatal or nothing else is left."""
        where = f"the {self.split} split of {self.where}"
        few = "; ".join(faults[:3]) + ("; ..." if len(faults) > 3 else "")
        if faults and self.on_error == "fatal":
            found = plural(len(faults), "fault")
            raise UserError(f"{where} has {found}: {few}: mend what is wrong, or skip it with --on-error skip")
        if not len(self):
            raise UserError(f"{where} has no usable picture left: {few or 'there is none in it'}")
        self.faults += faults


def map_in_threads(
    find: Callable[[T], str | None], items: Iterable[T], count: int, what: str = "checking pictures"
) -> list[str | None]:
    """What `find` says of each of `count` items, in their order, under a bar on a terminal."""
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        return list(tqdm(pool.map(find, items), what, count, leave=False, disable=None))
    finally:
        pool.shutdown(cancel_futures=True)


def image_id_from_name(name: str) -> int:
    """53 bits of the hash of a picture's name: the same in every run, split and folder, and exact in JSON."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()) >> 11
