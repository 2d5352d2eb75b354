"""A folder of pictures with files that say and ask something of them, in any layout of `dlip.data.folders.layouts`."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.batch import Item, Question
from dlip.data.folders import layouts
from dlip.data.folders.annotations import Record
from dlip.data.quarantine import EncodedItem, QuarantineMixin, image_id_from_name, map_in_threads
from dlip.data.transforms import read_image


class Folder(QuarantineMixin):
    """A split of a folder: pictures, and files of captions, of questions, or both, which are then joined by picture.

    A fault is a picture that is missing or cannot be read, an empty caption or question, a question without answer, or
    a picture's text in another split than its first. With on_error "skip" it is left out and named in `faults`, and
    with "fatal" it raises UserError. Faults of texts are found on opening, those of pictures by `verify`. Links among
    the pictures are followed wherever they lead, as the folder is taken for the user's own.
    """

    def __init__(self, path: str | Path, split: str, on_error: str = "fatal"):
        """Raises UserError where the folder, its files, their layout, the split or `on_error` are wrong."""
        self.path = Path(path)
        super().__init__(self.path.resolve().name, str(path), split, on_error)
        self.root, found = layouts.read(self.path)
        self.records, faults = _join(self.path, split, found)
        self._report(faults)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Item:
        """Picture i, opened now, with all its captions and questions. Raises UserError where it cannot be read."""
        record = self.records[i]
        image = read_image(self._file(record))
        return Item(image, image_id_from_name(record.name), record.captions, record.questions)

    def encoded_item(self, i: int) -> EncodedItem:
        """Picture i as its file holds it. Raises UserError where the file cannot be read."""
        record, file = self.records[i], self._file(self.records[i])
        try:
            data = file.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read the picture {file} ({error}); mend or remove it") from error
        return EncodedItem(record.name, image_id_from_name(record.name), record.captions, record.questions, data)

    def texts(self, pictures: int | None = None) -> Iterator[str]:
        """Every caption, question and answer, or those of the first pictures, none of them opened."""
        for record in self.records[:pictures]:
            yield from record.captions
            for question in record.questions:
                yield question.text
                yield from question.answers

    def verify(self) -> None:
        """Reads every picture once, so that none fails later; one that has been read in this process is not read again.

        Raises UserError, as opening does, where faults are fatal or nothing is left.
        """
        faults = map_in_threads(_fault, map(self._file, self.records), len(self.records))
        pairs = list(zip(self.records, faults, strict=True))
        self.records = [record for record, fault in pairs if not fault]
        self._report([f"{record.name} {fault}" for record, fault in pairs if fault])

    def fingerprint(self) -> str:
        """A hash of the texts and of the pictures' names, sizes and times."""
        digest = hashlib.sha256()
        for record in self.records:
            stat = self._file(record).stat()
            digest.update(repr((record, stat.st_size, stat.st_mtime_ns)).encode())
        return digest.hexdigest()

    def _file(self, record: Record) -> Path:
        return self.root / record.name

    def counts(self) -> dict[str, int]:
        """Pictures, captions and questions."""
        return {
            "images": len(self.records),
            "captions": sum(len(record.captions) for record in self.records),
            "questions": sum(len(record.questions) for record in self.records),
        }


def splits(path: str | Path) -> list[str]:
    """The splits that a folder has, in alphabetical order. Raises UserError as `Folder` does."""
    return sorted({record.split for record in layouts.read(Path(path))[1]})


def _join(path: Path, split: str, found: list[Record]) -> tuple[list[Record], list[str]]:
    """A Record for each picture of the split that has a caption or a question, in the files' order, and the faults."""
    splits = Counter(kind for _, kind in {(record.name, record.split) for record in found})
    if split not in splits:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(splits.items())) or "none"
        raise UserError(f"{path} has no split {split!r}; choose one of those it has: {names}")

    pictures: dict[str, Record] = {}
    questions: dict[tuple[str, str], Question] = {}
    faults: list[str] = []
    for record in found:
        picture = pictures.setdefault(record.name, Record(record.name, record.split))
        if record.split != split:
            continue
        if picture.split != split:
            faults.append(f"{record.name} is in the split {picture.split} as well")
            continue
        faults += record.faults
        picture.captions += record.captions
        for question in record.questions:
            same = questions.setdefault((record.name, question.text), question)
            if same is question:
                picture.questions.append(question)
            else:
                same.answers += question.answers
    return [p for p in pictures.values() if p.captions or p.questions], list(dict.fromkeys(faults))


def _fault(file: Path) -> str | None:
    """Why a picture cannot be used, if so."""
    try:
        stat = file.stat()
    except (OSError, ValueError):  # ValueError: no file can have such a name
        return "is missing"
    return _decoding_fault(file, stat.st_mtime_ns, stat.st_size)


@cache
def _decoding_fault(file: Path, mtime_ns: int, size: int) -> str | None:
    """Why a file cannot be decoded, if so; found out anew only when the file has changed."""
    try:
        read_image(file)
    except UserError as error:
        return f"cannot be read ({error.__cause__})"
    return None
