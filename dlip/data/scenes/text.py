"""Captions of scenes, all true, and the closed vocabulary of captions and questions."""

import random

from dlip.data.scenes.world import BACKGROUNDS, SHAPES, VALUES, Object, Scene, pick, relation

MAX_TOKENS = 19
"""Words and punctuation marks of a caption; with [SEP], the 20 tokens that `dlip.cost.count` counts for it."""
NUMBERS = ("zero", "one", "two", "three", "four", "five")
PHRASES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
"""Relations, as questions word them."""
PLACES = {
    "left": ("left of it", "at left"),
    "right": ("right of it", "at right"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it"),
}
"""Relations, as captions word them after an object; "it" is the first object of the caption."""
OPENINGS = ("", "a ", "there is a ", "we see a ", "{number} objects: ", "{background} background: ")
_OTHER_WORDS = """
    , : ? a above an and are at background below color further higher how is it larger left lower many more no objects
    of or over right see shape size smaller texture the there thing things under we what which with yes
"""
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}


def captions(scene: Scene) -> list[str]:
    """Five different captions.

    Each names the three most salient objects with all attributes, the second one first, and where the other two are
    from it, in at most `MAX_TOKENS` tokens.
    """
    rng = random.Random(scene.image_id * 4 + 1)
    chosen: list[str] = []
    while len(chosen) < 5:
        caption = _caption(rng, scene)
        if caption not in chosen and len(caption.replace(":", " :").split()) <= MAX_TOKENS:
            chosen.append(caption)
    return chosen


def _caption(rng: random.Random, scene: Scene) -> str:
    one, center, other = scene.objects[:3]
    around = (one, other) if rng.random() < 0.5 else (other, one)
    article = "a " if rng.random() < 0.5 else ""
    opening = pick(rng, OPENINGS).format(number=NUMBERS[len(scene.objects)], background=scene.background)
    parts = [f"{article}{phrase(o)} {pick(rng, PLACES[relation(o, center)])}" for o in around]
    return f"{opening}{phrase(center)} with {parts[0]} and {parts[1]}"


def vocabulary() -> list[str]:
    """Every word and punctuation mark of captions, questions and answers, sorted."""
    words = {*PLURALS.values(), *BACKGROUNDS, *NUMBERS}.union(*VALUES)
    return sorted(words.union(_OTHER_WORDS.split()))


def phrase(o: Object) -> str:
    """ "large striped red circle": all attributes; a plain texture is not named."""
    return f"{o.size} {o.color} {o.shape}" if o.texture == "plain" else " ".join(o.kind)
