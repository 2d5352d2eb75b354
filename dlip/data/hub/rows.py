"""Rows of the library `datasets`: which columns have what, and the image and texts of a row."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data.annotation import Annotation, as_text, image_id_from_name
from dlip.data.batch import Example
from dlip.data.hub.load import COLUMNS, SHARD_TEXTS, image_folders, parse
from dlip.data.transforms import SUFFIXES


class Rows:
    """How to read the rows of a data set."""

    def __init__(self, name: str, columns: list[str]):
        """name: the data set as the user named it. Raises UserError if a column is missing."""
        address, options = parse(name)
        self.folders, self.in_shards = image_folders(address), "__key__" in columns
        self.columns = {} if self.in_shards else _columns(name, columns, options)
        self.images = [c for c in columns if c in SUFFIXES] if self.in_shards else [self.columns["image"]]
        texts = SHARD_TEXTS if self.in_shards else self.columns.values()
        self.text_columns = [column for column in dict.fromkeys(texts) if column not in self.images]

    def read(self, rows: list[dict], default: str = "") -> tuple[Annotation, Example]:
        """The texts of the rows of one image with their faults, and the example without its image.

        default: name of an image whose rows name none.
        """
        if self.in_shards:
            (row,) = rows
            name, values = f"{Path(row['__url__'].partition('?')[0]).name}/{row['__key__']}", [_sample(row)]
            number = values[0]["id"]
        else:
            roles = {role: column for role, column in self.columns.items() if role != "image"}
            values = [{role: row[column] for role, column in roles.items()} for row in rows]
            name, number = str(default if (known := values[0].get("id")) is None else known), None
        if type(number) is not int or not 0 <= number < 2**53:
            number = image_id_from_name(name if number is None else str(number))
        annotation = read_rows(name, values)
        return annotation, Example(None, number, annotation.captions, annotation.questions)

    def image(self, row: dict, name: str) -> bytes:
        """The image of a row as stored. Raises UserError if it holds none."""
        value = next((row[column] for column in self.images if row[column] is not None), None)
        try:
            if isinstance(value, dict):
                value = value["path"] if value.get("bytes") is None else value["bytes"]
            value = self._file(value) if isinstance(value, str) else value
            if not isinstance(value, bytes):
                raise ValueError(f"{self.images[0]!r} holds no image")
            return value
        except (OSError, KeyError, ValueError) as error:  # ValueError: an impossible file name too
            raise UserError(f"the image {name} cannot be read ({error}); replace or remove it") from error

    def _file(self, path: str) -> bytes:
        """An image beside the rows. Raises OSError for a file elsewhere: rows may name any."""
        for folder in self.folders:
            file = (folder / path).resolve()
            if file.is_file() and any(map(file.is_relative_to, self.folders)):
                return file.read_bytes()
        raise OSError("there is no such file in the data set's own folders")


def read_rows(name: str, rows: Iterable[dict[str, Any]]) -> Annotation:
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
        if not isinstance(answers, list) or len(answers) != len(questions):
            annotation.faults.append(f"{name} has {plural(len(questions), 'question')}, but not as many answers")
            continue
        kinds = kinds if isinstance(kinds, list) else [kinds] * len(questions)
        for question, its_answers, kind in zip(questions, answers, kinds, strict=True):
            if question is not None:
                annotation.add_question(str(question), _texts(its_answers), str(kind or "other"))
    annotation.captions = list(dict.fromkeys(annotation.captions))
    annotation.check_not_empty()
    return annotation


def _sample(row: dict) -> dict[str, Any]:
    """A sample of WebDataset shards as a row of `read_rows`; each line of its text is a caption."""
    about = row["json"] if isinstance(row["json"], dict) else {}
    questions = [question for question in about.get("questions") or [] if isinstance(question, dict)]
    return {
        "caption": about.get("captions") or about.get("caption") or (row["txt"] or "").strip().splitlines(),
        "question": [question.get("question") for question in questions],
        "answers": [question.get("answers") for question in questions],
        "type": [question.get("question_type") for question in questions],
        "id": about.get("image_id"),
    }


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _texts(next((value[key] for key in ("raw", "answer", "caption", "text") if key in value), None))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif value is not None:
        yield as_text(value)


def _columns(name: str, names: list[str], options: dict[str, str]) -> dict[str, str]:
    """Role of a column -> its name: the one in `options`, or the first usual one that exists."""
    columns = {role: next((column for column in usual if column in names), None) for role, usual in COLUMNS.items()}
    columns |= {role: column for role, column in options.items() if role in COLUMNS}
    if wrong := [column for column in columns.values() if column not in (*names, None)]:
        raise UserError(f"{name} has no column {wrong[0]!r}; choose one of: {', '.join(names)}")
    asks = None not in (columns["question"], columns["answers"])
    if columns["image"] is None or not (asks or columns["caption"]):
        raise UserError(
            f"{name} has no usual columns of images and texts; name them: ?image=...&caption=... or "
            f"?image=...&question=...&answers=..., of: {', '.join(names)}"
        )
    unused = () if asks else ("question", "answers", "type")
    return {role: column for role, column in columns.items() if column is not None and role not in unused}
