"""A folder of pictures with `captions.json` (Karpathy's layout), `vqa.json`, or both."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from tqdm import tqdm

from dlip.data.annotations import Record, read_captions, read_questions
from dlip.data.batch import Item, Question
from dlip.data.transforms import read_image
from dlip.errors import UserError

READERS = {"captions.json": read_captions, "vqa.json": read_questions}


class Folder:
    """A split of a folder: `images/` beside `captions.json`, `vqa.json`, or both, which are then joined by picture.

    A fault is a picture that is missing or cannot be read, an empty caption or question, a question without answer, or
    a picture's text in another split than its first. With on_error "skip" it is left out and named in `problems`, and
    with "fatal" it raises UserError. Faults of texts are found on opening, those of pictures by `verify`.
    """

    def __init__(self, path: str | Path, split: str, on_error: str = "fatal"):
        """Raises UserError where the folder, its files, their layout, the split or `on_error` are wrong."""
        self.path = Path(path)
        self.name = self.path.resolve().name
        self.split = split
        if on_error not in ("fatal", "skip"):
            raise UserError(f"on_error cannot be {on_error!r}; choose fatal or skip")
        self.on_error = on_error
        self.problems: list[str] = []
        """faults skipped, each with its picture's name"""
        self.records, faults = _read(self.path, split)
        self._report(faults)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> Item:
        """Picture i, opened now, with all its captions and questions. Raises UserError where it cannot be read."""
        record = self.records[i]
        image = read_image(self._file(record))
        return Item(image, image_id(record.name), record.captions, record.questions)

    def texts(self) -> Iterator[str]:
        """Every caption, question and answer, no picture opened: what a tokenizer is trained on."""
        for record in self.records:
            yield from record.captions
            for question in record.questions:
                yield question.text
                yield from question.answers

    def verify(self) -> None:
        """Reads every picture once, so that none fails later; one that has been read in this process is not read again.

        Raises UserError, as opening does, where faults are fatal or nothing is left.
        """
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            found = pool.map(_fault, map(self._file, self.records))
            faults = list(tqdm(found, "checking pictures", len(self.records), leave=False, disable=None))
        finally:
            pool.shutdown(cancel_futures=True)
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
        return self.path / "images" / record.name

    def _report(self, faults: list[str]) -> None:
        where = f"the {self.split} split of {self.path}"
        few = "; ".join(faults[:3]) + ("; ..." if len(faults) > 3 else "")
        if faults and self.on_error == "fatal":
            raise UserError(f"{where} has {len(faults)} faults: {few}: mend them, or skip them with on_error=skip")
        if not self.records:
            raise UserError(f"{where} has no usable picture left: {few}")
        self.problems += faults

    def counts(self) -> dict[str, int]:
        """Pictures, captions and questions."""
        return {
            "pictures": len(self.records),
            "captions": sum(len(record.captions) for record in self.records),
            "questions": sum(len(record.questions) for record in self.records),
        }


def splits(path: str | Path) -> list[str]:
    """The splits that a folder has, in alphabetical order. Raises UserError as `Folder` does."""
    return sorted({record.split for record in _records(Path(path))})


def image_id(name: str) -> int:
    """53 bits of the hash of a picture's name: the same in every run, split and folder, and exact in JSON."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) >> 11


def _records(path: Path) -> list[Record]:
    """Every record of every split. Raises UserError where the folder or its files are wrong."""
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; check its name")
    files = [(path / name, read) for name, read in READERS.items() if (path / name).is_file()]
    if not files:
        raise UserError(f"{path} holds neither {' nor '.join(READERS)}; put one there, beside images/")
    if not (path / "images").is_dir():
        raise UserError(f"{path} has no folder images; put the pictures there")
    return [record for file, read in files for record in read(file)]


def _read(path: Path, split: str) -> tuple[list[Record], list[str]]:
    """A Record for each picture of the split that has a caption or a question, in the files' order, and the faults."""
    found = _records(path)
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
