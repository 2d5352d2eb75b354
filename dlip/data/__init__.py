"""Datasets by name: the built-in scenes, a folder of images with texts, shards, a dataset of the hub, or several."""

import re
import warnings
from functools import partial
from itertools import islice
from pathlib import Path

from dlip.common.errors import UserError
from dlip.common.text import one_line, plural


class FirstN:
    """The first `limit` images of a dataset."""

    def __init__(self, dataset, limit: int):
        self.dataset, self.limit = dataset, limit

    def __len__(self) -> int:
        return min(self.limit, len(self.dataset))

    def __getitem__(self, i: int):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.dataset[i]

    def verify(self, images: int | None = None) -> None:
        """Verify the first `images` of these, or all, as `QuarantineMixin.verify` does."""
        self.dataset.verify(len(self) if images is None else min(images, len(self)))

    def counts(self) -> dict[str, int]:
        """Numbers of images, captions and questions; stored images are not decoded."""
        from dlip.data.quarantine import without_image

        counts = {"images": len(self), "captions": 0, "questions": 0}
        for i in range(len(self)):
            item = without_image(self.dataset, i)
            counts["captions"] += len(item.captions)
            counts["questions"] += len(item.questions)
        return counts

    def fingerprint(self) -> str:
        return f"{self.dataset.fingerprint()} {len(self)}"

    @property
    def order(self):
        """The dataset's own order of an epoch, restricted to these images; AttributeError if it has none."""
        order = self.dataset.order
        return lambda seed, epoch: [i for i in order(seed, epoch) if i < self.limit]

    def __getattr__(self, name: str):
        if name == "dataset":  # while being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


def open(name: str | Path, split: str, limit: int | None = None, on_error: str = "fatal", uncaptioned: bool = False):
    """Open a split of the dataset `name`: "scenes", "hub:NAME", shards, a folder, or several joined by +.

    limit: use the first images only, as `first` does. on_error: "fatal" raises at an image or text that cannot be used,
    "skip" quarantines it in `faults`. uncaptioned: keep a folder's images without texts; a folder of images alone is
    the split train. Raises UserError if there is no such dataset or split.
    """
    names = dataset_names(name)
    if len(names) > 1 and split not in (shared := splits(name, uncaptioned)):
        raise UserError(f"the datasets of {name} share no split {split!r}; choose one of: {', '.join(shared)}")
    datasets = [_kind(part, uncaptioned)[0](part, split, on_error) for part in names]
    dataset = datasets[0]
    if len(datasets) > 1:
        from dlip.data.joined import JoinedDatasets

        dataset = JoinedDatasets(datasets)
    return dataset if limit is None else first(dataset, limit)


def first(dataset, limit: int):
    """The first `limit` images of a dataset; of joined ones an equal share of each, fewer where one is smaller."""
    parts = getattr(dataset, "datasets", None)
    if parts is None:
        return FirstN(dataset, limit)
    share, rest = divmod(limit, len(parts))
    return type(dataset)([FirstN(part, share + (i < rest)) for i, part in enumerate(parts)])


def verify(dataset) -> list[str]:
    """Decode every image once, so that none fails later. Returns the quarantined faults, and warns of them.

    Of a limited dataset only the images in use are decoded where faults are fatal, and all where they are skipped.
    Raises UserError if faults are fatal or nothing is left.
    """
    dataset.verify()
    faults = dataset.faults
    if faults:
        first = one_line("; ".join(faults[:10]) + ("; ..." if len(faults) > 10 else ""))
        count = plural(len(faults), "fault")
        warnings.warn(f"skipped {count} in the {dataset.split} split of {dataset.name}: {first}", stacklevel=3)
    return faults


def has_field(dataset, noun: str) -> bool:
    """Whether a dataset has any "captions" or "questions"; a limited one is searched."""
    if isinstance(dataset, FirstN):
        from dlip.data.quarantine import without_image

        return any(getattr(without_image(dataset, i), noun) for i in range(len(dataset)))
    return bool(dataset.counts()[noun])


def first_with(dataset, noun: str, count: int) -> FirstN:
    """The first images of a dataset, as many as hold `count` with "captions" or "questions"."""
    from dlip.data.quarantine import without_image

    indices = (i for i in range(len(dataset)) if getattr(without_image(dataset, i), noun))
    return FirstN(dataset, next((i + 1 for i in islice(indices, count - 1, None)), len(dataset)))


def splits(name: str | Path, uncaptioned: bool = False) -> list[str]:
    """The splits of the dataset `name`; of joined datasets, those that all of them have. uncaptioned: as in `open`.

    Raises UserError if there is no such dataset or no common split.
    """
    names = dataset_names(name)
    of_each = [_kind(part, uncaptioned)[1](part) for part in names]
    if [] in of_each:
        raise UserError(f"{names[of_each.index([])]} has no images with texts; its files of annotations are empty")
    common = [split for split in of_each[0] if all(split in others for others in of_each)]
    if not common:
        raise UserError(f"the datasets of {name} have no split in common; rename their splits alike")
    return common


def dataset_names(name: str | Path) -> list[str]:
    """`photos/flickr8k+photos/coco_vqa` as its names.

    A path that exists is one name, and so is a URL, a pattern or a hub's name with a + in it, unless all its parts are
    datasets. Raises UserError for an empty name, or one that is given twice.
    """
    if not str(name).strip():
        raise UserError("the name of the data is empty; give scenes, a folder, shards or hub:NAME")
    names = str(name).split("+")
    is_one = Path(name).exists() or (re.search(r"^hub:|://|[{*?]", str(name)) and not all(map(_may_exist, names)))
    if is_one or len(names) == 1:
        return [str(name)]
    if not all(names):
        raise UserError(f"the data {str(name)!r} have an empty name beside a +; name a dataset on both sides of it")
    if len(set(names)) < len(names):
        raise UserError(f"the data {str(name)!r} name a dataset twice; name each once")
    return names


def _may_exist(name: str) -> bool:
    if name == "scenes" or re.match(r"hub:.|https?://", name):
        return True
    place = Path(name)
    return bool(name) and (place.parent.is_dir() if re.search(r"[{*?]", name) else place.exists())


def _kind(name: str | Path, uncaptioned: bool):
    """What opens a split of such a dataset, and what lists its splits; imported on demand."""
    if str(name) == "scenes":
        from dlip.data.scenes.dataset import DISJOINT_SPLITS, Scenes

        return lambda _, split, on_error: Scenes(split), lambda _: list(DISJOINT_SPLITS)
    if str(name).startswith("hub:"):
        from dlip.data import hub

        return hub.Hub, hub.splits
    from dlip.data.shards import naming

    if naming.is_shards(name):
        from dlip.data.shards.dataset import Shards

        return Shards, naming.splits
    from dlip.data.folders import dataset as folder

    return partial(folder.Folder, uncaptioned=uncaptioned), partial(folder.splits, uncaptioned=uncaptioned)
