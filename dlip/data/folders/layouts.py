"""All annotations of a folder, in any of the known layouts."""

from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.annotation import Annotation
from dlip.data.folders.annotations import read_captions, read_questions
from dlip.data.folders.coco import read_coco, split_of
from dlip.data.folders.images import ImageFiles, image_files
from dlip.data.folders.vqa2 import question_files, read_vqa2

SUBFOLDERS = ("", "annotations", "questions")
"""Subfolders in which COCO's and VQA's files are looked for."""


def read(path: Path, uncaptioned: bool = False) -> tuple[Path, list[Annotation]]:
    """The folder of the images, and the annotations of every split.

    Captions come from the first of `captions.json`, Karpathy's `dataset_*.json`, COCO's or NoCaps' own files; questions
    from `vqa.json` and VQA v2's pairs of files. Raises UserError if there is neither, or one of a pair is missing.
    uncaptioned: of a folder with neither, read the images alone, as the split train.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; check its name")
    karpathy, coco, questions, vqa2 = _annotation_files(path)
    vqa2 = question_files(vqa2)
    if not karpathy + coco + questions + vqa2:
        if uncaptioned and (names := image_files(root := path / "images" if (path / "images").is_dir() else path)):
            return root, [Annotation(name, "train") for name in names]
        raise UserError(
            f"{path} holds {'no images, and ' * uncaptioned}neither captions.json nor vqa.json, nor COCO's "
            f"captions_*.json, Karpathy's dataset_*.json, NoCaps or VQA v2; put one there, beside images/"
        )
    _check_one_file_per_split(coco)
    _check_one_file_per_split(vqa2)
    images = ImageFiles(path)
    annotations = [annotation for file in karpathy for annotation in read_captions(file, images)]
    annotations += [annotation for file in coco for annotation in read_coco(file, images)]
    annotations += [annotation for file in questions for annotation in read_questions(file)]
    annotations += [annotation for file in vqa2 for annotation in read_vqa2(file, images)]
    return images.root, annotations


def has_annotations(path: Path) -> bool:
    """Whether a folder has a file of captions or questions in a known layout."""
    return any(_annotation_files(path))


def _annotation_files(path: Path) -> tuple[list[Path], list[Path], list[Path], list[Path]]:
    """Files of Karpathy's captions, of COCO's or NoCaps', of questions in `vqa.json`, and VQA v2's."""
    karpathy = [path / "captions.json"] if (path / "captions.json").is_file() else _files(path, "dataset_*.json")
    coco = [] if karpathy else _files(path, "captions_*.json") + _files(path, "nocaps_*captions.json")
    questions = [path / "vqa.json"] if (path / "vqa.json").is_file() else []
    return karpathy, coco, questions, _files(path, "*mscoco_*.json")


def _files(path: Path, pattern: str) -> list[Path]:
    return sorted(file for place in SUBFOLDERS for file in (path / place).glob(pattern) if file.is_file())


def _check_one_file_per_split(files: list[Path]) -> None:
    """Raise UserError if two files are of one split, as COCO's of 2014 and of 2017 are."""
    splits: dict[str, Path] = {}
    for file in files:
        other = splits.setdefault(split_of(file.stem), file)
        if other is not file:
            raise UserError(f"{other} and {file} are both of the split {split_of(file.stem)}; remove one of them")
