"""Packed per-item scores round trip."""

import base64
import json
import zlib

import numpy as np
import pytest

from dlip.records.outcomes import _pack, outcomes
from dlip.records.schema import is_record
from tests.helpers import make_record


@pytest.mark.parametrize(
    "broken",
    [
        "a", {"tr1": 3}, {"tr1": "é"}, {"tr1": "abcde"}, {"tr1": "AAAA"}, {"tr1": _pack([1] * 9)[:-8]},
        {"tr1": base64.b64encode(zlib.compress(b"123")).decode()}, {"vqa": _pack([1, 0])},
        {"vqa": _pack([1, 0]), "questions": _pack([1])}, {"ir1": _pack([1, 0]), "captions": _pack([3, -1])},
        {"ir1": _pack([1, 0]), "captions": _pack([2, float("nan")])}, {"tr1": _pack(np.zeros(2**25 + 1))},
    ],
    ids=range(12),
)  # fmt: skip
def test_damaged_outcomes_make_no_record(broken):
    record = make_record() | {"outcomes": broken}
    with pytest.raises(ValueError):
        outcomes(record)
    assert not is_record(record)


def test_outcomes_round_trip_in_few_bytes():
    """Two images: one with three captions and two questions, one with two and one."""
    items = {
        "tr": [{"image_id": 7, "rank": 0}, {"image_id": 9, "rank": 4}],
        "ir": [{"image_id": i, "rank": rank} for i, rank in ((7, 0), (7, 1), (7, 0), (9, 0), (9, 2))],
        "captioning": [{"image_id": 7, "cider": 123.5}, {"image_id": 9, "cider": 0.0}],
        "vqa": [{"image_id": i, "accuracy": a} for i, a in ((7, 1.0), (7, 0.0), (9, 0.6))],
    }
    columns = outcomes(make_record(items=items))
    expected = {"tr1": [1, 0], "ir1": [1, 0, 1, 1, 0], "cider": [123.5, 0], "vqa": [1, 0, 0.6]}
    expected |= {"captions": [3, 2], "questions": [2, 1]}
    assert columns.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(columns[name], values, rtol=1e-3)
    assert outcomes(make_record()) == {}
    rng = np.random.default_rng(0)
    many = [{"image_id": i // 6, "accuracy": float(rng.random() < 0.6)} for i in range(6000)]
    assert len(json.dumps(make_record(items={"vqa": many})["outcomes"])) < 2500
