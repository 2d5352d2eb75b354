"""Rows of the library `datasets`: which columns have what, and the image and texts of a row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data.annotation import Annotation, as_text, image_id_from_name
from dlip.data.hub.load import COLUMNS, image_folders
from dlip.data.transforms import SUFFIXES

TEXT_ROLES = ("caption", "question", "answers", "type", "id")


class Rows:
    """How to read the rows of one data set."""

    def __init__(self, names: list[str], options: dict[str, str], address: str, where: str):
        """names: of all columns. where: the data set as the user named it. Raises UserError if a column is missing."""
        self.where, self.in_shards = where, "__key__" in names
        self._roots = image_folders(address)
        self.columns = {} if self.in_shards else _columns(names, options, where)
        self.images = [name for name in names if name in SUFFIXES] if self.in_shards else [self.columns["image"]]
        text_columns = ("__key__", "__url__", "txt", "json") if self.in_shards else self.columns.values()
        self.text_columns = [name for name in dict.fromkeys(text_columns) if name not in self.images]

    def name(self, row: dict, default: str) -> str:
        """Name of a row's image."""
        if self.in_shards:
            return f"{Path(row['__url__'].partition('?')[0]).name}/{row['__key__']}"
        number = row.get(self.columns.get("id"))
        return default if number is None else str(number)

    def image_id(self, row: dict, name: str) -> int:
        number = _about(row).get("image_id") if self.in_shards else None
        known = type(number) is int and 0 <= number < 2**53
        return number if known else image_id_from_name(name if number is None else str(number))

    def texts(self, name: str, rows: list[dict]) -> Annotation:
        """The texts of the rows of one image, and their faults."""
        if self.in_shards:
            return read_rows(name, map(_roles_of_sample, rows))
        roles = {role: column for role, column in self.columns.items() if role in TEXT_ROLES}
        return read_rows(name, ({role: row[column] for role, column in roles.items()} for row in rows))

    def image(self, row: dict, name: str) -> bytes:
        """The image of a row as stored. Raises UserError if it holds none."""
        value = next((row[column] for column in self.images if row[column] is not None), None)
        try:
            if isinstance(value, dict):
                value = value["bytes"] if value.get("bytes") is not None else self._file(value["path"])
            elif isinstance(value, str):
                value = self._file(value)
            if not isinstance(value, bytes):
                raise ValueError(f"{self.images[0]!r} holds no image")
            return value
        except (OSError, KeyError, TypeError, ValueError) as error:  # ValueError: an impossible file name
            raise UserError(f"the image {name} cannot be read ({error}); replace or remove it") from error

    def _file(self, path: str) -> bytes:
        """An image beside the rows. Raises OSError for a file elsewhere: rows may name any."""
        for root in self._roots:
            file = (root / path).resolve()
            if file.is_file() and any(map(file.is_relative_to, self._roots)):
                return file.read_bytes()
        raise OSError("there is no such file in the data set's own folders")


def read_rows(name: str, rows: Iterator[dict[str, Any]]) -> Annotation:
    """The texts of the rows of one image, each {"caption", "question", "answers", "type"} or less.

    A caption or answer may be a string, a list of them, or a dictionary as in data sets of the hub: {"raw": text},
    {"answer": text}, {"answer": [texts]}. A list of questions has a list of as many answers, or lists of answers. A
    caption in several rows of one image counts once.
    """
    annotation = Annotation(name)
    for row in rows:
        annotation.add_captions(_texts(row.get("caption")))
        questions, answers, kinds = row.get("question"), row.get("answers"), row.get("type")
        if not isinstance(questions, list):
            questions, answers = [questions], [answers]
        elif not isinstance(answers, list) or len(answers) != len(questions):
            annotation.faults.append(f"{name} has {plural(len(questions), 'question')}, but not as many answers")
            continue
        kinds = kinds if isinstance(kinds, list) else [kinds] * len(questions)
        for question, its_answers, kind in zip(questions, answers, kinds, strict=True):
            if question is not None:
                annotation.add_question(str(question), _texts(its_answers), str(kind or "other"))
    annotation.captions = list(dict.fromkeys(annotation.captions))
    annotation.check_not_empty()
    return annotation


def _about(row: dict) -> dict:
    """The JSON of a sample of WebDataset shards."""
    return row["json"] if isinstance(row["json"], dict) else {}


def _roles_of_sample(row: dict) -> dict[str, Any]:
    """A sample's JSON and text as one row of `read_rows`; each line of the text is a caption."""
    about = _about(row)
    questions = about.get("questions") if isinstance(about.get("questions"), list) else []
    questions = [question for question in questions if isinstance(question, dict)]
    columns = {"question": "question", "answers": "answers", "type": "question_type"}
    captions = about.get("captions") or about.get("caption") or (row["txt"] or "").strip().splitlines()
    return {"caption": captions} | {role: [q.get(key) for q in questions] for role, key in columns.items()}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _texts(next((value[key] for key in ("raw", "answer", "caption", "text") if key in value), None))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif value is not None:
        yield as_text(value)


def _columns(names: list[str], options: dict[str, str], where: str) -> dict[str, str]:
    """Role of a column -> its name: the one in `options`, or the first usual one that exists."""
    columns = {role: next((name for name in usual if name in names), None) for role, usual in COLUMNS.items()}
    columns |= {role: name for role, name in options.items() if role in COLUMNS}
    listed = ", ".join(names)
    if wrong := [name for name in columns.values() if name not in (*names, None)]:
        raise UserError(f"{where} has no column {wrong[0]!r}; choose one of: {listed}")
    if columns["image"] is None:
        raise UserError(f"{where} has no usual column of images; name it: ?image=..., one of: {listed}")
    if None in (columns["question"], columns["answers"]):
        columns["question"] = columns["answers"] = None
        if columns["caption"] is None:
            raise UserError(
                f"{where} has no usual columns of captions, or of questions and answers; name them: ?caption=... or "
                f"?question=...&answers=..., of: {listed}"
            )
    return {role: name for role, name in columns.items() if name is not None}
