"""Data by name: the built-in scenes, a folder of pictures with texts, shards, or a data set of the hub."""

from pathlib import Path

from dlip.errors import UserError


class First:
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
    """The data set `name`: "scenes", "hub:NAME" (`hub`), shards (`shard_names`) or a folder (`layouts`).

    limit: use the first pictures only. on_error: "fatal" stops at a picture or text that cannot be used, "skip" leaves
    it out and names it in `problems`. Raises UserError where there is no such data or split.
    """
    dataset = _kind(name)[0](name, split, on_error)
    if limit is not None:
        if limit < 1:
            raise UserError(f"{limit} pictures of {name} cannot be used; give a limit of at least 1")
        dataset = First(dataset, limit)
    return dataset


def splits(name: str | Path) -> list[str]:
    """The splits that the data set `name` has. Raises UserError where there is no such data."""
    return _kind(name)[1](name)


def _kind(name: str | Path):
    """What opens a split of such data, and what lists its splits; imported when it is needed."""
    if str(name) == "scenes":
        from dlip.data.scenes import SPLITS, Scenes

        return lambda _, split, on_error: Scenes(split), lambda _: list(SPLITS)
    if str(name).startswith("hub:"):
        from dlip.data import hub

        return hub.Hub, hub.splits
    from dlip.data import shard_names

    if shard_names.is_shards(name):
        from dlip.data.shards import Shards

        return Shards, shard_names.splits
    from dlip.data import folder

    return folder.Folder, folder.splits
