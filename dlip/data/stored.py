"""What data sets on disk share: their faults are fatal or skipped."""

import os
from abc import abstractmethod
from multiprocessing.pool import ThreadPool

from tqdm import tqdm

from dlip.common.distributed import raised_by_all, run_on_main
from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data.dataset import DataSet


class EmptySplitError(UserError):
    """A split has no usable image."""


class Stored(DataSet):
    """A data set with on_error "fatal", which raises at the first faults, or "skip", which keeps them in `faults`."""

    def __init__(self, name: str, where: str, split: str, on_error: str):
        """where: the data set as the user named it."""
        self.name, self.where, self.split, self.on_error = name, where, split, on_error
        self.faults: list[str] = []

    @abstractmethod
    def keep(self, kept: list[int]) -> None:
        """Restrict the data set to these images."""

    def text_faults(self, i: int) -> list[str]:
        """Faults of image i's texts that were not found on opening."""
        return []

    def image_fault(self, i: int) -> str | None:
        """Why image i cannot be used, beginning with its name; None if it can."""
        try:
            self[i]
        except UserError as error:
            return f"{self.image_name(i)} cannot be read ({error.__cause__ or error})"
        return None

    def check_images(self, images: int | None = None) -> None:
        """Decode every image once, so that none fails later, and skip those that fail.

        images: where faults are fatal, decode only this many, the first ones. Skipped ones are replaced by later ones,
        so that all are decoded. Of several processes the main one decodes. Raises UserError if faults are fatal or
        nothing is left.
        """
        checked = range(len(self))[: images if self.on_error == "fatal" else None]
        faults, bad = run_on_main(lambda: self._faults(checked))
        self.keep([i for i in range(len(self)) if i not in bad])
        with raised_by_all():
            self.report(faults)

    def _faults(self, checked: range) -> tuple[list[str], set[int]]:
        """All faults, and the images that cannot be used."""

        def check(i: int) -> tuple[list[str], bool]:
            texts, image = self.text_faults(i), self.image_fault(i)
            unusable = bool(image or (texts and not self.without_image(i).fields))
            return [*texts, *filter(None, [image])], unusable

        with ThreadPool(os.cpu_count()) as pool:  # an executor would make an object for every image beforehand
            checks = pool.imap(check, checked, chunksize=16)
            found = list(tqdm(checks, "checking images", len(checked), leave=False, disable=None))
        faults = [fault for some, _ in found for fault in some]
        return faults, {i for i, (_, unusable) in zip(checked, found, strict=True) if unusable}

    def report(self, faults: list[str]) -> None:
        """Keep faults that are skipped. Raises UserError if they are fatal, EmptySplitError if nothing is left."""
        where = f"the {self.split} split of {self.where}"
        first = "; ".join(faults[:3]) + ("; ..." if len(faults) > 3 else "")
        if faults and self.on_error == "fatal":
            raise UserError(
                f"{where} has {plural(len(faults), 'fault')}: {first}: correct the data, or skip faults with "
                "--on-error skip"
            )
        if not len(self):
            raise EmptySplitError(f"{where} has no usable image left: {first or 'it is empty'}")
        self.faults += faults
