"""COCO-QA: text files with a line a question, in `train/` and `test/`.

Source: Ren et al., Exploring Models and Data for Image Question Answering (arXiv 1505.02074).
"""

from collections.abc import Iterator
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.folders.annotations import Record
from dlip.data.folders.images import Pictures
from dlip.data.folders.vqa2 import coco_names

FILES = ("questions.txt", "answers.txt", "img_ids.txt", "types.txt")
TYPES = {"0": "object", "1": "number", "2": "color", "3": "location"}


def read_cocoqa(folder: Path, pictures: Pictures) -> Iterator[Record]:
    """The questions of one split, which is the folder's name; `img_ids.txt` has COCO's numbers of the pictures.

    Raises UserError where a file is missing or has more lines than another, or a number or type is none.
    """
    columns = [_lines(folder / name) for name in FILES]
    if len(set(map(len, columns))) > 1:
        counted = ", ".join(f"{name} {len(lines)}" for name, lines in zip(FILES, columns, strict=True))
        raise UserError(f"the files in {folder} differ in their number of lines ({counted}); copy them again")
    for i, (text, answer, number, kind) in enumerate(zip(*columns, strict=True), 1):
        if not number.isdecimal() or kind not in TYPES:
            wrong, name = (number, FILES[2]) if not number.isdecimal() else (kind, FILES[3])
            raise UserError(
                f"line {i} of {folder / name} is {wrong!r}, which is no number of a picture or type; mend it"
            )
        name = pictures.find(*coco_names(int(number), "train2014"))
        record = Record(name, folder.name)
        record.ask(text, [answer] if answer else [], TYPES[kind])
        yield record


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"COCO-QA has {', '.join(FILES)}, of which {file} is missing; put it there") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); copy it again") from error
