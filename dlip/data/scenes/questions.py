"""Questions about scenes. The answer is drawn first, so that a question alone says little about its answer."""

import random
from itertools import combinations, permutations, product
from operator import itemgetter

from dlip.data.batch import Question
from dlip.data.scenes.text import NUMBERS, PHRASES, PLURALS
from dlip.data.scenes.world import ATTRIBUTES, OPPOSITE, VALUES, Object, Scene, gap, pick, relation

SIZE, TEXTURE, COLOR, SHAPE = range(4)  # positions in an object's kind
# Sets of attributes that may name an object, short ones first, and the function that takes them from its kind.
_NAMINGS = [(named, itemgetter(*named)) for n in (1, 2, 3, 4) for named in combinations(range(4), n)]
_NOUNS = ((COLOR, SHAPE), (COLOR, SHAPE), (SIZE, SHAPE), (SIZE, COLOR), (TEXTURE, SHAPE), (TEXTURE, COLOR))
_ATTRIBUTE_DRAWS = 3 * (COLOR,) + 3 * (SHAPE,) + 2 * (TEXTURE,) + (SIZE,)  # relative frequency of attribute questions
_AMBIGUOUS_GAP = 5  # pixels: a second object so far in the same direction makes "what is above it?" ambiguous

Kind = tuple[str, str, str, str]


def questions(scene: Scene) -> list[Question]:
    """Six questions: two about an attribute, one of each other type. An attribute that a question omits may be any."""
    rng = random.Random(scene.image_id * 4 + 2)
    kinds = [o.kind for o in scene.objects]
    pairs = (
        ("existence", _existence(rng, kinds)),
        ("counting", _counting(rng, kinds)),
        ("attribute", _attribute(rng, kinds)),
        ("attribute", _attribute(rng, kinds)),
        ("comparison", _comparison(rng, kinds)),
        ("relation", _relation(rng, scene, kinds)),
    )
    return [Question(text, [answer], type) for type, (text, answer) in pairs]


def _existence(rng: random.Random, kinds: list[Kind]) -> tuple[str, str]:
    present = rng.random() < 0.5
    while True:
        named, kind = pick(rng, _NOUNS), list(pick(rng, kinds))
        if not present:  # a near miss: an object of the scene with one attribute changed
            changed = pick(rng, named)
            kind[changed] = pick(rng, VALUES[changed])
        if present == any(all(other[k] == kind[k] for k in named) for other in kinds):
            noun = _noun(kind, named)
            return f"is there {'an' if noun[0] in 'aeiou' else 'a'} {noun}?", "yes" if present else "no"


def _counting(rng: random.Random, kinds: list[Kind]) -> tuple[str, str]:
    nouns = {len(kinds): ["objects"]}  # number -> nouns that occur so often
    for attribute, values in enumerate(VALUES):
        present = [kind[attribute] for kind in kinds]
        for value in values:
            number = present.count(value)
            nouns.setdefault(number, []).append(PLURALS[value] if attribute == SHAPE else f"{value} things")
    number = pick(rng, sorted(nouns))
    return f"how many {pick(rng, nouns[number])} are there?", NUMBERS[number]


def _attribute(rng: random.Random, kinds: list[Kind]) -> tuple[str, str]:
    while True:
        attribute = pick(rng, _ATTRIBUTE_DRAWS)
        names = [(kind, _names(kinds, kind, attribute)) for kind in kinds]
        values = sorted({kind[attribute] for kind, options in names if options})
        if values:
            value = pick(rng, values)
            kind, options = pick(
                rng, [(kind, options) for kind, options in names if options and kind[attribute] == value]
            )
            return f"what {ATTRIBUTES[attribute]} is the {_noun(kind, pick(rng, options))}?", value


def _comparison(rng: random.Random, kinds: list[Kind]) -> tuple[str, str]:
    yes = rng.random() < 0.5
    if rng.random() < 0.5:
        pairs = []
        for a, b in permutations(kinds, 2):
            if a[SIZE] == "large" and b[SIZE] == "small":
                names = product(_names(kinds, a, SIZE)[:2], _names(kinds, b, SIZE)[:2])
                pairs += [(_noun(a, first), _noun(b, second)) for first, second in names]
        if pairs:
            large, small = pick(rng, pairs)
            larger = rng.random() < 0.5
            a, b = (large, small) if larger == yes else (small, large)
            return f"is the {a} {'larger' if larger else 'smaller'} than the {b}?", "yes" if yes else "no"
    attribute = SHAPE if rng.random() < 0.5 else COLOR
    present = [kind[attribute] for kind in kinds]
    more = pick(rng, present)  # at least as frequent as `less`
    while True:
        less = pick(rng, present if rng.random() < 0.5 else VALUES[attribute])
        if less != more and present.count(less) + yes <= present.count(more):
            break
    a, b = (more, less) if yes else (less, more)
    a, b = (PLURALS[a], PLURALS[b]) if attribute == SHAPE else (f"{a} things", f"{b} things")
    return f"are there more {a} than {b}?", "yes" if yes else "no"


def _relation(rng: random.Random, scene: Scene, kinds: list[Kind]) -> tuple[str, str]:
    pairs = [(a, b) for a, b in permutations(scene.objects, 2) if relation(a, b)]
    if rng.random() < 0.5:
        only = [(a, b) for a, b in pairs if _only(scene, a, b, relation(a, b))]
        if only:
            a, b = pick(rng, only)
            return f"what is {_where(relation(a, b))} the {_name(rng, kinds, b.kind)}?", a.shape
    a, b = pick(rng, pairs)
    yes = rng.random() < 0.5
    where = relation(a, b) if yes else OPPOSITE[relation(a, b)]
    a, b = (_name(rng, kinds, o.kind) for o in (a, b))
    return f"is the {a} {_where(where)} the {b}?", "yes" if yes else "no"


def _where(where: str) -> str:
    return PHRASES[where][where in ("left", "right")]


def _only(scene: Scene, a: Object, b: Object, where: str) -> bool:
    """Whether a is the only object on that side of b, clearly."""
    axis, sign = where in ("above", "below"), -1 if where in ("left", "above") else 1
    return all(o is a or o is b or sign * gap(o, b)[axis] < _AMBIGUOUS_GAP for o in scene.objects)


def _name(rng: random.Random, kinds: list[Kind], kind: Kind) -> str:
    """One of the shorter names of this object alone."""
    return _noun(kind, pick(rng, _names(kinds, kind)[:4]))


def _names(kinds: list[Kind], kind: Kind, excluded: int | None = None) -> list[tuple[int, ...]]:
    """The sets of attributes that name this object alone, without an excluded attribute; short ones first."""
    return [
        named
        for named, take in _NAMINGS
        if excluded not in named and [take(other) for other in kinds].count(take(kind)) == 1
    ]


def _noun(kind: Kind | list[str], named: tuple[int, ...]) -> str:
    words = " ".join(kind[k] for k in named)
    return words if SHAPE in named else f"{words} thing"
