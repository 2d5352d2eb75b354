"""How fast pictures are read, beside torchvision's ImageFolder on the same files."""

import random
import tempfile
import time
from pathlib import Path
from pkgutil import resolve_name

from torch.utils.data import DataLoader, Dataset

from dlip.bench import row
from dlip.common.errors import UserError
from dlip.data.folders.dataset import Folder, splits
from dlip.data.shards.dataset import Shards
from dlip.data.shards.write import write_shards

PICTURES = 1000


def run(data: str | None = None, rounds: int = 9) -> tuple[dict, list[dict]]:
    """Pictures a second of a folder, decoded to RGB at their own size, the readers by turns in each round.

    ImageFolder reads the same files, as links in a folder that is one class; the shards hold their bytes. The order is
    random and the same for all; a first round, which fills the system's file cache, is not counted. Each round is
    timed whole. Raises UserError where there is no folder, or torchvision is not installed.
    """
    if data is None:
        raise UserError("this benchmark reads pictures of a folder; name one, as in --data path/to/flickr8k")
    try:
        image_folder = resolve_name("torchvision.datasets:ImageFolder")  # needed for nothing else
    except ModuleNotFoundError:
        raise UserError("the comparison needs torchvision; run pip install torchvision") from None
    split = splits(data)[0]
    files = Folder(data, split)
    with tempfile.TemporaryDirectory() as place:
        links = Path(place) / "links" / "one"
        links.mkdir(parents=True)
        for i, record in enumerate(files.records):  # which ImageFolder sorts by name
            (links / f"{i:09}{Path(record.name).suffix}").symlink_to((files.root / record.name).resolve())
        write_shards(Path(place) / "shards", {split: files})
        readers = {
            "ImageFolder": image_folder(str(links.parent)),
            "shards": Shards(Path(place) / "shards", split),
            "folder": files,
        }
        order = random.Random(0).sample(range(len(files)), min(PICTURES, len(files)))
        speeds: dict[str, list[float]] = {name: [] for name in readers}
        for turn in range(rounds + 1):
            for name in random.Random(turn).sample(list(readers), len(readers)):
                began = time.perf_counter()
                _read(readers[name], order)
                if turn:
                    speeds[name].append(len(order) / (time.perf_counter() - began))
    first = speeds["ImageFolder"]
    rows = [row(name, some, first, "images_per_s") for name, some in speeds.items()]
    return {"data": files.name, "pictures": len(order), "rounds": rounds}, rows


class Chosen(Dataset):
    """Items in an order; what is read is dropped, so that no time goes into sending it between processes."""

    def __init__(self, dataset, order: list[int]):
        self.dataset, self.order = dataset, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> int:
        return 0 if self.dataset[self.order[i]] else 1


def _read(dataset, order: list[int]) -> None:
    for _ in DataLoader(Chosen(dataset, order), 16, collate_fn=len):
        pass
