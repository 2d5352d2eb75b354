"""Which shards a name stands for (a folder, a pattern or a URL), and the split of each."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import product
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.annotation import SPLITS, check_split
from dlip.data.folders.layouts import has_annotations
from dlip.data.shards.download import is_url, read_url

INDEX = "index.json"
"""File that `dlip data shard` writes beside its shards: their splits and what each holds."""
MAX_SHARDS = 1_000_000
"""A larger range in braces is taken for a mistake."""
COUNTS = ("images", "captions", "questions", "bytes")
"""Counts of a shard in the index."""
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]+)\}")


@dataclass
class Shard:
    """One tar file of a dataset."""

    split: str
    label: str
    """Path below the folder that all shards of the dataset are in."""
    source: str
    """Path or URL."""
    indexed: dict | None
    """What the index says of it: its split, images, captions, questions and bytes; None if it has no entry."""


def is_shards(name: str | Path) -> bool:
    """Whether a name stands for shards: a .tar file or a pattern of them, a URL, or a folder of .tar files.

    A folder with images or annotations is none; the .tar file that its images came in may still lie there.
    """
    path = Path(name)
    if is_url(str(name)) or path.suffix == ".tar":
        return True
    return path.is_dir() and bool(_tars(path)) and not ((path / "images").is_dir() or has_annotations(path))


def splits(name: str | Path) -> list[str]:
    """The splits of some shards, in alphabetical order. Raises UserError as `shards` does."""
    return sorted({shard.split for shard in shards(name)})


def shards(name: str | Path) -> list[Shard]:
    """The shards of a folder, a pattern (`*`, `{000..041}`, `{train,val}`) or a URL, in order.

    A shard's split is the one in the index beside it; else its subfolder, which of a pattern or URL has to be a word of
    `SPLITS`; else the word before its number (train-00000.tar, cc3m-validation-000.tar, val2014-000-of-002.tar); else
    train. Raises UserError if there are no shards.
    """
    name = str(name)
    if is_url(name):
        return _from_web(name)
    path = Path(name)
    if path.is_dir():  # a shard of the index that is missing here is a fault when it is read
        index = _read_index(path)
        files = sorted({*_tars(path), *(path / label for label in index)})
        labels = [file.relative_to(path).as_posix() for file in files]
        listed = [_shard(label, str(path / label), index.get(label), _folder_split(label)) for label in labels]
    else:
        files = [file for part in expand_braces(name) for file in _matching(part)]
        if missing := [file for file in files if not os.path.isfile(file)]:
            raise UserError(f"there is no shard {missing[0]}; check its name")
        listed = _of_pattern(files, lambda folder: _read_index(Path(folder or "."))) if files else []
    if not listed:
        raise UserError(f"there are no shards {name}; check the name, or give a folder that holds *.tar")
    return listed


def _matching(pattern: str) -> list[str]:
    """The files of a name with or without wildcards. A file may have them in its name: `photos [1].tar`."""
    return sorted(glob(pattern)) if has_magic(pattern) and not os.path.isfile(pattern) else [pattern]


def expand_braces(pattern: str) -> list[str]:
    """Every name that a pattern with {000..041} or {train,val} stands for."""
    pieces, end = [], 0
    for match in _BRACES.finditer(pattern):
        first, last, words = match.groups()
        if words:
            values = words.split(",")
        elif 0 <= int(last) - int(first) < MAX_SHARDS:
            values = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
        else:
            raise UserError(f"{match[0]} in {pattern} is not a range of 1 to {MAX_SHARDS:,} shards; correct it")
        pieces += [[pattern[end : match.start()]], values]
        end = match.end()
    return ["".join(parts) for parts in product(*pieces, [pattern[end:]])]


def _from_web(name: str) -> list[Shard]:
    if name.partition("?")[0].endswith(".tar"):
        return _of_pattern(expand_braces(name), _download_index)
    folder = name.rstrip("/")
    index = _download_index(folder)
    if not index:
        raise UserError(f"{name} has no {INDEX} that lists its shards; name them: {folder}/{{000..041}}.tar")
    return [_shard(label, f"{folder}/{label}", row, None) for label, row in index.items()]


def _of_pattern(sources: list[str], read_index: Callable[[str], dict[str, dict]]) -> list[Shard]:
    """The shards of these paths or URLs, each with the index beside it."""
    paths = [source.partition("?")[0] if is_url(source) else source for source in sources]
    folders = [os.path.dirname(path) for path in paths]
    indexes = {folder: read_index(folder) for folder in dict.fromkeys(folders)}
    try:
        shared, listed = os.path.commonpath(folders) or ".", []
    except ValueError as error:  # a pattern of absolute and relative paths
        raise UserError(
            f"the shards {sources[0]} and {sources[-1]} have no folder in common; name them apart"
        ) from error
    for path, folder, source in zip(paths, folders, sources, strict=True):
        label = os.path.normpath(os.path.join(os.path.relpath(folder or ".", shared), os.path.basename(path)))
        row = indexes[folder].get(os.path.basename(path))
        listed.append(_shard(label, source, row, SPLITS.get(os.path.basename(folder))))
    return listed


def _shard(label: str, source: str, row: dict | None, folder_split: str | None) -> Shard:
    """row: its entry in the index, if it has one. folder_split: the split that its folder names, if it does."""
    file = re.sub(r"-of-\d+$", "", label.rpartition("/")[2].removesuffix(".tar"))  # train-00000-of-00010
    word = re.split(r"[-_.]", file.rstrip("0123456789").rstrip("-_."))[-1].rstrip("0123456789")
    return Shard(row["split"] if row else folder_split or SPLITS.get(word, "train"), label, source, row)


def _folder_split(label: str) -> str | None:
    """The split that the subfolder of a label names, whatever its name; None if it is in none."""
    folder = label.rpartition("/")[0]
    return SPLITS.get(folder, folder) or None


def _read_index(folder: Path) -> dict[str, dict]:
    file = folder / INDEX
    return _parse_index(file.read_bytes(), str(file)) if file.is_file() else {}


def _download_index(folder: str) -> dict[str, dict]:
    data = read_url(f"{folder}/{INDEX}")
    return {} if data is None else _parse_index(data, f"{folder}/{INDEX}")


def _parse_index(data: bytes, where: str) -> dict[str, dict]:
    """Label of a shard -> its split and counts."""
    index = {}
    try:
        rows = json.loads(data)["shards"]
        if rows is None:
            raise UserError(f"{where} belongs to unfinished shards; remove them, and pack them again")
        for row in rows:
            index[str(row["file"])] = {"split": str(row["split"]), **{noun: int(row[noun]) for noun in COUNTS}}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"{where} is not an index of shards ({error!r}); remove it, or pack the shards again with dlip data shard"
        ) from error
    for label, row in index.items():
        check_split(row["split"])
        if ".." in Path(label).parts or Path(label).is_absolute():
            raise UserError(f"{where} names the shard {label!r}, which is not beside it; correct its name")
    return index


def _tars(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.tar"), *folder.glob("*/*.tar")])
