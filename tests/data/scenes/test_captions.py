"""Captions of scenes are true, short, specific and of a closed vocabulary; the parser that checks them."""

import re
from dataclasses import replace

import pytest

from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.questions import questions
from dlip.data.scenes.text import MAX_TOKENS, captions, vocabulary
from dlip.data.scenes.truth import caption_facts, certain_referents, parse_caption, referents
from dlip.data.scenes.world import ATTRIBUTES, Object, Scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [Scenes("test").scene(i) for i in range(300)]


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A red circle at the left, a striped blue square at the right, a dotted green star below the circle."""
    return Scene(
        0,
        "noisy",
        128,
        0,
        (
            Object("large", "plain", "red", "circle", 2, 2, 16, (220, 35, 40)),
            Object("large", "striped", "blue", "square", 30, 2, 16, (45, 75, 225)),
            Object("small", "dotted", "green", "star", 5, 35, 10, (35, 165, 60)),
        ),
    )


def wrong(caption: str, scene: Scene) -> list[tuple[str, str]]:
    return [(fact.kind, fact.text) for fact in caption_facts(caption, scene) if not fact.true]


def is_true_caption(caption: str, scene: Scene) -> bool:
    """Whether a caption names at least one object and makes no false claim."""
    return bool(parse_caption(caption).mentions) and not wrong(caption, scene)


def test_every_caption_is_true_and_names_three_objects(scenes):
    for scene in scenes:
        texts = captions(scene)
        assert len(set(texts)) == 5 and max(len(re.findall(r"\w+|[^\w\s]", text)) for text in texts) <= MAX_TOKENS
        for caption in texts:
            assert is_true_caption(caption, scene), (caption, scene)
            named = parse_caption(caption).mentions
            assert len({m.claims for m in named}) == len(named) == 3
            assert all({attribute for attribute, _ in m.claims} == set(ATTRIBUTES) for m in named)


def test_vocabulary_is_closed(scenes):
    texts = [text for scene in scenes for text in captions(scene)]
    texts += [text for scene in scenes for q in questions(scene) for text in (q.text, *q.answers)]
    assert sorted(set(re.findall(r"\w+|[^\w\s]", " ".join(texts)))) == vocabulary()
    assert len(vocabulary()) < 110


@pytest.mark.parametrize(
    ("caption", "false"),
    [
        ("a large red circle to the left of a large striped blue square on a noisy background", []),
        ("under the large red circle sits a small dotted green star", []),
        ("we see a large red circle with a large striped blue square to its right", []),
        ("we see a large red circle with a small dotted green star below it", []),
        ("large red circle with a large striped blue square at right and a small dotted green star under it", []),
        ("a large red circle with a large striped blue square at left", [("relation", "left")]),
        ("the large red circle is left of the large striped blue square and over the small dotted green star", []),
        ("three objects : large red circle , large striped blue square and small dotted green star", []),
        ("a large red circle right of a large striped blue square", [("relation", "right")]),
        (
            "a small red circle left of a large striped blue square",
            [("object", "small red circle plain"), ("attribute", "small")],
        ),
        (
            "a large dotted red circle above a small green star",
            [
                ("object", "large dotted red circle"),
                ("attribute", "dotted"),
                ("object", "small green star plain"),
                ("attribute", "plain"),
            ],
        ),
        ("two objects on a dark background", [("count", "two"), ("background", "dark")]),
        ("a large red circle left of", [("relation", "left")]),
        ("above left it its and sits under", [("relation", w) for w in ("above", "left", "below")]),
        ("a red circle left of the striped square", []),
        (
            "large red circle, large red circle",
            [("object", "large red circle plain"), *(("attribute", w) for w in ("red", "circle", "plain"))],
        ),
        ("a striped blue large blue", []),
        ("zebra %% 7", []),
        ("", []),
    ],
)
def test_claims_worked_out_by_hand(caption, false, scene):
    assert wrong(caption, scene) == false
    nouns = [word for word in ("circle", "square", "star") if word in caption]
    assert is_true_caption(caption, scene) == (bool(nouns) and not false)


def test_mentions_locate_objects_among_the_words(scene):
    caption = "a noisy background with a large striped blue square, a small dotted green star and a large red circle"
    spans = [" ".join(caption.split()[m.start : m.end]) for m in parse_caption(caption).mentions]
    assert spans == ["a large striped blue square,", "a small dotted green star", "a large red circle"]
    assert referents(parse_caption(caption), scene) == [1, 2, 0]
    assert parse_caption("large red circle").mentions[0].start == 0


def test_certain_referents_fit_one_object_only(scene):
    def certain(text: str, scene: Scene = scene) -> list[int | None]:
        return certain_referents(parse_caption(text), scene)

    assert certain("what color is the star?") == [2] and certain("what color is the cross?") == [None]
    assert certain("a small circle, a blue star and a plain square") == [None, None, None]
    assert certain("a large blue square and a cross") == [1, None]  # no texture is named
    assert certain("nothing of note") == []
    second = replace(scene.objects[0], texture="dotted", x=34, y=34)
    both = replace(scene, objects=(*scene.objects, second))
    assert certain("what color is the circle?", both) == [None] and certain("the dotted circle", both) == [3]
    assert certain("a large red circle", both) == [0]  # captions omit "plain"
    assert certain("a circle under the square", both) == [3, 1]
    assert certain("a circle and a circle", both) == [None, None]
    assert certain("a star and a star and a circle") == [2, 2, 0]


def test_captions_of_the_dataset_are_certain(scenes):
    for scene in scenes[:50]:
        for caption in captions(scene):
            assert certain_referents(parse_caption(caption), scene) == referents(parse_caption(caption), scene)
