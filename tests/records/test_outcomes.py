"""Packed per-item scores round trip."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from dlip.data.scenes.facts import facts_f1
from dlip.evaluation.evaluate import evaluate
from dlip.records.outcomes import _pack, image_sums, outcomes, score_of_sums
from dlip.records.schema import is_record
from tests.helpers import ListDataset, make_record


@pytest.mark.parametrize(
    "broken",
    [
        "a", {"tr1": 3}, {"tr1": "é"}, {"tr1": "abcde"}, {"tr1": "AAAA"}, {"tr1": _pack([1] * 9)[:-8]},
        {"tr1": base64.b64encode(zlib.compress(b"123")).decode()}, {"vqa": _pack([1, 0])},
        {"vqa": _pack([1, 0]), "questions": _pack([1])}, {"ir1": _pack([1, 0]), "captions": _pack([3, -1])},
        {"ir1": _pack([1, 0]), "captions": _pack([2, float("nan")])}, {"tr1": _pack(np.zeros(2**25 + 1))},
        {"cider": _pack([1, 2]), "facts": _pack([1] * 23)}, {"facts": _pack([1] * 12)},
        {"vqa": _pack([1, 0]), "questions": _pack([1, 1]), "vqa_type": _pack([0])},
        {"vqa": _pack([1, 0]), "questions": _pack([1, 1]), "vqa_type": _pack([0, 2])},
        {"vqa": _pack([1, 0]), "questions": _pack([1, 1]), "vqa_type": _pack([0, float("nan")])},
    ],
    ids=range(17),
)  # fmt: skip
def test_damaged_outcomes_make_no_record(broken):
    record = make_record() | {"outcomes": broken}
    with pytest.raises(ValueError):
        outcomes(record)
    assert not is_record(record)


FACTS = [[[1, 2, 1, 3], [6, 8, 6, 12], [0, 1, 0, 2]], [[3, 3, 3, 3], [12, 12, 12, 12], [2, 2, 2, 2]]]
ITEMS = {
    "tr": [{"image_id": 7, "rank": 0}, {"image_id": 9, "rank": 4}],
    "ir": [
        {"image": i, "rank": rank, "joint_rank": joint}
        for i, rank, joint in ((0, 0, 0), (0, 1, 0), (0, 0, 0), (1, 0, 3), (1, 2, 1))
    ],
    "captioning": [
        {"image_id": 7, "cider": 123.5, "facts": FACTS[0]},
        {"image_id": 9, "cider": 0.0, "facts": FACTS[1]},
    ],
    "vqa": [
        {"image": i, "accuracy": a, "type": type}
        for i, a, type in ((0, 1.0, "b"), (0, 0.0, "a"), (0, 0.5, "b"), (1, 0.5, "c"), (1, 0.5, "a"))
    ],
}
"""Two images: one with three captions and three questions, one with two and two."""


def test_outcomes_round_trip_in_few_bytes():
    columns = outcomes(make_record(items=ITEMS))
    expected = {
        "tr1": [1, 0],
        "ir1": [1, 0, 1, 1, 0],
        "joint_ir1": [1, 1, 1, 0, 0],
        "cider": [123.5, 0],
        "vqa": [1, 0, 0.5, 0.5, 0.5],
    }
    expected |= {"captions": [3, 2], "questions": [3, 2], "vqa_type": [1, 0, 1, 2, 0]}
    expected |= {"facts": np.array(FACTS).ravel()}
    assert columns.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(columns[name], values, rtol=1e-3)
    assert outcomes(make_record()) == {}
    photos = {name: [{k: v for k, v in row.items() if k not in ("facts", "type")} for row in rows]
              for name, rows in ITEMS.items()}  # fmt: skip
    assert outcomes(make_record(items=photos)).keys() == expected.keys() - {"facts", "vqa_type"}
    rng = np.random.default_rng(0)
    types = ["attribute", "attribute", "comparison", "counting", "existence", "relation"]
    many = [{"image": i // 6, "accuracy": float(rng.random() < 0.6), "type": types[i % 6]} for i in range(6000)]
    assert len(json.dumps(make_record(items={"vqa": many})["outcomes"])) < 2600


def test_neighbors_of_one_image_id_are_counted_apart(tiny, scenes):
    """Shards may hold an image in several samples."""
    twins = ListDataset([replace(scenes[i], image_id=7, captions=scenes[i].captions[: i + 1]) for i in range(3)])
    items = evaluate(tiny, twins, tasks=("retrieval", "vqa"), return_items=True, progress=False)["items"]
    columns = outcomes(make_record(items=items))
    assert columns["captions"].tolist() == [1, 2, 3] and len(columns["tr1"]) == 3
    assert columns["questions"].tolist() == [len(item.questions) for item in twins]


def test_scores_of_any_sample_of_images():
    """Of both images, of each alone, and of the first twice: from items by hand."""
    record = make_record(items=ITEMS)
    weights = np.array([[1, 1], [1, 0], [0, 1], [2, 1]])
    facts = [np.array(FACTS), np.array(FACTS[:1]), np.array(FACTS[1:]), np.array([*FACTS[:1], *FACTS])]
    expected = {
        "tr1": [50, 100, 0, 200 / 3],
        "ir1": [60, 200 / 3, 50, 62.5],
        "joint_ir1": [60, 100, 0, 75],
        "cider": [61.75, 123.5, 0, 247 / 3],
        "vqa": [50, 50, 50, 50],
        "vqa_mean": [100 * x for x in ((0.25 + 0.75 + 0.5) / 3, 0.75 / 2, 0.5, (0.5 / 3 + 0.75 + 0.5) / 3)],
        "facts_f1": [100 * facts_f1(some.sum(0)) for some in facts],
    }
    for score, values in expected.items():
        sums = image_sums(record, score)
        assert len(sums) == 2 and score_of_sums(score, weights @ sums) == pytest.approx(values, rel=1e-3), score
    assert expected["facts_f1"][0] == pytest.approx(100 * (2 * 0.8 * (4 / 6) / (0.8 + 4 / 6) + 0.9 * 0.75 * 2 / 1.65
                                                           + 2 * (2 / 3) * 0.5 / (2 / 3 + 0.5)) / 3)  # fmt: skip
    with pytest.raises(KeyError):
        image_sums(make_record(), "facts_f1")
