"""Data by name: the built-in scenes, a folder of pictures with texts, shards, a data set of the hub, or several."""

import re
import warnings
from pathlib import Path

from dlip.common.errors import UserError
from dlip.common.text import one_line, plural


class FirstN:
    """The first `limit` pictures of a data set."""

    def __init__(self, dataset, limit: int):
        self.dataset, self.limit = dataset, limit

    def __len__(self) -> int:
        return min(self.limit, len(self.dataset))

    def __getitem__(self, i: int):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.dataset[i]

    def fingerprint(self) -> str:
        return f"{self.dataset.fingerprint()} {len(self)}"

    @property
    def order(self):
        """The data set's own order of an epoch, of what is left; as it, where it has none, there is none."""
        order = self.dataset.order
        return lambda seed, epoch: [i for i in order(seed, epoch) if i < self.limit]

    def __getattr__(self, name: str):
        if name == "dataset":  # while being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


def open(name: str | Path, split: str, limit: int | None = None, on_error: str = "fatal"):
    """The data set `name`: "scenes", "hub:NAME" (`hub`), shards (`shard_names`), a folder (`layouts`), or several of
    them with + between their names (`joined`).

    limit: use the first pictures only. on_error: "fatal" stops at a picture or text that cannot be used, "skip" leaves
    it out and names it in `faults`. Raises UserError where there is no such data or split.
    """
    names = dataset_names(name)
    if len(names) > 1 and split not in (shared := splits(name)):
        raise UserError(f"the sets of {name} share no split {split!r}; choose one that they share: {', '.join(shared)}")
    opened = [_kind(part)[0](part, split, on_error) for part in names]
    dataset = opened[0] if len(opened) == 1 else _joined(opened)
    if limit is not None:
        if limit < 1:
            raise UserError(f"{limit} pictures of {name} cannot be used; give a limit of at least 1")
        dataset = FirstN(dataset, limit)
    return dataset


def verify(dataset) -> list[str]:
    """Reads every picture once, so that none fails later. Returns the faults that are left out, and warns of them.

    Raises UserError where they are fatal or nothing is left.
    """
    dataset.verify()
    faults = dataset.faults
    if faults:
        few = one_line("; ".join(faults[:10]) + ("; ..." if len(faults) > 10 else ""))
        left = plural(len(faults), "fault")
        warnings.warn(f"of {dataset.name} {dataset.split}, {left} left out: {few}", stacklevel=3)
    return faults


def has_field(dataset, noun: str) -> bool:
    """Whether a data set has "captions" or "questions": as it counts them, or of a limited one as is found there."""
    if isinstance(dataset, FirstN):
        return any(getattr(dataset[i], noun) for i in range(len(dataset)))
    return bool(dataset.counts()[noun])


def splits(name: str | Path) -> list[str]:
    """The splits that the data set `name` has, of several those that all of them have.

    Raises UserError where there is no such data, or no such split.
    """
    found = [_kind(part)[1](part) for part in dataset_names(name)]
    common = [split for split in found[0] if all(split in other for other in found)]
    if not common:
        raise UserError(f"the sets of {name} have no split in common; name each with splits of the same names")
    return common


def dataset_names(name: str | Path) -> list[str]:
    """`photos/flickr8k+photos/coco_vqa` as its names.

    What is there under the whole name is one; so is an address, a pattern or a hub's name with a + in it whose parts
    are nothing by themselves.
    """
    if not str(name).strip():
        raise UserError("the data have no name; give scenes, a folder, shards or hub:NAME")
    names = str(name).split("+")
    whole = Path(name).exists() or (re.search(r"^hub:|://|[{*?]", str(name)) and not all(map(_is_there, names)))
    if whole or len(names) == 1:
        return [str(name)]
    if not all(names):
        raise UserError(f"the data {str(name)!r} have an empty name beside a +; name a set on both sides of it")
    if len(set(names)) < len(names):
        raise UserError(f"the data {str(name)!r} name a set twice; name each once")
    return names


def _is_there(name: str) -> bool:
    """Whether a name by itself may be that of data."""
    if name == "scenes" or re.match(r"hub:.|https?://", name):
        return True
    place = Path(name)
    return bool(name) and (place.parent.is_dir() if re.search(r"[{*?]", name) else place.exists())


def _joined(datasets: list):
    from dlip.data.joined import JoinedDatasets

    return JoinedDatasets(datasets)


def _kind(name: str | Path):
    """What opens a split of such data, and what lists its splits; imported when it is needed."""
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

    return folder.Folder, folder.splits
