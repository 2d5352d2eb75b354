"""VQA v2's official pairs of files, and the list of answers made from them.

Source: Goyal et al., Making the V in VQA Matter (arXiv 1612.00837), and the files of visualqa.org.
"""

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.annotation import Annotation
from dlip.data.folders.annotations import load_json, require
from dlip.data.folders.coco import split_of
from dlip.data.folders.images import ImageFiles


def question_files(files: list[Path]) -> list[Path]:
    """VQA v2's files of questions with answers (`*OpenEnded_mscoco_*_questions.json`) among `files`.

    Raises UserError if annotations are there without their questions.
    """
    questions = [
        file for file in files if fnmatch(file.name, "*OpenEnded_*_questions.json") and "_test" not in file.name
    ]
    answers = {annotations_of(file).name for file in questions}
    for file in files:
        if file.name.endswith("_annotations.json") and file.name not in answers:
            raise UserError(f"{file} is there, but not its questions, v2_OpenEnded_...; put that file beside it")
    return questions


def annotations_of(questions: Path) -> Path:
    """v2_OpenEnded_mscoco_train2014_questions.json -> v2_mscoco_train2014_annotations.json, beside it or in
    `annotations/`. Raises UserError if it is in neither.
    """
    name = questions.name.replace("OpenEnded_", "").replace("_questions", "_annotations")
    for folder in (questions.parent, questions.parent / "annotations", questions.parent.parent / "annotations"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{questions} is there, but not its answers, {name}; put that file beside it")


def coco_names(number: int, tag: str) -> tuple[str, ...]:
    """COCO's file names of image `number` of `tag` (train2014), that year's first."""
    plain = f"{number:012}.jpg"
    return (*(f"COCO_{name}_{plain}" for name in dict.fromkeys((tag, "train2014", "val2014"))), plain)


def read_vqa2(file: Path, images: ImageFiles) -> Iterator[Annotation]:
    """The questions of `file`, one Annotation each, with the ten answers in the annotations beside it.

    The type of a question is that of its answers (yes/no, number, other), by which accuracies are published. Raises
    UserError if the annotations are missing or a file has another layout.
    """
    answers_file = annotations_of(file)
    tag = file.stem.split("_")[-2]  # train2014
    answered = {}
    for i, row in enumerate(require(load_json(answers_file), "annotations", list, str(answers_file))):
        where = f"{answers_file}, annotations[{i}]"
        answered[require(row, "question_id", int, where)] = (where, row)
    for i, row in enumerate(require(load_json(file), "questions", list, str(file))):
        where = f"{file}, questions[{i}]"
        names = coco_names(require(row, "image_id", int, where), tag)
        annotation = Annotation(images.find(*names) or names[0], split_of(tag))
        text = require(row, "question", str, where)
        place, about = answered.get(require(row, "question_id", int, where), (str(answers_file), {"answers": []}))
        rows = require(about, "answers", list, place)
        answers = [require(answer, "answer", str, f"{place}, answers") for answer in rows]
        annotation.add_question(text, answers, require(about, "answer_type", str, place, "other"))
        yield annotation
