"""What the scores of a record are the means of, item by item, in a few kilobytes."""

import base64
import zlib
from itertools import groupby

import numpy as np

PER_PICTURE = {"ir1": "captions", "vqa": "questions"}
"""Score with several items a picture -> the outcome that says how many."""
LARGEST = 2**26
"""Bytes of a column, at most: no few kilobytes may unpack to more memory than there is."""


def packed(items: dict[str, list[dict]]) -> dict[str, str]:
    """The tables that `dlip.evaluate` returns as "items", as a record keeps them (see dlip/records/read.py)."""

    def per_picture(rows: list[dict]) -> list[int]:
        return [len(list(some)) for _, some in groupby(rows, key=lambda row: row["image_id"])]

    tr, ir, captions, vqa = (items.get(table, []) for table in ("tr", "ir", "captioning", "vqa"))
    found = {"tr1": [row["rank"] < 1 for row in tr], "ir1": [row["rank"] < 1 for row in ir]}
    found |= {"cider": [row["cider"] for row in captions], "vqa": [row["accuracy"] for row in vqa]}
    found |= {"captions": per_picture(ir), "questions": per_picture(vqa)}
    return {name: _text(values) for name, values in found.items() if values}


def _text(values: list[float]) -> str:
    return base64.b64encode(zlib.compress(np.asarray(values, "<f2").tobytes(), 9)).decode()


def outcomes(record: dict) -> dict[str, np.ndarray]:
    """Name -> float32 [items] of the record's "outcomes"; empty where it has none. Raises ValueError where broken."""
    try:
        found = {name: _values(text) for name, text in (record.get("outcomes") or {}).items()}
    except (AttributeError, TypeError, zlib.error) as error:
        raise ValueError(f"outcomes are broken: {error}") from error
    for score, counts in PER_PICTURE.items():
        each = found.get(counts, np.zeros(0))
        if not (each >= 1).all() or each.sum() != len(found.get(score, ())):
            raise ValueError(f"outcomes are broken: {counts} do not add up to the items of {score}")
    return found


def _values(text: str) -> np.ndarray:
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(base64.b64decode(text), LARGEST)
    if not unpacking.eof:
        raise ValueError(f"outcomes are cut off, or of more than {LARGEST:,} bytes")
    return np.frombuffer(content, "<f2").astype(np.float32)
