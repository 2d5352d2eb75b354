"""Captions of scenes, all true, and the closed vocabulary of captions and questions."""

import random
from itertools import permutations

from dlip.data.scenes.world import BACKGROUNDS, OPPOSITE, SHAPES, VALUES, Object, Scene, relation

NUMBERS = ("zero", "one", "two", "three", "four")
PHRASES = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""Two wordings of each relation."""
_OTHER_WORDS = """
    , : ? a above an and are background below color how is it its larger left many more no objects of on over
    right see shape sits size smaller texture than the there thing things to under we what with yes
"""
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}


def captions(scene: Scene) -> list[str]:
    """Five captions of different forms; they name objects in order of salience and relate only related pairs."""
    rng = random.Random(scene.image_id * 4 + 1)
    forms = list(_FORMS)
    pairs = [p for p in permutations(scene.objects, 2) if relation(*p)]
    return [forms.pop(int(rng.random() * len(forms)))(scene, pairs) for _ in range(5)]


def vocabulary() -> list[str]:
    """Every word and punctuation mark of captions, questions and answers, sorted."""
    words = {*PLURALS.values(), *BACKGROUNDS, *NUMBERS}.union(*VALUES)
    return sorted(words.union(_OTHER_WORDS.split()))


def phrase(o: Object) -> str:
    """ "large striped red circle": all attributes; a plain texture is not named."""
    return f"{o.size} {o.color} {o.shape}" if o.texture == "plain" else " ".join(o.kind)


def listing(phrases: list[str]) -> str:
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


# Forms of a caption. Each takes the scene and its related pairs (a, b), the most salient first.


def _beside(scene: Scene, pairs: list) -> str:
    a, b = pairs[0]
    return f"a {phrase(a)} {PHRASES[relation(a, b)][0]} a {phrase(b)} on a {scene.background} background"


def _there_is(scene: Scene, pairs: list) -> str:
    a, b = pairs[-1]  # from the least salient object's side
    return f"there is a {phrase(a)} {PHRASES[relation(a, b)][1]} a {phrase(b)}"


def _background_with(scene: Scene, pairs: list) -> str:
    return f"a {scene.background} background with {listing(['a ' + phrase(o) for o in scene.objects[:3]])}"


def _count_and_list(scene: Scene, pairs: list) -> str:
    return f"{NUMBERS[len(scene.objects)]} objects: {listing([phrase(o) for o in scene.objects])}"


def _sits(scene: Scene, pairs: list) -> str:
    a, b = pairs[0]
    where = PHRASES[relation(a, b)][1]
    return f"{where} the {phrase(b)} sits a {phrase(a)}"


def _to_its(scene: Scene, pairs: list) -> str:
    a, b = pairs[0]
    where = OPPOSITE[relation(a, b)]
    behind = f"to its {where}" if where in ("left", "right") else f"{where} it"
    return f"we see a {phrase(a)} with a {phrase(b)} {behind}"


def _number_with(scene: Scene, pairs: list) -> str:
    a, b = pairs[0]
    number = NUMBERS[len(scene.objects)]
    return f"{number} objects with a {phrase(a)} {PHRASES[relation(a, b)][1]} a {phrase(b)}"


def _two_relations(scene: Scene, pairs: list) -> str:
    a = pairs[0][0]
    where = [f"{PHRASES[relation(a, b)][1]} the {phrase(b)}" for first, b in pairs if first is a]
    return f"the {phrase(a)} is {' and '.join(where[:2])}"


_FORMS = (
    _beside, _there_is, _background_with, _count_and_list, _sits, _to_its, _number_with, _two_relations,
)  # fmt: skip
