"""How fast pictures are read, beside torchvision's ImageFolder on the same files: python -m dlip.data.speed FOLDER."""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from pkgutil import resolve_name
from statistics import median

from torch.utils.data import DataLoader, Dataset

from dlip.data.folder import Folder
from dlip.data.pack import write_shards
from dlip.data.shards import Shards
from dlip.errors import UserError

ROUNDS = 9


def compare(folder: str | Path, split: str, pictures: int = 1000, workers: int = 0, rounds: int = ROUNDS) -> dict:
    """Pictures a second, decoded to RGB at their own size: medians of `rounds`, the readers by turns in each.

    ImageFolder reads the same files, as links in a folder that is one class; the shards hold their bytes. The order is
    random and the same for all; a first round, which fills the system's file cache, is not counted. Each round is
    timed whole, workers started and texts read included. Raises UserError where torchvision is not installed.
    """
    try:
        image_folder = resolve_name("torchvision.datasets:ImageFolder")  # needed for nothing else
    except ModuleNotFoundError:
        raise UserError("the comparison needs torchvision; run pip install torchvision") from None
    files = Folder(folder, split)
    with tempfile.TemporaryDirectory() as place:
        links = Path(place) / "links" / "one"
        links.mkdir(parents=True)
        for record in files.records:
            (links / record.name.replace("/", "-")).symlink_to((files.root / record.name).resolve())
        write_shards(Path(place) / "shards", {split: files})
        readers = {
            "ImageFolder": image_folder(str(links.parent)),
            "shards": Shards(Path(place) / "shards", split),
            "folder": files,
        }
        order = random.Random(0).sample(range(len(files)), min(pictures, len(files)))
        speeds: dict[str, list[float]] = {name: [] for name in readers}
        for turn in range(rounds + 1):
            for name in random.Random(turn).sample(list(readers), len(readers)):
                began = time.perf_counter()
                _read(readers[name], order, workers)
                if turn:
                    speeds[name].append(len(order) / (time.perf_counter() - began))
    figures = {name: round(median(some), 1) for name, some in speeds.items()}
    ratio = {
        name: round(median(a / b for a, b in zip(speeds[name], speeds["ImageFolder"], strict=True)), 3)
        for name in ("shards", "folder")
    }
    return {"pictures": len(order), "workers": workers, "rounds": rounds, "per_s": figures, "times_ImageFolder": ratio}


class Chosen(Dataset):
    """Items in an order; what is read is dropped, so that no time goes into sending it between processes."""

    def __init__(self, dataset, order: list[int]):
        self.dataset, self.order = dataset, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, i: int) -> int:
        return 0 if self.dataset[self.order[i]] else 1


def _read(dataset, order: list[int], workers: int) -> None:
    for _ in DataLoader(Chosen(dataset, order), 16, num_workers=workers, collate_fn=len):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    print(json.dumps(compare(**vars(parser.parse_args())), indent=1))


if __name__ == "__main__":
    main()
