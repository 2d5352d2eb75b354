"""A folder of images with files of captions and questions, in any layout of `dlip.data.folders.layouts`."""

import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.annotation import Annotation
from dlip.data.batch import Example
from dlip.data.folders import layouts
from dlip.data.quarantine import AnnotatedImages, EncodedItem, image_id_from_name
from dlip.data.transforms import read_image


class Folder(AnnotatedImages):
    """One split of a folder; captions and questions of an image are joined.

    Faults: an image that is missing or cannot be decoded, an empty caption or question, a question without answer, an
    image of two splits (it stays in its first). With on_error "skip" they are quarantined in `faults`, with "fatal"
    they raise UserError. Faults of texts are found on opening, those of images by `verify`. Symbolic links among the
    images are followed, since the folder is the user's own.
    """

    def __init__(self, path: str | Path, split: str, on_error: str = "fatal", uncaptioned: bool = False):
        """Raise UserError if the folder or the split does not exist, or a file has an unknown layout.

        uncaptioned: also keep images without texts; a folder of images alone is the split train.
        """
        self.path = Path(path)
        super().__init__(self.path.resolve().name, str(path), split, on_error)
        self.root, annotations = layouts.read(self.path, uncaptioned)
        self.annotations, faults = _join(self.path, split, annotations, uncaptioned)
        self._report(faults)

    def __getitem__(self, i: int) -> Example:
        """Image i, decoded now, with its texts. Raises UserError if it cannot be decoded."""
        return replace(self.without_image(i), image=read_image(self.root / self.annotations[i].name))

    def encoded_item(self, i: int) -> EncodedItem:
        """Image i as its file holds it. Raises UserError if the file cannot be read."""
        about = self.annotations[i]
        file = self.root / about.name
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"the image {file} cannot be read ({error}); replace or remove it") from error
        number = image_id_from_name(about.name)
        return EncodedItem(about.name, number, about.captions, about.questions, data, about.writers)

    def image_fault(self, i: int) -> str | None:
        """Why image i cannot be used, None if it can; an image is decoded again only if its file has changed."""
        name = self.annotations[i].name
        try:
            stat = (self.root / name).stat()
        except (OSError, ValueError):  # ValueError: an impossible file name
            return f"{name} is missing"
        reason = _decoding_error(self.root / name, stat.st_mtime_ns, stat.st_size)
        return reason and f"{name} cannot be read ({reason})"

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
    kept = [
        image for image in images.values()
        if image.captions or image.questions or (uncaptioned and image.split == split)
    ]  # fmt: skip
    return kept, list(dict.fromkeys(faults))


@cache
def _decoding_error(file: Path, mtime_ns: int, size: int) -> str | None:
    """Why a file cannot be decoded, None if it can."""
    try:
        read_image(file)
    except UserError as error:
        return str(error.__cause__)
    return None
