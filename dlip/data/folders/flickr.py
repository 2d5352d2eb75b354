"""Flickr30k's own list of captions, which has no splits: `results.csv`, or `results_20130124.token`.

Source: Young et al., From image descriptions to visual denotations (TACL 2014). Karpathy's `dataset_flickr30k.json`
has the splits that all papers use, and is read in its place where it is there.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.folders.annotations import Record, below


def read_flickr(file: Path) -> Iterator[Record]:
    """`name| number| caption` under a line of titles, or `name#number<tab>caption`; all of it is the split train."""
    said: dict[str, list[str]] = defaultdict(list)
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); copy it again") from error
    table = file.suffix == ".csv"
    for i, line in enumerate(lines[1:] if table else lines, 2 if table else 1):
        where = f"line {i} of {file}"
        if not line.strip():
            continue
        name, _, rest = line.partition("|" if table else "#")
        number, parted, caption = rest.partition("|" if table else "\t")
        if not parted and table:  # as one line of the published file is
            caption = number.strip().lstrip("0123456789")
        said[below("", name.strip(), where)].append(caption.strip())
    for name, captions in said.items():
        faults = [f"{name} has an empty caption"] * captions.count("")
        yield Record(name, "train", [caption for caption in captions if caption], faults=faults)
