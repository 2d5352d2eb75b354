"""Which shards a name stands for: a folder, a pattern, an address; and the split that each belongs to."""

import json
import re
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import product
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.folders.annotations import check_split
from dlip.data.shards.download import is_url, read_url
from dlip.data.shards.tar_index import MAX_NAME

INDEX = "index.json"
"""What `dlip data shard` writes beside its shards: their splits and how much is in each."""
MOST = 1_000_000
"""Shards that one {000..999} may stand for."""
COUNTS = ("images", "captions", "questions", "bytes")
"""That the index gives of a shard."""
_KNOWN = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]+)\}")


@dataclass
class Shard:
    split: str
    label: str
    """its path below the data's folder, or the last part of its address"""
    source: str
    """path or address"""
    promised: dict | None
    """what the index says of it: pictures, captions, questions, bytes"""


def is_shards(name: str | Path) -> bool:
    """Whether `name` is that of shards: a .tar, a pattern of them, an address, or a folder that holds some."""
    path = Path(name)
    if is_url(str(name)) or path.suffix == ".tar":
        return True
    return path.is_dir() and not (path / "images").is_dir() and bool(_tars(path))


def splits(name: str | Path) -> list[str]:
    """The splits that shards have, in alphabetical order. Raises UserError as `shards` does."""
    return sorted({shard.split for shard in shards(name)})


def shards(name: str | Path) -> list[Shard]:
    """The shards that a folder, a pattern (`*`, `{000..041}`, `{train,val}`) or an address names, in order.

    A shard's split is what the index beside it says; else its folder, where that lies in the data's; else what its
    name says before the number, train-00000.tar or cc3m-validation-000.tar; else train. Raises UserError where
    there are none.
    """
    name = str(name)
    if is_url(name):
        return _on_the_web(name)
    path = Path(name)
    root = path if path.is_dir() else path.parent
    known = _read_index((root / INDEX).read_bytes(), str(root / INDEX)) if (root / INDEX).is_file() else {}
    if path.is_dir():  # of which one may be missing that the index names, as on the web
        files = sorted({*_tars(path), *(root / label for label in known)})
    else:
        files = [Path(f) for part in braces(name) for f in (sorted(glob(part)) if has_magic(part) else [part])]
        if missing := [file for file in files if not file.is_file()]:
            raise UserError(f"there is no shard {missing[0]}; check its name")
    if not files:
        raise UserError(f"there are no shards {name}; check the name, or give a folder that holds *.tar")
    found = []
    for file in files:
        label = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        found.append(Shard(_split(label, known), label, str(file), known.get(label)))
    return found


def braces(name: str) -> list[str]:
    """Every name that a pattern with {000..041} or {train,val} stands for."""
    pieces, end, count = [], 0, 1
    for match in _RANGE.finditer(name):
        pieces.append([name[end : match.start()]])
        first, last, words = match.groups()
        count *= max(0, int(last) - int(first) + 1) if last else len(words.split(","))
        if not 0 < count <= MOST:
            raise UserError(
                f"{name} stands for {f'more than {MOST:,}' if count else 'no'} shards; mend what is in its braces"
            )
        numbers = words.split(",") if words else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
        pieces.append(numbers)
        end = match.end()
    return ["".join(parts) for parts in product(*pieces, [name[end:]])]


def _on_the_web(name: str) -> list[Shard]:
    addresses = braces(name)
    whole = not name.partition("?")[0].endswith(".tar")
    folder = name.rstrip("/") if whole else addresses[0].partition("?")[0].rpartition("/")[0]
    data = read_url(f"{folder}/{INDEX}")
    known = _read_index(data, f"{folder}/{INDEX}") if data is not None else {}
    if whole:
        if not known:
            raise UserError(
                f"{name} has no {INDEX}, so that its shards are not known; name them: {folder}/{{000..041}}.tar"
            )
        return [Shard(about["split"], label, f"{folder}/{label}", about) for label, about in known.items()]
    labels = [address.partition("?")[0].rpartition("/")[2] for address in addresses]
    return [Shard(_split(la, known), la, url, known.get(la)) for la, url in zip(labels, addresses, strict=True)]


def _read_index(data: bytes, where: str) -> dict[str, dict]:
    """Label -> what the index says of that shard."""
    try:
        known, rows = {}, json.loads(data)["shards"]
        if rows is None:
            raise UserError(f"the shards beside {where} were not all packed; remove them, and pack them again")
        for row in rows:
            counts = {noun: int(row[noun]) for noun in COUNTS}
            known[str(row["file"])] = {"split": str(row["split"]), **counts}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{where} is no index of shards ({error!r}); remove it, or let dlip data shard write it"
        ) from error
    if bad := [label for label in known if ".." in Path(label).parts or Path(label).is_absolute()]:
        raise UserError(f"{where} names {bad[0][:80]!r}, which does not lie beside it; mend it")
    if bad := [label for label in known if not label.isprintable() or len(label) > MAX_NAME]:
        raise UserError(f"{where} names {bad[0][:80]!r}, which cannot be a shard's name; mend it")
    for label, about in known.items():
        if wrong := [noun for noun in COUNTS if not 0 <= about[noun] < 2**53]:
            raise UserError(f"{where} gives {label} {str(about[wrong[0]])[:20]} {wrong[0]}; mend it")
        check_split(about["split"])
    return known


def _split(label: str, known: dict[str, dict]) -> str:
    if label in known:
        return known[label]["split"]
    folder, _, last = label.rpartition("/")
    if folder:
        return _KNOWN.get(folder, folder)
    words = re.split(r"[-_.]", last.removesuffix(".tar").rstrip("0123456789").rstrip("-_."))
    return _KNOWN.get(words[-1], "train")


def _tars(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.tar"), *folder.glob("*/*.tar")])
