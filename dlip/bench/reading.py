"""Speed of reading images from a folder and from shards, compared with torchvision's ImageFolder."""

import io
import json
import random
import tarfile
import tempfile
import time
from pathlib import Path
from pkgutil import resolve_name

from dlip.bench import row
from dlip.common.errors import UserError
from dlip.data.folders.dataset import Folder, splits
from dlip.data.hub.table import Table

IMAGES = 1000


def run(data: str | None = None, rounds: int = 9) -> tuple[dict, list[dict]]:
    """Images per second, decoded to RGB at their own size, the readers in alternation.

    ImageFolder reads the same files through links in a folder of one class; the shards hold the same bytes. The order
    is random and the same for all readers. A warm-up round fills the file cache. Raises UserError if no folder is
    given or torchvision is not installed.
    """
    if data is None:
        raise UserError("this benchmark reads a folder of images; name one with --data path/to/flickr8k")
    try:
        image_folder = resolve_name("torchvision.datasets:ImageFolder")  # the only use of torchvision
    except ModuleNotFoundError:
        raise UserError("the comparison needs torchvision; run pip install torchvision") from None
    split = splits(data)[0]
    files = Folder(data, split)
    with tempfile.TemporaryDirectory() as place:
        links = Path(place) / "links" / "one"
        links.mkdir(parents=True)
        for i, record in enumerate(files.annotations):  # names that ImageFolder sorts in this order
            (links / f"{i:09}{Path(record.name).suffix}").symlink_to((files.root / record.name).resolve())
        with tarfile.open(Path(place) / f"{split}-0.tar", "w") as tar:
            for i, link in enumerate(sorted(links.iterdir())):
                tar.add(link.resolve(), link.name)
                text = json.dumps({"captions": files.without_image(i).captions or ["none"]}).encode()
                member = tarfile.TarInfo(f"{link.stem}.json")
                member.size = len(text)
                tar.addfile(member, io.BytesIO(text))
        readers = {
            "ImageFolder": image_folder(str(links.parent)),
            "shards": Table(f"{place}/{split}-0.tar", split),
            "folder": files,
        }
        order = random.Random(0).sample(range(len(files)), min(IMAGES, len(files)))
        speeds: dict[str, list[float]] = {name: [] for name in readers}
        for turn in range(rounds + 1):
            for name in random.Random(turn).sample(list(readers), len(readers)):
                start = time.perf_counter()
                _read(readers[name], order)
                if turn:
                    speeds[name].append(len(order) / (time.perf_counter() - start))
    first = speeds["ImageFolder"]
    rows = [row(name, values, first, "images_per_s") for name, values in speeds.items()]
    return {"data": files.name, "images": len(order), "rounds": rounds}, rows


def _read(dataset, order: list[int]) -> None:
    for i in order:
        dataset[i]
