"""What a record keeps of every item comes back as it was."""

import base64
import json
import zlib

import numpy as np
import pytest

from dlip.records.outcomes import _text, outcomes
from dlip.records.schema import is_record
from tests.helpers import make_record


@pytest.mark.parametrize(
    "broken",
    [
        "a", {"tr1": 3}, {"tr1": "é"}, {"tr1": "abcde"}, {"tr1": "AAAA"}, {"tr1": _text([1] * 9)[:-8]},
        {"tr1": base64.b64encode(zlib.compress(b"123")).decode()}, {"vqa": _text([1, 0])},
        {"vqa": _text([1, 0]), "questions": _text([1])}, {"ir1": _text([1, 0]), "captions": _text([3, -1])},
        {"ir1": _text([1, 0]), "captions": _text([2, float("nan")])}, {"tr1": _text(np.zeros(2**25 + 1))},
    ],
    ids=range(12),
)  # fmt: skip
def test_broken_outcomes_make_no_record(broken):
    record = make_record() | {"outcomes": broken}
    with pytest.raises(ValueError):
        outcomes(record)
    assert not is_record(record)


def test_outcomes_come_back_item_by_item_in_few_bytes():
    """Two pictures: one with three captions and two questions, one with two and one."""
    items = {
        "tr": [{"image_id": 7, "rank": 0}, {"image_id": 9, "rank": 4}],
        "ir": [{"image_id": i, "rank": rank} for i, rank in ((7, 0), (7, 1), (7, 0), (9, 0), (9, 2))],
        "captioning": [{"image_id": 7, "cider": 123.5}, {"image_id": 9, "cider": 0.0}],
        "vqa": [{"image_id": i, "accuracy": a} for i, a in ((7, 1.0), (7, 0.0), (9, 0.6))],
    }
    found = outcomes(make_record(items=items))
    wanted = {"tr1": [1, 0], "ir1": [1, 0, 1, 1, 0], "cider": [123.5, 0], "vqa": [1, 0, 0.6]}
    wanted |= {"captions": [3, 2], "questions": [2, 1]}
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3)
    assert outcomes(make_record()) == {}
    rng = np.random.default_rng(0)
    many = [{"image_id": i // 6, "accuracy": float(rng.random() < 0.6)} for i in range(6000)]
    assert len(json.dumps(make_record(items={"vqa": many})["outcomes"])) < 2500
