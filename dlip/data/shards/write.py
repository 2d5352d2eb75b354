"""Write any dataset as shards in WebDataset's layout; all but tags read back as it was."""

import io
import json
import tarfile
from pathlib import Path

from tqdm import tqdm

from dlip.common.errors import UserError
from dlip.common.files import read_json, write_atomically, write_json
from dlip.data.annotation import check_split
from dlip.data.batch import Example
from dlip.data.quarantine import image_suffix
from dlip.data.shards.naming import INDEX

IMAGES_PER_SHARD = 1000
UNFINISHED = {"version": 1, "shards": None}
"""Index of shards that are being written."""


def write_shards(path: str | Path, splits: dict[str, object], images: int = IMAGES_PER_SHARD) -> dict:
    """Write `train-00000.tar`, ... of up to `images` images each, and `index.json`, whose content is returned.

    splits: name of a split -> its dataset. An image's file is packed unchanged, its texts and id as JSON beside it; the
    same data give the same bytes. Raises UserError if the folder holds shards or a split cannot name a file.
    """
    folder = Path(path)
    check_empty(folder)
    for split in splits:
        check_split(split)
    rows = []
    write_json(folder / INDEX, UNFINISHED)
    for split, dataset in splits.items():
        for number, first in enumerate(range(0, len(dataset), images)):
            file, places = folder / f"{split}-{number:05}.tar", range(first, min(first + images, len(dataset)))
            rows.append({"file": file.name, "split": split, **_write_shard(file, dataset, places)})
    write_json(folder / INDEX, {"version": 1, "shards": rows})
    return {"shards": rows}


def check_empty(folder: str | Path) -> None:
    """Raise UserError if the folder holds shards, or an index that is not of an interrupted `write_shards`."""
    if any(Path(folder).glob("*.tar")):
        raise UserError(f"{folder} holds shards already; name another folder, or remove them")
    if (index := Path(folder) / INDEX).exists() and read_json(index) != UNFINISHED:
        raise UserError(f"{index} would be replaced; name another folder, or remove it")


def _write_shard(path: Path, dataset, places: range) -> dict[str, int]:
    """Write the images at some places of a dataset; return the shard's numbers of images, texts and bytes."""
    counts = {"images": len(places), "captions": 0, "questions": 0}

    def write(temporary: Path) -> None:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in tqdm(places, path.name, leave=False, disable=None):
                item, image = dataset.without_image(i), dataset.image_bytes(i)
                counts["captions"] += len(item.captions)
                counts["questions"] += len(item.questions)
                about = json.dumps(_texts(item, dataset.image_name(i))).encode()
                for suffix, data in ((image_suffix(image), image), (".json", about)):
                    member = tarfile.TarInfo(f"{i:09}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))

    write_atomically(path, write)
    return counts | {"bytes": path.stat().st_size}


def _texts(item: Example, name: str) -> dict:
    """The JSON beside an image."""
    questions = [{"question": q.text, "answers": q.answers, "question_type": q.type} for q in item.questions]
    about = {"image_id": item.image_id, "name": name, "captions": item.captions, "questions": questions}
    return about | ({"writers": item.writers} if item.writers else {})
