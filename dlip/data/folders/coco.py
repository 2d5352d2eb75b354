"""COCO's own caption files, and those of NoCaps, which have the same layout.

Source: Chen et al., Microsoft COCO Captions (arXiv 1504.00325); Agrawal et al., nocaps (arXiv 1812.08658).
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dlip.data.annotation import Annotation, check_split, split_in
from dlip.data.folders.annotations import image_path, load_json, require
from dlip.data.folders.images import ImageFiles


def split_of(stem: str) -> str:
    """captions_train2014 -> train; nocaps_val_4500_captions -> val; captions_mine -> mine."""
    return split_in(stem) or stem.removeprefix("captions_")


def read_coco(file: Path, images: ImageFiles) -> Iterator[Annotation]:
    """{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}; the split is in the file's name.

    Raises UserError if the layout is another one.
    """
    content, split = load_json(file), split_of(file.stem)
    check_split(split)
    folder = file.stem.removeprefix("captions_")  # train2014
    captions: dict[int, list[str]] = defaultdict(list)
    for i, row in enumerate(require(content, "annotations", list, str(file))):
        where = f"{file}, annotations[{i}]"
        captions[require(row, "image_id", int, where)].append(require(row, "caption", str, where))
    for i, image in enumerate(require(content, "images", list, str(file))):
        where = f"{file}, images[{i}]"
        name = image_path("", require(image, "file_name", str, where), where)
        annotation = Annotation(images.find(f"{folder}/{name}", name) or name, split)
        annotation.add_captions(captions.pop(require(image, "id", int, where), []))
        annotation.check_not_empty()
        yield annotation
    for number in captions:
        yield Annotation(f"{number}", split, faults=[f"{number} has captions but is not among the images of {file}"])
