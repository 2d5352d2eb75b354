"""Per-item scores of a record (rank, CIDEr, facts, VQA accuracy), packed into a few kilobytes of text."""

import base64
import zlib
from itertools import groupby

import numpy as np

from dlip.data.scenes.facts import COUNTS, FACT_KINDS, facts_f1

ITEM_COUNTS = {"ir1": "captions", "joint_ir1": "captions", "vqa": "questions"}
"""Score with several items per image -> the outcome that holds their number per image."""
FACTS = len(FACT_KINDS) * len(COUNTS)
"""Numbers of `dlip.data.scenes.facts.count_facts` of one image."""
MAX_COLUMN_BYTES = 2**26
"""Limit on an unpacked column, so that a small file cannot exhaust the memory."""


def packed(items: dict[str, list[dict]]) -> dict[str, str]:
    """The "outcomes" of a record, from the "items" tables of `dlip.evaluate`."""

    def per_image(rows: list[dict]) -> list[int]:
        return [len(list(group)) for _, group in groupby(rows, key=lambda row: row["image"])]

    tr, ir, captions, vqa = (items.get(table, []) for table in ("tr", "ir", "captioning", "vqa"))
    types = [row.get("type") for row in vqa]
    columns = {
        "tr1": [row["rank"] < 1 for row in tr], "ir1": [row["rank"] < 1 for row in ir],
        "joint_ir1": [row["joint_rank"] < 1 for row in ir],
        "cider": [row["cider"] for row in captions],
        "facts": [count for row in captions for kind in row.get("facts", ()) for count in kind],
        "vqa": [row["accuracy"] for row in vqa],
        "vqa_type": np.unique(types, return_inverse=True)[1].tolist() if all(types) else [],
        "captions": per_image(ir), "questions": per_image(vqa),
    }  # fmt: skip
    return {name: _pack(values) for name, values in columns.items() if values}


def _pack(values: list[float]) -> str:
    return base64.b64encode(zlib.compress(np.asarray(values, "<f2").tobytes(), 9)).decode()


def lacks_joint_ranks(record: dict) -> bool:
    """Whether a record has outcomes of BLIP's ranks only, as those of the release 0.3.0 or older."""
    columns = record.get("outcomes") or ()
    return "ir1" in columns and "joint_ir1" not in columns


def outcomes(record: dict) -> dict[str, np.ndarray]:
    """Name -> float32 `[items]`, the per-item scores of a record; empty if it has none.

    Raises ValueError if they cannot be unpacked or their lengths disagree.
    """
    try:
        columns = {name: _unpack(text) for name, text in (record.get("outcomes") or {}).items()}
    except (AttributeError, TypeError, zlib.error) as error:
        raise ValueError(f"outcomes are damaged: {error}") from error
    for score, counts in ITEM_COUNTS.items():
        if score == "joint_ir1" and "joint_ir1" not in columns:
            continue
        per_image = columns.get(counts, np.zeros(0))
        if not (per_image >= 1).all() or per_image.sum() != len(columns.get(score, ())):
            raise ValueError(f"outcomes are damaged: {counts} do not add up to the items of {score}")
    for column, (items, size) in {"facts": ("cider", FACTS), "vqa_type": ("vqa", 1)}.items():
        if column in columns and len(columns[column]) != size * len(columns.get(items, ())):
            raise ValueError(f"outcomes are damaged: {column} does not fit the items of {items}")
    types = columns.get("vqa_type", np.zeros(0))
    if not ((types >= 0) & (types < len(types))).all():
        raise ValueError("outcomes are damaged: vqa_type has a number that is no type's")
    return columns


def _unpack(text: str) -> np.ndarray:
    decompressor = zlib.decompressobj()
    content = decompressor.decompress(base64.b64decode(text), MAX_COLUMN_BYTES)
    if not decompressor.eof:
        raise ValueError(f"outcomes are truncated or larger than {MAX_COLUMN_BYTES:,} bytes")
    return np.frombuffer(content, "<f2").astype(np.float32)


def image_sums(record: dict, score: str) -> np.ndarray:
    """float64 [P, K]: each test image's part of the sums that `score_of_sums` makes a score of.

    score: tr1, ir1, joint_ir1, cider, facts_f1, vqa or vqa_mean. The P images are the first of the test set: all of
    them for ranks, for the others those that texts were generated for. Raises KeyError if the record lacks them.
    """
    columns = outcomes(record)
    if score == "facts_f1":
        return columns["facts"].reshape(-1, FACTS).astype(float)
    column = "vqa" if score == "vqa_mean" else score
    values = columns[column].astype(float)
    per_image = columns[ITEM_COUNTS[column]] if column in ITEM_COUNTS else np.ones(len(values))
    kind = columns["vqa_type"].astype(int) if score == "vqa_mean" else np.zeros(len(values), int)
    image = np.arange(len(per_image)).repeat(per_image.astype(int))
    sums = np.zeros((len(per_image), kind.max() + 1, 2))  # of each type of question: sum and number of its items
    np.add.at(sums, (image, kind), np.stack([values, np.ones(len(values))], 1))
    return sums.reshape(len(sums), -1)


def score_of_sums(score: str, sums: np.ndarray) -> np.ndarray:
    """A score in its own unit, float64 [...], from sums over images of `image_sums`, weighted or not, [..., K]."""
    if score == "facts_f1":
        return 100 * facts_f1(sums.reshape(*sums.shape[:-1], len(FACT_KINDS), len(COUNTS)))
    parts = sums.reshape(*sums.shape[:-1], -1, 2)
    with np.errstate(invalid="ignore"):  # a resample may lack a type of question
        means = parts[..., 0] / parts[..., 1]
    return np.nanmean(means, -1) * (1 if score == "cider" else 100)
