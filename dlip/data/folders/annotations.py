"""What a folder says of its pictures, as Records: `captions.json` in Karpathy's layout, and `vqa.json`."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dlip.common.errors import UserError
from dlip.common.files import check_size
from dlip.data.batch import Question

MOST = 4 * 10**9
"""Bytes of a file, several times those of the largest in use."""
KINDS = {str: "text", list: "list", int: "number"}
SPLIT = re.compile(r"\w[\w .-]{0,99}")
"""A split's name: files are called after it, and terminals are told it."""


def check_split(name: str) -> None:
    """Raises UserError where a split cannot have that name."""
    if not SPLIT.fullmatch(name):
        raise UserError(
            f"a split is called {name[:100]!a}; rename it, with letters, digits, blanks, hyphens and points alone"
        )


@dataclass
class Record:
    """All or some of what is said and asked of one picture."""

    name: str
    """its path below images/"""
    split: str
    captions: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """what had to be left out, each with the picture's name"""

    def __post_init__(self):
        check_split(self.split)

    def ask(self, text: str, answers: list[str], kind: str) -> None:
        """Takes in a question and its answers, or the fault where either is empty."""
        if not text:
            self.faults.append(f"{self.name} has an empty question")
        elif not answers:
            self.faults.append(f"{self.name} has no answer to {text!r}")
        else:
            self.questions.append(Question(text, answers, kind))


def read_captions(file: Path) -> Iterator[Record]:
    """Karpathy's layout: {"images": [{"filename", "split", "sentences": [{"raw"}], ...}]}; restval counts as train.

    COCO's "filepath", where there is one, is the folder of the filename. Raises UserError where the layout is another.
    """
    for i, image in enumerate(need(load(file), "images", list, str(file))):
        where = f"{file}, images[{i}]"
        name = below(need(image, "filepath", str, where, ""), need(image, "filename", str, where), where)
        split = need(image, "split", str, where)
        record = Record(name, "train" if split == "restval" else split)
        for sentence in need(image, "sentences", list, where):
            caption = need(sentence, "raw", str, f"{where}, sentences", "").strip()
            if caption:
                record.captions.append(caption)
            else:
                record.faults.append(f"{name} has an empty caption")
        if not record.captions and not record.faults:
            record.faults.append(f"{name} has no caption")
        yield record


def read_questions(file: Path) -> Iterator[Record]:
    """A list of {"image", "question", "answers", "question_type", "split"}, one Record each; the type may be left out.

    Blank answers do not count. Raises UserError where the layout is another.
    """
    rows = load(file)
    if not isinstance(rows, list):
        raise UserError(f"{file} has to be a list of {{image, question, answers, question_type, split}}")
    for i, row in enumerate(rows):
        where = f"{file}, [{i}]"
        name = below("", need(row, "image", str, where), where)
        record = Record(name, need(row, "split", str, where))
        text = need(row, "question", str, where).strip()
        answers = [str(a).strip() for a in need(row, "answers", list, where) if isinstance(a, str | int | float)]
        answers = [answer for answer in answers if answer]
        record.ask(text, answers, need(row, "question_type", str, where, "other"))
        yield record


def load(file: Path) -> Any:
    """What a JSON file says. Raises UserError where it cannot be read, or is larger than `MOST`."""
    try:
        check_size(file, MOST)
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); mend it") from error


def need(record: Any, key: str, kind: type, where: str, default: Any = None) -> Any:
    """record[key], which must be of its kind (str, list or int); `default` where it is not there.

    Raises UserError, naming `where` it was looked for.
    """
    value = record.get(key, default) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise UserError(f"{where} needs {key!r}, a {KINDS[kind]}; mend it")
    return value


def below(folder: str, name: str, where: str) -> str:
    """The picture's path below images/. Raises UserError where it would lie elsewhere."""
    path = _below(folder, name)
    if path is None:
        raise UserError(f"{where} names the picture {name!r}, which does not lie in images/; give a path below it")
    return path


@lru_cache(4096)  # a picture's questions follow each other
def _below(folder: str, name: str) -> str | None:
    path = PureWindowsPath(folder, name)  # knows both kinds of slash, and drives
    outside = path.anchor or ".." in path.parts or not PureWindowsPath(name).parts
    return None if outside else str(PurePosixPath(folder, name))
