"""A folder of images with files of captions and questions, in any layout of `dlip.data.folders.layouts`."""

import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.annotation import Annotation, image_id_from_name
from dlip.data.batch import Example
from dlip.data.dataset import fields_of
from dlip.data.folders import layouts
from dlip.data.stored import Stored
from dlip.data.transforms import read_image


class Folder(Stored):
    """One split of a folder; captions and questions of an image are joined.

    Faults: an image that is missing or cannot be decoded, an empty caption or question, a question without answer, an
    image of two splits (it stays in its first). Those of texts are found on opening, those of images by `verify`.
    Symbolic links among the images are followed, since the folder is the user's own.
    """

    def __init__(self, path: str | Path, split: str, on_error: str = "fatal", uncaptioned: bool = False):
        """Raise UserError if the folder or the split does not exist, or a file has an unknown layout.

        uncaptioned: also keep images without texts; a folder of images alone is the split train.
        """
        self.path = Path(path)
        super().__init__(self.path.resolve().name, str(path), split, on_error)
        self.root, annotations = layouts.read(self.path, uncaptioned)
        self.annotations, faults = _join(self.path, split, annotations, uncaptioned)
        self.report(faults)

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, i: int) -> Example:
        return replace(self.without_image(i), image=read_image(self.root / self.annotations[i].name))

    @cached_property
    def fields(self) -> frozenset[str]:
        return fields_of(self, len(self))

    def without_image(self, i: int) -> Example:
        about = self.annotations[i]
        return Example(None, image_id_from_name(about.name), about.captions, about.questions, writers=about.writers)

    def image_name(self, i: int) -> str:
        return self.annotations[i].name

    def image_bytes(self, i: int) -> bytes:
        return (self.root / self.annotations[i].name).read_bytes()

    def image_fault(self, i: int) -> str | None:
        name = self.image_name(i)
        try:
            (self.root / name).stat()
        except (OSError, ValueError):  # ValueError: an impossible file name
            return f"{name} is missing"
        return super().image_fault(i)

    def keep(self, kept: list[int]) -> None:
        self.annotations = [self.annotations[i] for i in kept]

    def fingerprint(self) -> str:
        """Hash of the texts and of the images' names, sizes and times."""
        digest = hashlib.sha256()
        for about in self.annotations:
            with suppress(OSError, ValueError):  # an image beyond the limit may be missing
                stat = (self.root / about.name).stat()
                digest.update(repr((about, stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()


def splits(path: str | Path, uncaptioned: bool = False) -> list[str]:
    """The splits of a folder, in alphabetical order. Raises UserError as `Folder` does."""
    return sorted({about.split for about in layouts.read(Path(path), uncaptioned)[1]})


def _join(
    path: Path, split: str, annotations: list[Annotation], uncaptioned: bool
) -> tuple[list[Annotation], list[str]]:
    """One Annotation for each image of the split that has a text, in the files' order, and the faults.

    uncaptioned: the images without texts too, and no faults of them.
    """
    counts = Counter(kind for _, kind in {(about.name, about.split) for about in annotations})
    if split not in counts:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "none"
        raise UserError(f"{path} has no split {split!r}; choose one of: {names}")
    images: dict[str, Annotation] = {}
    faults: list[str] = []
    for about in annotations:
        image = images.setdefault(about.name, Annotation(about.name, about.split))
        if about.split != split:
            continue
        if image.split != split:
            faults.append(f"{about.name} is in the split {image.split} as well")
            continue
        faults += [fault for fault in about.faults if not (uncaptioned and fault == about.no_caption)]
        image.captions += about.captions
        image.writers |= about.writers
        image.questions += about.questions
    kept = [image for image in images.values() if image.split == split]
    if not uncaptioned:
        kept = [image for image in kept if image.captions or image.questions]
    return kept, list(dict.fromkeys(faults))
