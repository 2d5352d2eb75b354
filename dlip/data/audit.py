"""What is wrong with a data set, and what its splits share, before anything learns from it."""

import hashlib
from collections import Counter, defaultdict

from tqdm import tqdm

from dlip import data as data_sets
from dlip.common.errors import UserError
from dlip.common.text import one_line, plural
from dlip.data.shards.dataset import BadSampleError
from dlip.data.shards.write import encoded_item

KINDS = {
    "missing pictures": " is missing",
    "corrupt pictures or shards": " cannot be read",
    "empty captions": " has an empty caption",
    "pictures without caption": " has no caption",
    "empty questions": " has an empty question",
    "questions without answers": " has no answer to ",
    "pictures in two splits": " is in the split ",
}
"""A kind of fault -> what its sentence says behind the picture's name, in `Folder`, `Shards` and `Hub`."""
NAMED = 3
"""Of each kind that are printed."""


def check(name: str) -> dict:
    """Reads all of a data set: {"data", "splits": {split: counts}, "faults": {kind: sentences}, "sound"}.

    Of sets joined by + each is read, with all of its own splits. Counts are those of what can be used. Faults are those
    of `KINDS`; "repeated captions", the same twice of one picture; and "pictures shared by splits" and "repeated
    pictures" of one split, whose files are equal byte for byte, or whose names or numbers in one set are.
    "sound" is whether there are none. "shared_captions" counts captions that several pictures have, which is no fault.
    Raises UserError where there is no such data, or nothing of a split can be used.
    """
    splits, faults = {}, defaultdict(list)
    seen: dict[bytes | tuple[str, int], tuple[str, str]] = {}
    said: Counter = Counter()
    sets = data_sets.dataset_names(name)
    for part, own in [(one, split) for one in sets for split in data_sets.splits(one)]:
        split = own if len(sets) == 1 else f"{part} {own}"
        try:
            dataset = data_sets.open(part, own, on_error="skip")
            dataset.verify()
        except UserError as error:
            if "no usable picture left" not in str(error):
                raise
            splits[split] = {"images": 0, "captions": 0, "questions": 0}
            faults["splits without a usable picture"].append(str(error))
            continue
        splits[split] = dataset.counts()
        for problem in dataset.faults:
            faults[_kind(problem)].append(problem)
        for i in tqdm(range(len(dataset)), f"reading {split}", leave=False, disable=None):
            fault = None
            try:
                picture = encoded_item(dataset, i)
                if getattr(dataset, "remote", False):  # which verify leaves alone
                    fault = dataset.image_fault(i)
            except BadSampleError as error:
                fault = str(error)
            if fault:
                faults["corrupt pictures or shards"].append(fault)
                continue
            here = f"{picture.name} ({split})"
            digest = hashlib.blake2b(picture.data, digest_size=16).digest()
            same, namesake = (seen.setdefault(key, (here, own)) for key in (digest, (part, picture.image_id)))
            for other, what in ((same, "is"), (namesake, "has the name or number of")):
                if other[0] is not here:
                    kind = "repeated pictures" if other[1] == own else "pictures shared by splits"
                    faults[kind].append(f"{here} {what} {other[0]}")
                    break
            words = Counter(picture.captions)
            faults["repeated captions"] += [f"{here} has {n} times {text!r}" for text, n in words.items() if n > 1]
            said.update(words.keys())
    shared = sum(count > 1 for count in said.values())
    found = {kind: sentences for kind, sentences in faults.items() if sentences}
    return {"data": name, "splits": splits, "shared_captions": shared, "faults": found, "sound": not found}


def text(found: dict) -> str:
    """What `check` found, as lines for a terminal."""
    lines = [
        f"{split:12} " + "  ".join(f"{count:>8,} {noun}" for noun, count in row.items())
        for split, row in found["splits"].items()
    ]
    lines.append(f"{plural(found['shared_captions'], 'caption')} said of more than one picture")
    for kind, sentences in found["faults"].items():
        lines.append(f"{len(sentences):,} {kind}:")
        lines += [f"  {one_line(sentence)}" for sentence in sentences[:NAMED]] + ["  ..."] * (len(sentences) > NAMED)
    return "\n".join([*lines, "no faults" if found["sound"] else "--json PATH lists every fault"])


def _kind(problem: str) -> str:
    return next((kind for kind, words in KINDS.items() if words in problem), "other faults")
