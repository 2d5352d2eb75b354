"""`dlip data`, and its commands `check` and `recaption`."""

from dataclasses import dataclass
from typing import Literal

from dlip.commands.figures import Figures
from dlip.common.fields import option
from dlip.common.options import comma_separated
from dlip.recaptioning.config import SelectionConfig, WritingConfig


@dataclass(frozen=True, kw_only=True)
class Data(Figures):
    name: str = option(positional=True, metavar="DATA")
    """Data set: "scenes", a folder, shards (a folder or address of *.tar), hub:NAME, or several joined by +."""


def data(options: Data) -> None:
    """Count the images and texts of a data set."""
    from dlip.data import check

    counts, faults = {}, []
    for split, _, dataset in check.every_split(options.name):
        counts[split] = dataset.counts()
        faults += dataset.faults
    text = "\n".join([*check.count_lines(counts), *check.fault_lines(faults)])
    options.show({"data": options.name, "splits": counts, "faults": faults}, text)


def data_check(options: Data) -> None:
    """Report what is wrong with a data set."""
    from dlip.data.check import check, report

    result = check(options.name)
    options.show(result, lambda: report(result))


@dataclass(frozen=True, kw_only=True)
class DataWrite(Data):
    on_error: Literal["fatal", "skip"] = "fatal"
    """Stop at faulty images and texts, or skip them."""


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
