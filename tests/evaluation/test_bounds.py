"""Floors and ceilings against brute force on small data."""

from collections import Counter
from itertools import permutations
from statistics import mean

import pytest

from dlip.common.errors import UserError
from dlip.data.batch import Example, Question
from dlip.data.dataset import FirstN
from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.truth import caption_facts
from dlip.evaluation.bounds import bounds, retrieval_ceiling, true_images
from tests.helpers import ListDataset

IMAGES = 300


@pytest.fixture(scope="module")
def many() -> Scenes:
    return Scenes("val", size=IMAGES)


@pytest.fixture(scope="module")
def parts(many) -> tuple[list[Example], list]:
    return [many[i] for i in range(IMAGES)], [many.scene(i) for i in range(IMAGES)]


@pytest.fixture(scope="module")
def found(many) -> dict:
    return bounds(many, generate_limit=40, train=Scenes("train-small", size=30))


def true_of(caption: str, scene) -> bool:
    return all(fact.true for fact in caption_facts(caption, scene))


def test_true_images_equal_a_check_of_every_pair(parts):
    items, scenes = parts
    captions = [caption for item in items[:10] for caption in item.captions]
    captions += ["a red circle", "two objects: a red star", "a plain thing on a noisy background", "a circle left of"]
    fast = true_images(captions, scenes)
    assert fast == [[i for i, scene in enumerate(scenes) if true_of(caption, scene)] for caption in captions]
    assert all(k // 5 in some for k, some in enumerate(fast[:50]))  # each of its own image
    assert len(fast[50]) > 3 and len(fast[51]) < len(fast[52]) and len(fast[53]) == 0


def expected_recall(k: int, true: list[int], own: set[int]) -> float:
    """By all orders of what is true."""
    orders = list(permutations(true))
    return mean(bool(own & set(order[:k])) for order in orders)


def test_ceiling_of_retrieval_equals_all_orders_of_what_is_true():
    """Three images, with captions that are true of one of them and some that claim nothing, true of all."""
    scenes = [Scenes("val").scene(i) for i in (0, 2, 4)]  # no twins
    named = [" ".join(scene.objects[0].kind) for scene in scenes]
    assert len({scene.background for scene in scenes}) > 1
    captions = [["on a " + scenes[0].background + " background", named[0]], ["what?", named[1]], ["what?", "why?"]]
    items = [Example(None, i, texts) for i, texts in enumerate(captions)]
    texts, owner = [text for item in items for text in item.captions], [0, 0, 1, 1, 2, 2]
    true = [[i for i, scene in enumerate(scenes) if true_of(text, scene)] for text in texts]
    assert [len(some) for some in true][2:] == [3, 1, 3, 3]
    ceiling = retrieval_ceiling(items, scenes)
    for k in (1, 5, 10):
        ir = [expected_recall(k, some, {owner[t]}) for t, some in enumerate(true)]
        assert ceiling[f"ir@{k}"] == pytest.approx(100 * mean(ir))
        of_image = [[t for t, some in enumerate(true) if i in some] for i in range(3)]
        tr = [expected_recall(k, of_image[i], {2 * i, 2 * i + 1}) for i in range(3)]
        assert ceiling[f"tr@{k}"] == pytest.approx(100 * mean(tr))
    assert ceiling["ir@1"] == pytest.approx(100 * mean(1 / len(some) for some in true))


def test_floor_of_questions_is_the_most_frequent_training_answer(found, many):
    """By brute force: of the same type and first three words, else of the type."""
    train = [q for item in Scenes("train-small", size=30) for q in item.questions]
    right = {}
    for q in (q for i in range(40) for q in many[i].questions):
        of_type = [t for t in train if t.type == q.type]
        same = [t for t in of_type if t.text.split()[:3] == q.text.split()[:3]] or of_type
        guess = Counter(t.answers[0] for t in same).most_common(1)[0][0]
        right.setdefault(q.type, []).append(guess == q.answers[0])
    floor = found["floor"]["vqa"]
    assert floor["by_type"] == pytest.approx({name: 100 * mean(some) for name, some in right.items()})
    assert floor["mean_by_type"] == pytest.approx(mean(100 * mean(some) for some in right.values()))
    ceiling = found["ceiling"]["vqa"]
    assert {ceiling["accuracy"], ceiling["mean_by_type"], *ceiling["by_type"].values()} == {100}


def test_form_is_that_of_an_evaluation(found, many):
    for bound in found.values():
        assert {"data", "split", "retrieval", "captioning", "vqa", "notes"} <= bound.keys()
        assert (bound["data"], bound["split"]) == ("scenes", "val")
    floor, ceiling = found["floor"], found["ceiling"]
    assert floor["retrieval"]["ir@10"] == pytest.approx(100 * 10 / IMAGES)  # retrieval is among all images
    assert all(kind["precision"] == 100 for kind in ceiling["captioning"]["facts"].values())
    assert 0 < floor["captioning"]["facts_f1"] < 60 < ceiling["captioning"]["facts_f1"]
    assert 90 < ceiling["retrieval"]["ir@1"] <= 100 and ceiling["retrieval"].keys() == floor["retrieval"].keys()
    assert ceiling["captioning"].keys() == floor["captioning"].keys() and "facts_f1" in floor["captioning"]
    some = bounds(FirstN(many, 5), ("vqa",), train=[many[0]])
    assert "retrieval" not in some["floor"] and some["ceiling"]["vqa"]["accuracy"] == 100


def test_other_data_have_no_bounds():
    with pytest.raises(UserError, match="photos lacks"):
        bounds(ListDataset([Example(None, 0, ["a dog"], [Question("what?", ["dog"])])], "photos"))
