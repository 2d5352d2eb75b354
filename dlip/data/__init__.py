"""Data by name: the built-in scenes, or a folder of pictures with what is said and asked of them."""

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

    def __getattr__(self, name: str):
        if name == "dataset":  # while being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


def open(name: str | Path, split: str, limit: int | None = None, on_error: str = "fatal"):
    """The data set `name`: "scenes", or a folder with captions.json or vqa.json and images/ beside them.

    limit: use the first pictures only. on_error: "fatal" stops at a picture or text that cannot be used, "skip" leaves
    it out and names it in `problems`. Raises UserError where there is no such data or split.
    """
    if str(name) == "scenes":
        from dlip.data.scenes import Scenes

        dataset = Scenes(split)
    else:
        from dlip.data.folder import Folder

        dataset = Folder(name, split, on_error)
    if limit is not None:
        if limit < 1:
            raise UserError(f"{limit} pictures of {name} cannot be used; give a limit of at least 1")
        dataset = First(dataset, limit)
    return dataset


def splits(name: str | Path) -> list[str]:
    """The splits that the data set `name` has. Raises UserError where there is no such data."""
    if str(name) == "scenes":
        from dlip.data.scenes import SPLITS

        return list(SPLITS)
    from dlip.data import folder

    return folder.splits(name)
