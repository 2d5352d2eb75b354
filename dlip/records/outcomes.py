"""Per-item scores of a record (rank, CIDEr, VQA accuracy), packed into a few kilobytes of text."""

import base64
import zlib
from itertools import groupby

import numpy as np

ITEM_COUNTS = {"ir1": "captions", "vqa": "questions"}
"""Score with several items per image -> the outcome that holds their number per image."""
MAX_COLUMN_BYTES = 2**26
"""Limit on an unpacked column, so that a small file cannot exhaust the memory."""


def packed(items: dict[str, list[dict]]) -> dict[str, str]:
    """The "outcomes" of a record, from the "items" tables of `dlip.evaluate`."""

    def per_image(rows: list[dict]) -> list[int]:
        return [len(list(group)) for _, group in groupby(rows, key=lambda row: row["image_id"])]

    tr, ir, captions, vqa = (items.get(table, []) for table in ("tr", "ir", "captioning", "vqa"))
    columns = {
        "tr1": [row["rank"] < 1 for row in tr], "ir1": [row["rank"] < 1 for row in ir],
        "cider": [row["cider"] for row in captions], "vqa": [row["accuracy"] for row in vqa],
        "captions": per_image(ir), "questions": per_image(vqa),
    }  # fmt: skip
    return {name: _pack(values) for name, values in columns.items() if values}


def _pack(values: list[float]) -> str:
    return base64.b64encode(zlib.compress(np.asarray(values, "<f2").tobytes(), 9)).decode()


def outcomes(record: dict) -> dict[str, np.ndarray]:
    """Name -> float32 `[items]`, the per-item scores of a record; empty if it has none.

    Raises ValueError if they cannot be unpacked or their lengths disagree.
    """
    try:
        columns = {name: _unpack(text) for name, text in (record.get("outcomes") or {}).items()}
    except (AttributeError, TypeError, zlib.error) as error:
        raise ValueError(f"outcomes are damaged: {error}") from error
    for score, counts in ITEM_COUNTS.items():
        per_image = columns.get(counts, np.zeros(0))
        if not (per_image >= 1).all() or per_image.sum() != len(columns.get(score, ())):
            raise ValueError(f"outcomes are damaged: {counts} do not add up to the items of {score}")
    return columns


def _unpack(text: str) -> np.ndarray:
    decompressor = zlib.decompressobj()
    content = decompressor.decompress(base64.b64decode(text), MAX_COLUMN_BYTES)
    if not decompressor.eof:
        raise ValueError(f"outcomes are truncated or larger than {MAX_COLUMN_BYTES:,} bytes")
    return np.frombuffer(content, "<f2").astype(np.float32)
