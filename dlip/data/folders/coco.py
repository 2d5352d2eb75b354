"""COCO's own files of captions, and NoCaps', which have the same layout.

Source: Chen et al., Microsoft COCO Captions (arXiv 1504.00325); Agrawal et al., nocaps (arXiv 1812.08658).
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dlip.data.folders.annotations import Record, below, load, need
from dlip.data.folders.images import Pictures

_SPLIT = re.compile(r"train|val|test")


def split_of(stem: str) -> str:
    """captions_train2014 -> train; nocaps_val_4500_captions -> val; captions_mine -> mine."""
    found = _SPLIT.search(stem)
    return found[0] if found else stem.removeprefix("captions_")


def read_coco(file: Path, pictures: Pictures) -> Iterator[Record]:
    """{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}, the split from the file's name.

    A picture may lie in any folder below the pictures' own. Raises UserError where the layout is another.
    """
    content, split = load(file), split_of(file.stem)
    said: dict[int, list[str]] = defaultdict(list)
    for i, row in enumerate(need(content, "annotations", list, str(file))):
        where = f"{file}, annotations[{i}]"
        said[need(row, "image_id", int, where)].append(need(row, "caption", str, where).strip())
    for i, image in enumerate(need(content, "images", list, str(file))):
        where = f"{file}, images[{i}]"
        name = pictures.find(below("", need(image, "file_name", str, where), where))
        captions = said.pop(need(image, "id", int, where), [])
        record = Record(name, split, [caption for caption in captions if caption])
        record.faults += [f"{name} has an empty caption"] * captions.count("")
        if not captions:
            record.faults.append(f"{name} has no caption")
        yield record
    for number in said:
        yield Record(f"{number}", split, faults=[f"{number} has captions in {file.name} but is not among its images"])
