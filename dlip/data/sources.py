"""Data sets by name: the built-in scenes, a folder of images with texts, what `datasets` reads, or several of them."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.batch import Example
from dlip.data.dataset import DataSet, Examples
from dlip.data.joined import Joined
from dlip.data.transforms import as_list


def open(
    name: str | Path, split: str, limit: int | None = None, on_error: str = "fatal", uncaptioned: bool = False
) -> DataSet:
    """Open a split of the data set `name`: "scenes", "hub:NAME", shards, a folder, or several joined by +.

    limit: use the first images only, as `first` does. on_error: "fatal" raises at an image or text that cannot be used,
    "skip" keeps its fault in `faults`. uncaptioned: keep a folder's images without texts; a folder of images alone is
    the split train. Raises UserError if there is no such data set or split.
    """
    names = dataset_names(name)
    if len(names) > 1 and split not in (shared := splits(name, uncaptioned)):
        raise UserError(f"the data sets of {name} share no split {split!r}; choose one of: {', '.join(shared)}")
    datasets = [_opener(part, uncaptioned)[0](part, split, on_error) for part in names]
    dataset = datasets[0] if len(datasets) == 1 else Joined(datasets)
    return dataset if limit is None else dataset.first(limit)


def as_dataset(data: str | Path | DataSet | Iterable[Example], split: str = "train") -> DataSet:
    """A data set, the one of a name, or a list of examples as one; `split` is that of a name.

    Raises UserError if there is no such data set, or names the first example that cannot be used.
    """
    if isinstance(data, DataSet):
        return data
    if isinstance(data, str | Path):
        return open(data, split)
    examples = list(data)
    if not examples:
        raise UserError("the list of examples is empty; give some")
    for i, example in enumerate(examples):
        if not isinstance(example, Example):
            raise UserError(f"example {i} is a {type(example).__name__}; give dlip.data.Example(image, captions=[...])")
        if not example.fields:
            raise UserError(f"example {i} has neither captions nor questions; give it some, or leave it out")
        as_list(example.captions, "caption")
    return Examples(examples, split=split)


def splits(name: str | Path, uncaptioned: bool = False) -> list[str]:
    """The splits of the data set `name`; of several, those that all of them have. uncaptioned: as in `open`.

    Raises UserError if there is no such data set or no common split.
    """
    names = dataset_names(name)
    of_each = [_opener(part, uncaptioned)[1](part) for part in names]
    if [] in of_each:
        raise UserError(f"{names[of_each.index([])]} has no images with texts; its files of annotations are empty")
    common = [split for split in of_each[0] if all(split in others for others in of_each)]
    if not common:
        raise UserError(f"the data sets of {name} have no split in common; rename their splits alike")
    return common


def dataset_names(name: str | Path) -> list[str]:
    """`photos/flickr8k+photos/coco_vqa` as its names; a path that exists is one name, with or without a + in it.

    Raises UserError for an empty name, or one that is given twice.
    """
    address = str(name).removeprefix("hub:").partition("?")[0]
    names = [str(name)] if Path(address).exists() and address else str(name).split("+")
    if not all(map(str.strip, names)):
        raise UserError(f"the data {str(name)!r} have an empty name; give scenes, a folder, shards or hub:NAME")
    if len(set(names)) < len(names):
        raise UserError(f"the data {str(name)!r} name a data set twice; name each once")
    return names


def _opener(name: str | Path, uncaptioned: bool) -> tuple[Callable, Callable]:
    """What opens a split of such a data set, and what lists its splits; imported on demand."""
    name = str(name)
    if name == "scenes":
        from dlip.data.scenes.dataset import DISJOINT_SPLITS, Scenes

        return lambda _, split, on_error: Scenes(split), lambda _: list(DISJOINT_SPLITS)
    from dlip.data.folders import dataset as folder
    from dlip.data.folders.layouts import has_annotations
    from dlip.data.hub import load, stream, table

    if load.is_table(name) and not has_annotations(Path(name)):
        streamed = load.parse(name)[1].get("stream") == "true"
        return stream.Stream if streamed else table.Table, load.splits
    return partial(folder.Folder, uncaptioned=uncaptioned), partial(folder.splits, uncaptioned=uncaptioned)
