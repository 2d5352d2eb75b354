"""Write any dataset as shards in WebDataset's layout; they read back as the dataset was."""

import io
import json
import tarfile
from pathlib import Path

from tqdm import tqdm

from dlip.common.errors import UserError
from dlip.common.files import write_atomically, write_json
from dlip.data.annotation import check_split
from dlip.data.quarantine import encoded_item
from dlip.data.shards.naming import INDEX

IMAGES_PER_SHARD = 1000


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
    write_json(folder / INDEX, {"version": 1, "shards": None})  # marks the shards as unfinished
    for split, dataset in splits.items():
        for number, first in enumerate(range(0, len(dataset), images)):
            places = range(first, min(first + images, len(dataset)))
            file, counts = folder / f"{split}-{number:05}.tar", {"captions": 0, "questions": 0}
            bar = tqdm(places, file.name, leave=False, disable=None)
            write_atomically(file, lambda to, bar=bar, dataset=dataset, counts=counts: _write(to, dataset, bar, counts))
            size = {"images": len(places), **counts, "bytes": file.stat().st_size}
            rows.append({"file": file.name, "split": split, **size})
    write_json(folder / INDEX, {"version": 1, "shards": rows})
    return {"shards": rows}


def check_empty(folder: str | Path) -> None:
    """Raise UserError if the folder holds shards."""
    if any(Path(folder).glob("*.tar")):
        raise UserError(f"{folder} holds shards already; name another folder, or remove them")


def _write(path: Path, dataset, places, counts: dict[str, int]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in places:
            item = encoded_item(dataset, i)
            counts["captions"] += len(item.captions)
            counts["questions"] += len(item.questions)
            questions = [{"question": q.text, "answers": q.answers, "question_type": q.type} for q in item.questions]
            about = {"image_id": item.image_id, "name": item.name, "captions": item.captions, "questions": questions}
            about |= {"writers": item.writers} if item.writers else {}
            for suffix, data in ((item.suffix, item.data), (".json", json.dumps(about).encode())):
                member = tarfile.TarInfo(f"{i:09}{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
