"""Annotations of a folder's images: Karpathy's `captions.json`, and `vqa.json`."""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from dlip.common.errors import UserError
from dlip.data.annotation import Annotation, check_split
from dlip.data.batch import Question
from dlip.data.folders.images import ImageFiles

TYPES = {str: "a string", list: "a list", int: "an integer"}


def read_captions(file: Path, images: ImageFiles) -> Iterator[Annotation]:
    """Karpathy's layout: {"images": [{"filename", "split", "sentences": [{"raw"}], ...}]}; restval counts as train.

    COCO's "filepath", if present, is the folder of the filename, unless the image is elsewhere. A sentence's "writer",
    if present, is the model that wrote it. Raises UserError if the layout is another one.
    """
    for i, image in enumerate(require(load_json(file), "images", list, str(file))):
        where = f"{file}, images[{i}]"
        folder, name = require(image, "filepath", str, where, ""), require(image, "filename", str, where)
        path = image_path(folder, name, where)
        name = images.find(path, image_path("", name, where)) or path
        split = require(image, "split", str, where)
        check_split(split)
        annotation = Annotation(name, "train" if split == "restval" else split)
        sentences = require(image, "sentences", list, where)
        captions = [require(row, "raw", str, f"{where}, sentences", "") for row in sentences]
        writers = [require(row, "writer", str, f"{where}, sentences", "") for row in sentences]
        annotation.add_captions(captions, {c: writer for c, writer in zip(captions, writers, strict=True) if writer})
        annotation.check_not_empty()
        yield annotation


def read_questions(file: Path) -> Iterator[Annotation]:
    """A list of {"image", "question", "answers", "question_type" (optional), "split"}; one Annotation per question.

    Rows with the same question about an image are of several annotators: the first gets all of their answers. Raises
    UserError if the layout is another one.
    """
    rows = load_json(file)
    if not isinstance(rows, list):
        raise UserError(f"{file} must be a list of {{image, question, answers, question_type, split}}; rewrite it so")
    known: dict[tuple[str, str, str], Question] = {}
    for i, row in enumerate(rows):
        where = f"{file}, [{i}]"
        name, split = image_path("", require(row, "image", str, where), where), require(row, "split", str, where)
        check_split(split)
        annotation = Annotation(name, split)
        answers, kind = require(row, "answers", list, where), require(row, "question_type", str, where, "other")
        annotation.add_question(require(row, "question", str, where), answers, kind)
        for question in annotation.questions:
            same = known.setdefault((name, split, question.text), question)
            if same is not question:
                same.answers += question.answers
                annotation.questions = []
        yield annotation


def load_json(file: Path) -> Any:
    """The content of a JSON file. Raises UserError if it cannot be read."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); correct it or copy it again") from error


def require(row: Any, key: str, kind: type, where: str, default: Any = None) -> Any:
    """row[key], of the type `kind` (str, list or int); `default` if the key is missing.

    where: the file and the place in it. Raises UserError if the value is missing or of another type.
    """
    value = row.get(key, default) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise UserError(f"{where} needs {key!r}, {TYPES[kind]}; correct the file")
    return value


def image_path(folder: str, name: str, where: str) -> str:
    """Path of an image below `images/`. Raises UserError if it would be outside."""
    path = _path_below(folder, name)
    if path is None:
        raise UserError(f"{where} names the image {name!r}, which is outside images/; give a path below it")
    return path


@lru_cache(4096)  # the questions of an image follow each other
def _path_below(folder: str, name: str) -> str | None:
    path = PureWindowsPath(folder, name)  # knows both slashes, and drives
    outside = path.anchor or ".." in path.parts or not PureWindowsPath(name).parts
    return None if outside else str(PurePosixPath(folder, name))
