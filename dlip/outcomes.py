"""What the scores of a record are the means of, item by item, in a few kilobytes."""

import base64
import zlib
from itertools import groupby

import numpy as np


def packed(items: dict[str, list[dict]]) -> dict[str, str]:
    """The tables that `dlip.evaluate` returns as "items", as a record keeps them (see dlip/records.py)."""

    def per_picture(rows: list[dict]) -> list[int]:
        return [len(list(some)) for _, some in groupby(rows, key=lambda row: row["image_id"])]

    tr, ir, caption, vqa = (items.get(table, []) for table in ("tr", "ir", "caption", "vqa"))
    found = {"tr1": [row["rank"] < 1 for row in tr], "ir1": [row["rank"] < 1 for row in ir]}
    found |= {"cider": [row["cider"] for row in caption], "vqa": [row["accuracy"] for row in vqa]}
    found |= {"captions": per_picture(ir), "questions": per_picture(vqa)}
    return {name: _text(values) for name, values in found.items() if values}


def _text(values: list[float]) -> str:
    return base64.b64encode(zlib.compress(np.asarray(values, "<f2").tobytes(), 9)).decode()


def outcomes(record: dict) -> dict[str, np.ndarray]:
    """Name -> float32 [items] of the record's "outcomes"; empty where it has none."""
    return {
        name: np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f2").astype(np.float32)
        for name, text in (record.get("outcomes") or {}).items()
    }
