"""Check a data set before training: faults of its images and texts, and what its splits share."""

import hashlib
from collections import Counter
from collections.abc import Iterator

from tqdm import tqdm

from dlip.common.text import one_line, plural
from dlip.data import sources
from dlip.data.dataset import DataSet, Examples
from dlip.data.stored import EmptySplitError

LISTED = 20
"""Faults that `report` lists."""


def check(name: str) -> dict:
    """Read a whole data set: {"data", "splits": {split: counts}, "faults": [sentences], "ok"}.

    Counts are of usable images and texts. Besides unusable ones, faults are a caption that an image has twice, and an
    image that is there twice, in one split or in two: files equal byte for byte, or equal image ids in one data set. Of
    data sets joined by + each is read with all its splits. Raises UserError if there is no such data set.
    """
    splits, faults = {}, []
    seen: dict[bytes | tuple[str, int], str] = {}
    for split, part, dataset in every_split(name):
        splits[split] = dataset.counts()
        faults += dataset.faults
        for i in tqdm(range(len(dataset)), f"reading {split}", leave=False, disable=None):
            example, here = dataset.without_image(i), f"{dataset.image_name(i)} ({split})"
            digest = hashlib.blake2b(dataset.image_bytes(i), digest_size=16).digest()
            same_bytes, same_id = (seen.setdefault(key, here) for key in (digest, (part, example.image_id)))
            if same_bytes is not here:
                faults.append(f"{here} is {same_bytes}")
            elif same_id is not here:
                faults.append(f"{here} has the image id of {same_id}")
            repeated = Counter(example.captions).items()
            faults += [f"{here} has {n} times {text!r}" for text, n in repeated if n > 1]
    return {"data": name, "splits": splits, "faults": faults, "ok": not faults}


def every_split(name: str) -> Iterator[tuple[str, str, DataSet]]:
    """Every split of a data set: what to call it, its part, and the usable data with their faults."""
    names = sources.dataset_names(name)
    for part, split in [(one, split) for one in names for split in sources.splits(one)]:
        try:
            dataset = sources.open(part, split, on_error="skip")
            dataset.check_images()
        except EmptySplitError as error:
            dataset = Examples([], split=split)
            dataset.faults = [str(error)]
        yield split if len(names) == 1 else f"{part} {split}", part, dataset


def count_lines(splits: dict[str, dict[str, int]]) -> list[str]:
    """Split -> counts as lines for a terminal."""
    return [
        f"{split:12} " + "  ".join(f"{count:>8,} {noun}" for noun, count in row.items())
        for split, row in splits.items()
    ]


def report(result: dict) -> str:
    """The result of `check` as lines for a terminal."""
    return "\n".join([*count_lines(result["splits"]), *fault_lines(result["faults"])])


def fault_lines(faults: list[str]) -> list[str]:
    """Faults as lines for a terminal."""
    lines = [plural(len(faults), "fault") + ":" * bool(faults), *(f"  {one_line(fault)}" for fault in faults[:LISTED])]
    return lines + ["  ... (--json PATH lists all)"] * (len(faults) > LISTED)
