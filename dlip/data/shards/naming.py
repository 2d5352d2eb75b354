"""Which shards a name stands for (a folder, a pattern or a URL), and the split of each."""

import json
import re
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import product
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.annotation import check_split
from dlip.data.shards.download import is_url, read_url

INDEX = "index.json"
"""File that `dlip data shard` writes beside its shards: their splits and what each holds."""
MAX_SHARDS = 1_000_000
"""A larger range in braces is taken for a mistake."""
COUNTS = ("images", "captions", "questions", "bytes")
"""Counts of a shard in the index."""
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
"""Word in the name of a shard or of its folder -> split."""
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]+)\}")


@dataclass
class Shard:
    split: str
    label: str
    """Path below the dataset's folder, or the last part of the URL."""
    source: str
    """Path or URL."""
    indexed: dict | None
    """What the index says of it: its split, images, captions, questions and bytes; None if it has no entry."""


def is_shards(name: str | Path) -> bool:
    """Whether a name stands for shards: a .tar file or a pattern of them, a URL, or a folder of .tar files."""
    path = Path(name)
    if is_url(str(name)) or path.suffix == ".tar":
        return True
    return path.is_dir() and not (path / "images").is_dir() and bool(_tars(path))


def splits(name: str | Path) -> list[str]:
    """The splits of some shards, in alphabetical order. Raises UserError as `shards` does."""
    return sorted({shard.split for shard in shards(name)})


def shards(name: str | Path) -> list[Shard]:
    """The shards of a folder, a pattern (`*`, `{000..041}`, `{train,val}`) or a URL, in order.

    A shard's split is the one in the index beside it; else its subfolder; else the word before its number
    (train-00000.tar, cc3m-validation-000.tar); else train. Raises UserError if there are no shards.
    """
    name = str(name)
    if is_url(name):
        return _from_web(name)
    path = Path(name)
    root = path if path.is_dir() else path.parent
    index = _parse_index((root / INDEX).read_bytes(), str(root / INDEX)) if (root / INDEX).is_file() else {}
    if path.is_dir():  # a shard of the index that is missing here is a fault when it is read
        files = sorted({*_tars(path), *(root / label for label in index)})
    else:
        files = [Path(f) for part in expand_braces(name) for f in (sorted(glob(part)) if has_magic(part) else [part])]
        if missing := [file for file in files if not file.is_file()]:
            raise UserError(f"there is no shard {missing[0]}; check its name")
    if not files:
        raise UserError(f"there are no shards {name}; check the name, or give a folder that holds *.tar")
    labels = [file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name for file in files]
    return [_shard(label, str(file), index) for label, file in zip(labels, files, strict=True)]


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
    urls = expand_braces(name)
    is_folder = not name.partition("?")[0].endswith(".tar")
    folder = name.rstrip("/") if is_folder else urls[0].partition("?")[0].rpartition("/")[0]
    data = read_url(f"{folder}/{INDEX}")
    index = {} if data is None else _parse_index(data, f"{folder}/{INDEX}")
    if is_folder and not index:
        raise UserError(f"{name} has no {INDEX} that lists its shards; name them: {folder}/{{000..041}}.tar")
    if is_folder:
        return [_shard(label, f"{folder}/{label}", index) for label in index]
    return [_shard(url.partition("?")[0].rpartition("/")[2], url, index) for url in urls]


def _shard(label: str, source: str, index: dict[str, dict]) -> Shard:
    row = index.get(label)
    folder, _, file = label.rpartition("/")
    word = re.split(r"[-_.]", file.removesuffix(".tar").rstrip("0123456789").rstrip("-_."))[-1]
    split = SPLITS.get(folder, folder) if folder else SPLITS.get(word, "train")
    return Shard(row["split"] if row else split, label, source, row)


def _parse_index(data: bytes, where: str) -> dict[str, dict]:
    """Label of a shard -> its split and counts."""
    index = {}
    try:
        rows = json.loads(data)["shards"]
        if rows is None:
            raise UserError(f"{where} is of unfinished shards; remove them, and pack them again")
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
