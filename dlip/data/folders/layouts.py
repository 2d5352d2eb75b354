"""The published layouts of captions and questions, each with the function that reads its files.

Sources: Karpathy's splits; COCO captions (arXiv 1504.00325) and nocaps (arXiv 1812.08658); VQA v2 (arXiv 1612.00837).
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from dlip.common.errors import UserError
from dlip.data.annotation import Annotation, split_in
from dlip.data.batch import Question
from dlip.data.folders.images import ImageFiles, image_files

SUBFOLDERS = ("", "annotations", "questions")
"""Subfolders in which COCO's and VQA's files are looked for."""
Split = Annotated[str, Field(pattern=r"^\w[\w .-]{0,99}$")]
"""Files are named after splits."""
T = TypeVar("T")


class Sentence(BaseModel):
    raw: str = ""
    writer: str = ""
    """The model that wrote it."""


class KarpathyImage(BaseModel):
    filename: str
    filepath: str = ""
    """COCO's folder of the image."""
    split: Split
    sentences: list[Sentence]


class Karpathy(BaseModel):
    images: list[KarpathyImage]


class CocoImage(BaseModel):
    id: int
    file_name: str


class CocoCaption(BaseModel):
    image_id: int
    caption: str


class Coco(BaseModel):
    images: list[CocoImage]
    annotations: list[CocoCaption]


class QuestionRow(BaseModel):
    image: str
    question: str
    answers: list[Any]
    question_type: str = "other"
    split: Split


class Vqa2Question(BaseModel):
    image_id: int
    question_id: int
    question: str


class Vqa2Questions(BaseModel):
    questions: list[Vqa2Question]


class Vqa2Answer(BaseModel):
    answer: str


class Vqa2Annotation(BaseModel):
    question_id: int
    answers: list[Vqa2Answer]
    answer_type: str = "other"
    """By which accuracies are published: yes/no, number or other."""


class Vqa2Annotations(BaseModel):
    annotations: list[Vqa2Annotation]


def read(path: Path, uncaptioned: bool = False) -> tuple[Path, list[Annotation]]:
    """The folder of the images, and the annotations of every split.

    Captions come from the first of `captions.json`, Karpathy's `dataset_*.json`, COCO's or NoCaps' own files; questions
    from `vqa.json` and VQA v2's pairs of files. Raises UserError if there is neither, or one of a pair is missing.
    uncaptioned: of a folder with neither, read the images alone, as the split train.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; check its name")
    files = _annotation_files(path)
    if not any(files.values()):
        if uncaptioned and (names := image_files(root := path / "images" if (path / "images").is_dir() else path)):
            return root, [Annotation(name, "train") for name in names]
        raise UserError(
            f"{path} holds neither captions.json nor vqa.json, nor another known file of texts; put one there, beside "
            "images/"
        )
    images = ImageFiles(path)
    read_all = (reader(file, images) for reader, found in files.items() for file in found)
    return images.root, list(chain.from_iterable(read_all))


def has_annotations(path: Path) -> bool:
    """Whether a folder has a file of captions or questions in a known layout."""
    return any(_annotation_files(path).values())


def read_karpathy(file: Path, images: ImageFiles) -> Iterator[Annotation]:
    """Karpathy's splits; restval counts as train."""
    for i, image in enumerate(_parse(file, Karpathy).images):
        where = f"{file}, images.{i}"
        path = image_path(image.filepath, image.filename, where)
        name = images.find(path, image_path("", image.filename, where)) or path
        annotation = Annotation(name, "train" if image.split == "restval" else image.split)
        writers = {sentence.raw: sentence.writer for sentence in image.sentences if sentence.writer}
        annotation.add_captions([sentence.raw for sentence in image.sentences], writers)
        annotation.check_not_empty()
        yield annotation


