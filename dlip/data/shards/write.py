"""Any data set as shards in WebDataset's layout, which read back as what was packed."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dlip.common.errors import UserError
from dlip.common.files import write_atomically, write_json
from dlip.data.folders.annotations import check_split
from dlip.data.quarantine import EncodedItem
from dlip.data.shards.naming import INDEX

PICTURES = 1000
"""Of a shard."""


def write_shards(path: str | Path, splits: dict[str, object], pictures: int = PICTURES) -> dict:
    """Writes `train-00000.tar`, ... of up to so many pictures each, and `index.json`, whose content is returned.

    splits: name of a split -> its data set. A picture's file is packed as it is, its texts and number as JSON beside
    it; the same data give the same bytes. Raises UserError where shards lie there already, or a file cannot be
    called after a split.
    """
    folder = Path(path)
    check_empty(folder)
    if pictures < 1:
        raise UserError(f"a shard cannot hold {pictures} pictures; give at least 1")
    for split in splits:
        check_split(split)
    rows = []
    write_json(folder / INDEX, {"version": 1, "shards": None})  # lest a part be taken for all
    for split, dataset in splits.items():
        for number, first in enumerate(range(0, len(dataset), pictures)):
            places = range(first, min(first + pictures, len(dataset)))
            file, counts = folder / f"{split}-{number:05}.tar", {"captions": 0, "questions": 0}
            bar = tqdm(places, file.name, leave=False, disable=None)
            write_atomically(file, lambda to, bar=bar, dataset=dataset, counts=counts: _write(to, dataset, bar, counts))
            size = {"images": len(places), **counts, "bytes": file.stat().st_size}
            rows.append({"file": file.name, "split": split, **size})
    write_json(folder / INDEX, {"version": 1, "shards": rows})
    return {"shards": rows}


def check_empty(folder: str | Path) -> None:
    """Raises UserError where the folder holds shards."""
    if any(Path(folder).glob("*.tar")):
        raise UserError(f"{folder} holds shards already; name another folder, or remove them")


def encoded_item(dataset, i: int) -> EncodedItem:
    """Picture i of any data set as a file holds it; one that has no file becomes a PNG."""
    if hasattr(dataset, "encoded_item"):
        return dataset.encoded_item(i)
    item, data = dataset[i], io.BytesIO()
    image = Image.fromarray(item.image) if isinstance(item.image, np.ndarray) else item.image
    image.save(data, "PNG")
    return EncodedItem(f"{dataset.split}-{i}", item.image_id, item.captions, item.questions, data.getvalue())


def _write(path: Path, dataset, places, counts: dict[str, int]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in places:
            picture = encoded_item(dataset, i)
            counts["captions"] += len(picture.captions)
            counts["questions"] += len(picture.questions)
            for suffix, data in _files(picture):
                member = tarfile.TarInfo(f"{i:09}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _files(picture: EncodedItem) -> Iterator[tuple[str, bytes]]:
    yield picture.suffix, picture.data
    asked = [{"question": q.text, "answers": q.answers, "question_type": q.type} for q in picture.questions]
    about = {"image_id": picture.image_id, "name": picture.name, "captions": picture.captions, "questions": asked}
    yield ".json", json.dumps(about).encode()
