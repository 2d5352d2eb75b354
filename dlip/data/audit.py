"""Check a dataset before training: faults of its images and texts, and what its splits share."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator

from tqdm import tqdm

from dlip.common.text import one_line, plural
from dlip.data import sources
from dlip.data.annotation import HUMAN
from dlip.data.quarantine import EmptySplitError
from dlip.data.shards.dataset import BadSampleError

KINDS = {
    "questions without answers": " has no answer to ",  # first, as it quotes the question
    "missing images": " is missing",
    "corrupt images or shards": " cannot be read",
    "empty captions": " has an empty caption",
    "images without caption": " has no caption",
    "empty questions": " has an empty question",
    "images in two splits": " is in the split ",
}
"""Kind of a fault -> words of its sentence in `Folder`, `Shards` and `Hub`."""
LISTED_PER_KIND = 3
"""Faults of each kind that `report` lists."""


def check(name: str) -> dict:
    """Read a whole dataset: {"data", "splits": {split: counts}, "writers": {name: captions}, "shared_captions",
    "faults": {kind: sentences}, "ok"}.

    Counts are of usable images and texts, in "writers" by who wrote a caption: "human", or a model's name. Faults are
    those of `KINDS`; "repeated captions", the same caption twice for one image; "images shared by splits" and, within
    one split, "repeated images": files equal byte for byte, or equal image ids in one dataset. "shared_captions" counts
    captions of more than one image, which is not a fault; "ok" is whether there are no faults. Of datasets joined by +
    each is read with all its splits. Raises UserError if there is no such dataset.
    """
    splits, faults = {}, defaultdict(list)
    seen: dict[bytes | tuple[str, int], tuple[str, str]] = {}
    captions: Counter = Counter()
    writers: Counter = Counter()
    for split, (part, own), dataset in every_split(name):
        splits[split] = counts(dataset)
        if isinstance(dataset, EmptySplitError):
            faults["splits without a usable image"].append(str(dataset))
            continue
        for fault in dataset.faults:
            faults[_kind(fault)].append(fault)
        for i in tqdm(range(len(dataset)), f"reading {split}", leave=False, disable=None):
            try:
                item, image = dataset.without_image(i), dataset.image_bytes(i)
            except BadSampleError as error:
                faults["corrupt images or shards"].append(str(error))
                continue
            here = f"{dataset.image_name(i)} ({split})"
            digest = hashlib.blake2b(image, digest_size=16).digest()
            same_bytes, same_id = (seen.setdefault(key, (here, own)) for key in (digest, (part, item.image_id)))
            for other, what in ((same_bytes, "is"), (same_id, "has the image id of")):
                if other[0] is not here:
                    kind = "repeated images" if other[1] == own else "images shared by splits"
                    faults[kind].append(f"{here} {what} {other[0]}")
                    break
            texts = Counter(item.captions)
            faults["repeated captions"] += [f"{here} has {n} times {text!r}" for text, n in texts.items() if n > 1]
            captions.update(texts.keys())
            writers.update(item.writers.get(caption, HUMAN) for caption in item.captions)
    shared = sum(count > 1 for count in captions.values())
    faults = {kind: sentences for kind, sentences in faults.items() if sentences}
    return {
        "data": name, "splits": splits, "writers": dict(writers), "shared_captions": shared, "faults": faults,
        "ok": not faults,
    }  # fmt: skip


def every_split(name: str) -> Iterator[tuple[str, tuple[str, str], object]]:
    """Every split of a data set: what to call it, its part and split, and the verified data, or why there are none."""
    names = sources.dataset_names(name)
    for part, split in [(one, split) for one in names for split in sources.splits(one)]:
        try:
            dataset = sources.open(part, split, on_error="skip")
            dataset.check_images()
        except EmptySplitError as error:
            dataset = error
        yield split if len(names) == 1 else f"{part} {split}", (part, split), dataset


def counts(dataset) -> dict[str, int]:
    """Numbers of images and texts; `dataset` as in `every_split`."""
    empty = isinstance(dataset, EmptySplitError)
    return {"images": 0, "captions": 0, "questions": 0} if empty else dataset.counts()


def count_lines(splits: dict[str, dict[str, int]]) -> list[str]:
    """Split -> `counts` as lines for a terminal."""
    return [
        f"{split:12} " + "  ".join(f"{count:>8,} {noun}" for noun, count in row.items())
        for split, row in splits.items()
    ]


def report(result: dict) -> str:
    """The result of `check` as lines for a terminal."""
    lines = count_lines(result["splits"])
    if set(result["writers"]) - {HUMAN}:
        lines += [f"{plural(count, 'caption')} by {name}" for name, count in sorted(result["writers"].items())]
    lines.append(f"{plural(result['shared_captions'], 'caption')} of more than one image")
    for kind, faults in result["faults"].items():
        lines.append(f"{len(faults):,} {kind}:")
        lines += [f"  {one_line(fault)}" for fault in faults[:LISTED_PER_KIND]]
        lines += ["  ..."] * (len(faults) > LISTED_PER_KIND)
    return "\n".join([*lines, "no faults" if result["ok"] else "--json PATH lists every fault"])


def _kind(fault: str) -> str:
    return next((kind for kind, words in KINDS.items() if words in fault), "other faults")
