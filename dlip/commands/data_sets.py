"""`dlip data`, and its commands `check`, `shard` and `recaption`."""

from dataclasses import dataclass
from typing import Literal

from dlip.commands.figures import Figures
from dlip.common.fields import option
from dlip.common.options import comma_separated
from dlip.common.text import one_line, plural
from dlip.recaptioning.config import SelectionConfig, WritingConfig


@dataclass(frozen=True, kw_only=True)
class Data(Figures):
    name: str = option(positional=True, metavar="DATA")
    """Data set: "scenes", a folder, shards (a folder or address of *.tar), hub:NAME, or several joined by +."""


def data(options: Data) -> None:
    """Count the images and texts of a data set."""
    from dlip.data import audit
    from dlip.data.quarantine import EmptySplitError

    counts, faults = {}, []
    for split, _, dataset in audit.every_split(options.name):
        counts[split] = audit.counts(dataset)
        faults += [str(dataset)] if isinstance(dataset, EmptySplitError) else dataset.faults
    found = "\n  ".join([plural(len(faults), "fault") + ":" * bool(faults), *map(one_line, faults)])
    text = "\n".join([*audit.count_lines(counts), found])
    options.show({"data": options.name, "splits": counts, "faults": faults}, text)


def data_check(options: Data) -> None:
    """Report what is wrong with a data set."""
    from dlip.data import audit

    report = audit.check(options.name)
    options.show(report, lambda: audit.report(report))


@dataclass(frozen=True, kw_only=True)
class DataWrite(Data):
    on_error: Literal["fatal", "skip"] = "fatal"
    """Stop at faulty images and texts, or skip them."""


@dataclass(frozen=True, kw_only=True)
class DataShard(DataWrite):
    out: str = option(metavar="FOLDER")
    """Folder of the shards and their index."""
    splits: tuple[str, ...] = option((), parse=comma_separated, metavar="A,B")
    """Only these splits, comma-separated; by default all."""
    images: int = option(1000, least=1)
    """Images per shard."""


def data_shard(options: DataShard) -> None:
    """Pack a data set into shards."""
    from dlip import data as data_sets
    from dlip.data.shards.write import check_empty, write_shards

    check_empty(options.out)
    opened = {}
    for split in options.splits or data_sets.splits(options.name):
        opened[split] = data_sets.open(options.name, split, on_error=options.on_error)
        opened[split].verify()
    written = write_shards(options.out, opened, options.images)
    lines = [f"{row['file']}  {row['images']:>6,} images  {row['bytes'] / 1e6:.1f} MB" for row in written["shards"]]
    options.show(written, "\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class DataRecaption(DataWrite):
    out: str = option(metavar="FOLDER")
    """Folder of the new data set; one that holds captions is continued."""
    splits: tuple[str, ...] = option(("train",), parse=comma_separated, show=",".join, metavar="A,B")
    """Splits to write captions for, comma-separated; others keep the captions that they have."""
    writing: WritingConfig
    """Writing; to resume, pass the same values."""
    selection: SelectionConfig
    """Selection; other values make the data set again from the captions that are already written."""


def data_recaption(options: DataRecaption) -> None:
    """Write captions for a data set's images, and a data set with them."""
    from dlip.recaptioning import recaption

    result = recaption.recaption(
        options.name, options.out, options.splits, options.writing, options.selection, options.on_error
    )
    options.show(result, lambda: recaption.text(result))
