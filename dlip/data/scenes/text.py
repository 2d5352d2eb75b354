"""Captions of scenes, all true, and the closed vocabulary of captions and questions."""

import random
from collections.abc import Callable

from dlip.data.scenes.world import BACKGROUNDS, SHAPES, VALUES, Object, Scene, pick, relation

MAX_TOKENS = 19
"""Words and punctuation marks of a caption; with [SEP], the 20 tokens that a decoder writes by default."""
NUMBERS = ("zero", "one", "two", "three", "four", "five")
PHRASES = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
"""Two wordings of each relation."""
_OTHER_WORDS = """
    : ? a above an and are background below color how is larger left many more no objects of over right see shape size
    smaller texture than the there thing things to under we what yes
"""
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}


def captions(scene: Scene) -> list[str]:
    """Five captions of different forms.

    Each names the three most salient objects with all attributes and relates the second to the first and to the third,
    in at most `MAX_TOKENS` tokens.
    """
    rng = random.Random(scene.image_id * 4 + 1)
    forms = list(_FORMS)
    return [_fitting(rng, scene, forms.pop(int(rng.random() * len(forms)))) for _ in range(5)]


def _fitting(rng: random.Random, scene: Scene, form: Callable) -> str:
    """A caption of this form that is not too long; with the shortest wordings, none is."""
    while True:
        caption = form(scene, lambda a, b: pick(rng, PHRASES[relation(a, b)]))
        if len(caption.replace(":", " :").split()) <= MAX_TOKENS:
            return caption


def vocabulary() -> list[str]:
    """Every word and punctuation mark of captions, questions and answers, sorted."""
    words = {*PLURALS.values(), *BACKGROUNDS, *NUMBERS}.union(*VALUES)
    return sorted(words.union(_OTHER_WORDS.split()))


def phrase(o: Object) -> str:
    """ "large striped red circle": all attributes; a plain texture is not named."""
    return f"{o.size} {o.color} {o.shape}" if o.texture == "plain" else " ".join(o.kind)


# Forms of a caption. Each takes the scene and a function that words the relation of two objects.


def _chain(a: Object, b: Object, c: Object, where: Callable, article: str = "") -> str:
    return f"{phrase(a)} {where(a, b)} {article}{phrase(b)} {where(b, c)} {article}{phrase(c)}"


def _forward(scene: Scene, where: Callable) -> str:
    return "a " + _chain(*scene.objects[:3], where, "a ")


def _backward(scene: Scene, where: Callable) -> str:
    return "a " + _chain(*scene.objects[2::-1], where, "a ")


def _middle(scene: Scene, where: Callable) -> str:
    a, b, c = scene.objects[:3]
    return f"a {phrase(b)} {where(b, a)} {phrase(a)} and {where(b, c)} {phrase(c)}"


def _count(scene: Scene, where: Callable) -> str:
    return f"{NUMBERS[len(scene.objects)]} objects: {_chain(*scene.objects[:3], where)}"


def _background(scene: Scene, where: Callable) -> str:
    return f"{scene.background} background: {_chain(*scene.objects[2::-1], where)}"


def _there_is(scene: Scene, where: Callable) -> str:
    return f"there is a {_chain(*scene.objects[:3], where)}"


def _we_see(scene: Scene, where: Callable) -> str:
    return f"we see {_chain(*scene.objects[2::-1], where)}"


_FORMS = (_forward, _backward, _middle, _count, _background, _there_is, _we_see)
