"""A folder's pictures and all that its files say of them, whichever of the known layouts it has."""

from collections.abc import Callable, Iterable
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.folders import img2dataset
from dlip.data.folders.annotations import Record, read_captions, read_questions
from dlip.data.folders.coco import read_coco, split_of
from dlip.data.folders.cocoqa import FILES, read_cocoqa
from dlip.data.folders.flickr import read_flickr
from dlip.data.folders.images import Pictures
from dlip.data.folders.vqa2 import annotations_of, read_vqa2

PLACES = ("", "annotations", "questions")
"""Folders in which COCO's and VQA's files are looked for."""
LAYOUTS = "COCO's captions_*.json, Karpathy's dataset_*.json, NoCaps, Flickr30k, VQA v2, COCO-QA or img2dataset"

Reader = Callable[[Path, Pictures], Iterable[Record]]


def read(path: Path) -> tuple[Path, list[Record]]:
    """The folder of the pictures, and the Records of every split.

    Captions are taken from the first of these that is there: `captions.json`, Karpathy's file, COCO's or NoCaps' own,
    Flickr30k's list; questions from all of `vqa.json`, VQA v2 and COCO-QA. Raises UserError where there is nothing of
    the kind, or where a part of it is missing.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; check its name")
    found = _captions(path) + _questions(path)
    if not found and img2dataset.folders(path):
        return path, list(img2dataset.read_files(path))
    if not found:
        raise UserError(
            f"{path} holds neither captions.json nor vqa.json, nor {LAYOUTS}; put one there, beside images/"
        )
    pictures = Pictures(path)
    return pictures.root, [record for file, reader in found for record in reader(file, pictures)]


def _captions(path: Path) -> list[tuple[Path, Reader]]:
    if (path / "captions.json").is_file():
        return [(path / "captions.json", _alone(read_captions))]
    if karpathy := _files(path, "dataset_*.json"):
        return [(file, _alone(read_captions)) for file in karpathy]
    if coco := _files(path, "captions_*.json") + _files(path, "nocaps_*captions.json"):
        _once(coco)
        return [(file, read_coco) for file in coco]
    lists = [file for file in (path / "results.csv", path / "results_20130124.token") if file.is_file()]
    return [(file, _alone(read_flickr)) for file in lists[:1]]


def _questions(path: Path) -> list[tuple[Path, Reader]]:
    found = [(path / "vqa.json", _alone(read_questions))] if (path / "vqa.json").is_file() else []
    asked = [file for file in _files(path, "*OpenEnded_mscoco_*_questions.json") if "_test" not in file.name]
    answers = {annotations_of(file).name for file in asked}
    for file in _files(path, "*mscoco_*_annotations.json"):
        if file.name not in answers:
            raise UserError(f"{file} is there but its questions, v2_OpenEnded_..., are not; put that file beside it")
    _once(asked)
    found += [(file, read_vqa2) for file in asked]
    if any((path / name).is_file() for name in FILES[:3]):
        raise UserError(f"{path} holds COCO-QA's {FILES[0]} itself; put its files into folders train and test there")
    folders = [path / split for split in ("train", "test") if any((path / split / name).is_file() for name in FILES)]
    return found + [(folder, read_cocoqa) for folder in folders]


def _alone(read: Callable[[Path], Iterable[Record]]) -> Reader:
    """A reader whose file has the pictures' whole names."""
    return lambda file, pictures: read(file)


def _files(path: Path, pattern: str) -> list[Path]:
    return sorted(file for place in PLACES for file in (path / place).glob(pattern) if file.is_file())


def _once(files: list[Path]) -> None:
    """Raises UserError where two files are of the same split, as COCO's of 2014 and of 2017 are."""
    splits: dict[str, Path] = {}
    for file in files:
        other = splits.setdefault(split_of(file.stem), file)
        if other is not file:
            raise UserError(f"{other} and {file} are both of the split {split_of(file.stem)}; leave one of them there")
