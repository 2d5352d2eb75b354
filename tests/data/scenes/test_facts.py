"""Precision, recall and F1 of facts against counts by hand."""

from dataclasses import replace

import numpy as np
import pytest

from dlip.data.scenes.facts import FACT_KINDS, count_facts, fact_scores, facts_f1
from dlip.data.scenes.truth import described
from dlip.data.scenes.world import Object, Scene, relation

CIRCLE = Object("large", "plain", "red", "circle", 2, 2, 16, (220, 35, 40))
SQUARE = Object("large", "striped", "blue", "square", 30, 2, 16, (45, 75, 225))
STAR = Object("small", "dotted", "green", "star", 33, 35, 10, (35, 165, 60))
CROSS = Object("small", "plain", "pink", "cross", 5, 35, 10, (250, 150, 200))
SCENE = Scene(0, "noisy", 128, 0, (CIRCLE, SQUARE, STAR, CROSS))
"""A circle, a square at its right, a star below the square, and a cross, the least salient, below the circle."""
FIRST, SECOND = "large red circle", "large striped blue square"
ALL = f"a {SECOND} with a {FIRST} left of it and a small dotted green star below it"


def counts(caption: str, scene: Scene = SCENE) -> dict[str, list[int]]:
    """Kind -> true claims, claims, recalled, described."""
    return dict(zip(FACT_KINDS, count_facts(caption, scene).tolist(), strict=True))


def test_a_complete_description_is_of_three_objects_and_their_consecutive_relations():
    assert described(SCENE) == ([0, 1, 2], [(0, 1), (1, 2)])
    assert described(replace(SCENE, objects=(CIRCLE, SQUARE))) == ([0, 1], [(0, 1)])
    assert relation(SQUARE, CROSS) is None
    assert described(replace(SCENE, objects=(CIRCLE, SQUARE, CROSS, STAR))) == ([0, 1, 2], [(0, 1)])


def test_a_complete_caption_is_perfect():
    assert counts(ALL) == {"object": [3, 3, 3, 3], "attribute": [12, 12, 12, 12], "relation": [2, 2, 2, 2]}
    assert facts_f1(count_facts(ALL, SCENE)) == 1


def test_a_wrong_direction_costs_half_of_two_relations_and_nothing_else():
    wrong = counts(ALL.replace("left of", "above"))
    assert wrong == counts(ALL) | {"relation": [1, 2, 1, 2]}
    assert facts_f1(count_facts(ALL.replace("left of", "above"), SCENE)) == pytest.approx((1 + 1 + 0.5) / 3)


@pytest.mark.parametrize(
    ("caption", "object_", "attribute", "relation_"),
    [
        ("", [0, 0, 0, 3], [0, 0, 0, 12], [0, 0, 0, 2]),
        (f"a {FIRST}", [1, 1, 1, 3], [4, 4, 4, 12], [0, 0, 0, 2]),
        # the other direction states the same relation
        (f"a {SECOND} right of a {FIRST}", [2, 2, 2, 3], [8, 8, 8, 12], [1, 1, 1, 2]),
        # a relation that is true but not of consecutive objects: precision only
        (f"a {FIRST} over a small pink cross", [2, 2, 1, 3], [8, 8, 4, 12], [1, 1, 0, 2]),
        # one wrong attribute: the texture, named or implied
        ("a large dotted red circle", [0, 1, 0, 3], [3, 4, 3, 12], [0, 0, 0, 2]),
        ("a small green star", [0, 1, 0, 3], [3, 4, 3, 12], [0, 0, 0, 2]),
        # without its size an object is true but not described; plain is claimed where no texture is named
        ("a red circle", [1, 1, 0, 3], [3, 3, 3, 12], [0, 0, 0, 2]),
        # a background and a number are no facts of these kinds
        (f"four objects with a {FIRST} on a noisy background", [1, 1, 1, 3], [4, 4, 4, 12], [0, 0, 0, 2]),
        # a relation that lacks an object
        (f"a {FIRST} left of", [1, 1, 1, 3], [4, 4, 4, 12], [0, 1, 0, 2]),
        # more mentions than objects: the surplus is false. Of the others the shapes are true, and "plain" of the cross,
        # which is no described object
        (
            f"a {FIRST}, a cyan star, a cyan cross, a cyan square and a cyan diamond",
            [1, 5, 1, 3],
            [4 + 1 + 2 + 1, 16, 4 + 1 + 1, 12],
            [0, 0, 0, 2],
        ),
    ],
)
def test_counts_by_hand(caption, object_, attribute, relation_):
    assert counts(caption) == {"object": object_, "attribute": attribute, "relation": relation_}


@pytest.mark.parametrize(
    ("twice", "once"),
    [
        (f"a {FIRST}, a {FIRST} and a {FIRST}", f"a {FIRST}"),
        ("a large plain red circle and a red large circle", f"a {FIRST}"),  # other words for the same claims
        ("a large red red red circle", f"a {FIRST}"),
        (f"a {FIRST} left of a {SECOND} and left of a {SECOND}", f"a {FIRST} left of a {SECOND}"),
        (f"a {FIRST} left of a {SECOND}, a {SECOND} right of a {FIRST}", f"a {FIRST} left of a {SECOND}"),
        (f"a {FIRST} above a {SECOND}, a {SECOND} below a {FIRST}", f"a {FIRST} above a {SECOND}"),
    ],
)
def test_what_is_said_twice_counts_once(twice, once):
    assert counts(twice) == counts(once)


def test_scores_are_ratios_of_sums():
    """Micro-averaged: 3 of 4 claims of both images together, not the mean of 1/1 and 2/3."""
    one, two = (
        np.array([[1, 1, 1, 2], [4, 4, 4, 8], [0, 0, 0, 0]]),
        np.array([[2, 3, 1, 2], [5, 8, 4, 8], [0, 0, 0, 0]]),
    )
    scores = fact_scores(one + two)
    assert scores["precision"][:2].tolist() == [3 / 4, 9 / 12] and scores["recall"][:2].tolist() == [2 / 4, 8 / 16]
    assert scores["f1"][:2] == pytest.approx([0.6, 0.6]) and all(np.isnan(values[2]) for values in scores.values())
    assert facts_f1(one + two) == pytest.approx(0.6)  # of the two kinds that there are
    assert facts_f1(np.stack([one + two, one])) == pytest.approx([0.6, 2 / 3])