def read_coco(file: Path, images: ImageFiles) -> Iterator[Annotation]:
    """COCO's and NoCaps' captions; the split is in the file's name."""
    content, split = _parse(file, Coco), _split_of(file)
    folder = file.stem.removeprefix("captions_")  # train2014
    captions: dict[int, list[str]] = defaultdict(list)
    for row in content.annotations:
        captions[row.image_id].append(row.caption)
    for i, image in enumerate(content.images):
        name = image_path("", image.file_name, f"{file}, images.{i}")
        annotation = Annotation(images.find(f"{folder}/{name}", name) or name, split)
        annotation.add_captions(captions.pop(image.id, []))
        annotation.check_not_empty()
        yield annotation
    for number in captions:
        yield Annotation(f"{number}", split, faults=[f"{number} has captions but is not among the images of {file}"])


def read_questions(file: Path, images: ImageFiles) -> Iterator[Annotation]:
    """`vqa.json`, one Annotation per question; rows with the same question are of several annotators, and merged."""
    known: dict[tuple[str, str, str], Question] = {}
    for i, row in enumerate(_parse(file, list[QuestionRow])):
        annotation = Annotation(image_path("", row.image, f"{file}, {i}"), row.split)
        annotation.add_question(row.question, row.answers, row.question_type)
        for question in annotation.questions:
            same = known.setdefault((annotation.name, row.split, question.text), question)
            if same is not question:
                same.answers += question.answers
                annotation.questions = []
        yield annotation


def read_vqa2(file: Path, images: ImageFiles) -> Iterator[Annotation]:
    """VQA v2's questions, one Annotation each, with the ten answers in the annotations beside them."""
    name = file.name.replace("OpenEnded_", "").replace("_questions", "_annotations")
    places = (file.parent, file.parent / "annotations", file.parent.parent / "annotations")
    answers_file = next((place / name for place in places if (place / name).is_file()), None)
    if answers_file is None:
        raise UserError(f"{file} is there, but not its answers, {name}; put that file beside it")
    answered = {row.question_id: row for row in _parse(answers_file, Vqa2Annotations).annotations}
    year = file.stem.split("_")[-2]  # train2014
    for row in _parse(file, Vqa2Questions).questions:
        plain = f"{row.image_id:012}.jpg"
        names = [f"COCO_{folder}_{plain}" for folder in dict.fromkeys((year, "train2014", "val2014"))]
        annotation = Annotation(images.find(*names, plain) or names[0], _split_of(file))
        about = answered.get(row.question_id) or Vqa2Annotation(question_id=row.question_id, answers=[])
        annotation.add_question(row.question, [answer.answer for answer in about.answers], about.answer_type)
        yield annotation


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


def _parse(file: Path, kind: type[T]) -> T:
    """The content of a JSON file. Raises UserError with the place of what is missing or of another type."""
    try:
        return TypeAdapter(kind).validate_python(json.loads(file.read_bytes()), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{file}, {place or 'top'}: {first['msg']}; correct the file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); correct it or copy it again") from error


def _annotation_files(path: Path) -> dict:
    """Reader -> its files."""
    karpathy = _files(path, "captions.json") or _files(path, "dataset_*.json")
    coco = [] if karpathy else _files(path, "captions_*.json") + _files(path, "nocaps_*captions.json")
    vqa2 = [file for file in _files(path, "*OpenEnded_mscoco_*_questions.json") if "_test" not in file.name]
    for files in (coco, vqa2):
        for file in files:
            if twins := [other for other in files if other != file and _split_of(other) == _split_of(file)]:
                raise UserError(f"{file} and {twins[0]} are both of the split {_split_of(file)}; remove one of them")
    return {read_karpathy: karpathy, read_coco: coco, read_questions: _files(path, "vqa.json"), read_vqa2: vqa2}


def _files(path: Path, pattern: str) -> list[Path]:
    return sorted(file for place in SUBFOLDERS for file in (path / place).glob(pattern) if file.is_file())


def _split_of(file: Path) -> str:
    """captions_train2014 -> train; nocaps_val_4500_captions -> val; captions_mine -> mine."""
    return split_in(file.stem) or file.stem.removeprefix("captions_")
