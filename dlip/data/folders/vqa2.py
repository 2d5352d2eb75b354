"""VQA v2's official pairs of files, and the list of answers that is made from them.

Source: Goyal et al., Making the V in VQA Matter (arXiv 1612.00837), and the files of visualqa.org.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.folders.annotations import Record, load, need
from dlip.data.folders.coco import split_of
from dlip.data.folders.images import Pictures

AT_LEAST = 9
"""Questions that an answer has to be the commonest of to be listed: 3,129 of VQA v2's training and validation."""


def annotations_of(questions: Path) -> Path:
    """v2_OpenEnded_mscoco_train2014_questions.json -> v2_mscoco_train2014_annotations.json, there or in `annotations/`.

    Raises UserError where it is in neither.
    """
    name = questions.name.replace("OpenEnded_", "").replace("_questions", "_annotations")
    for folder in (questions.parent, questions.parent / "annotations", questions.parent.parent / "annotations"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{questions} is there but its answers, {name}, are not; put that file beside it")


def coco_names(number: int, tag: str) -> tuple[str, ...]:
    """What COCO calls picture `number` of `tag` (train2014), first as that year does."""
    plain = f"{number:012}.jpg"
    tags = dict.fromkeys((tag, "train2014", "val2014"))
    return (*(f"COCO_{name}_{plain}" for name in tags), plain)


def read_vqa2(file: Path, pictures: Pictures) -> Iterator[Record]:
    """The questions of `file` with the ten answers that each has in its annotations, one Record each.

    A question's type is that of its answers (yes/no, number, other), by which accuracies are published. Raises
    UserError where the annotations are missing, or either file has another layout.
    """
    answers_file = annotations_of(file)
    tag = file.stem.split("_")[-2]  # train2014
    answered = {}
    for i, row in enumerate(need(load(answers_file), "annotations", list, str(answers_file))):
        answered[need(row, "question_id", int, f"{answers_file}, annotations[{i}]")] = (i, row)
    for i, row in enumerate(need(load(file), "questions", list, str(file))):
        where = f"{file}, questions[{i}]"
        name = pictures.find(*coco_names(need(row, "image_id", int, where), tag))
        record = Record(name, split_of(tag))
        text = need(row, "question", str, where).strip()
        place, known = answered.get(need(row, "question_id", int, where), (None, {"answers": []}))
        where = f"{answers_file}, annotations[{place}]"
        given = [need(a, "answer", str, f"{where}, answers").strip() for a in need(known, "answers", list, where)]
        record.ask(text, [answer for answer in given if answer], need(known, "answer_type", str, where, "other"))
        yield record


def read_answers(files: Sequence[str | Path]) -> list[str]:
    """Answers to choose from: those of VQA's annotations (*.json, as `answer_list`), or the lines of text files.

    Raises UserError where a file cannot be read or there is no answer.
    """
    annotations = [file for file in files if Path(file).suffix == ".json"]
    found = answer_list(*annotations) if annotations else []
    for file in files:
        if file not in annotations:
            try:
                found += filter(None, map(str.strip, Path(file).read_text().splitlines()))
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"the answers in {file} cannot be read ({error}); give a text file with one a line"
                ) from None
    if not found:
        raise UserError(f"there is no answer in {', '.join(map(str, files))}; give one a line, or VQA's annotations")
    return list(dict.fromkeys(found))


def answer_list(*annotations: str | Path, at_least: int = AT_LEAST) -> list[str]:
    """The answers that are the commonest one of at least so many questions, the most frequent first.

    annotations: VQA's files `v2_mscoco_*_annotations.json`; training and validation, as published models take them,
    or training alone. Each question counts once, by its "multiple_choice_answer" as the evaluation compares answers.
    """
    from dlip.data.answers import normalize

    counts = Counter()
    for file in map(Path, annotations):
        for i, row in enumerate(need(load(file), "annotations", list, str(file))):
            counts[normalize(need(row, "multiple_choice_answer", str, f"{file}, annotations[{i}]"))] += 1
    frequent = sorted(counts, key=lambda answer: (-counts[answer], answer))
    return [answer for answer in frequent if answer and counts[answer] >= at_least]
