"""Questions about scenes. The answer is drawn first, so that a question alone says little about its answer."""

import random
from itertools import combinations, permutations, product
from operator import itemgetter

from dlip.data.batch import Question
from dlip.data.scenes.text import NUMBERS, PHRASES, PLURALS
from dlip.data.scenes.world import ATTRIBUTES, VALUES, Object, Scene, gap, pick, relation

SIZE, TEXTURE, COLOR, SHAPE = range(4)  # positions in an object's kind
# Sets of attributes that may name an object, short ones first, and the function that takes them from its kind.
_NAMINGS = [(named, itemgetter(*named)) for n in (1, 2, 3, 4) for named in combinations(range(4), n)]
_NOUNS = ((COLOR, SHAPE), (COLOR, SHAPE), (SIZE, SHAPE), (SIZE, COLOR), (TEXTURE, SHAPE), (TEXTURE, COLOR))
_ATTRIBUTE_DRAWS = 3 * (COLOR,) + 3 * (SHAPE,) + 2 * (TEXTURE,) + (SIZE,)  # relative frequency of attribute questions
_COMPARATIVES = {"large": "larger", "small": "smaller"}
_FURTHER = {"left": "further left", "right": "further right", "above": "higher", "below": "lower"}
_BOTH_PRESENT = 0.8  # share of comparisons of numbers in which neither is zero, where a scene allows them
_AMBIGUOUS_GAP = 5  # pixels: a second object so far in the same direction makes "what is above it?" ambiguous

Kind = tuple[str, str, str, str]


def questions(scene: Scene) -> list[Question]:
    """Six questions: two about a relation, one of each other type. An attribute that a question omits may be any."""
    rng = random.Random(scene.image_id * 4 + 2)
    kinds = [o.kind for o in scene.objects]
    pairs = (
        ("existence", _existence(rng, kinds)),
        ("counting", _counting(rng, kinds)),
        ("attribute", _attribute(rng, kinds)),
        ("comparison", _comparison(rng, kinds)),
        ("relation", _related(rng, scene, kinds)),
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
    sizes = [(_COMPARATIVES[a[SIZE]], a, b) for a, b in permutations(kinds, 2) if a[SIZE] != b[SIZE]]
    if rng.random() < 0.5 and (question := _which(rng, kinds, sizes, SIZE)):
        return question
    attribute = SHAPE if rng.random() < 0.5 else COLOR
    present = [kind[attribute] for kind in kinds]
    values = sorted({*present})
    unequal = [(more, less) for more, less in permutations(values, 2) if present.count(more) > present.count(less)]
    if unequal and rng.random() < _BOTH_PRESENT:
        more, less = pick(rng, unequal)
    else:
        more, less = pick(rng, values), pick(rng, [value for value in VALUES[attribute] if value not in present])
    if attribute == SHAPE:
        return f"are there more {_either(rng, PLURALS[more], PLURALS[less])}?", PLURALS[more]
    return f"are there more {_either(rng, more, less)} things?", more


def _related(rng: random.Random, scene: Scene, kinds: list[Kind]) -> tuple[str, str]:
    """What is in a direction from an object, where one thing is; else as `_relation`."""
    pairs = [(a, b) for a, b in permutations(scene.objects, 2) if relation(a, b) and _only(scene, a, b, relation(a, b))]
    if not pairs:
        return _relation(rng, scene, kinds)
    a, b = pick(rng, pairs)
    return f"what is {PHRASES[relation(a, b)]} the {_noun(b.kind, pick(rng, _names(kinds, b.kind)[:4]))}?", a.shape


def _relation(rng: random.Random, scene: Scene, kinds: list[Kind]) -> tuple[str, str]:
    places = [(_FURTHER[relation(a, b)], a.kind, b.kind) for a, b in permutations(scene.objects, 2) if relation(a, b)]
    return _which(rng, kinds, places)


def _which(
    rng: random.Random, kinds: list[Kind], comparisons: list[tuple[str, Kind, Kind]], excluded: int | None = None
) -> tuple[str, str] | None:
    """Which of two objects is larger, or further left: the first of one of `comparisons`. None if none can be named.

    Both names, without an excluded attribute, are as short as the scene allows; the answer is the first one's.
    """
    shortest = {kind: _shortest(_names(kinds, kind, excluded)) for kind in kinds}
    named = [
        (comparative, a, one, b, other)
        for comparative, a, b in comparisons
        for one, other in product(shortest[a], shortest[b])
    ]
    if not named:
        return None
    fewest = min(len(one) + len(other) for _, _, one, _, other in named)
    comparative, a, one, b, other = pick(rng, [option for option in named if len(option[2]) + len(option[4]) == fewest])
    a, b = _noun(a, one), _noun(b, other)
    return f"which is {comparative}, {_either(rng, f'the {a}', f'the {b}')}?", a.removesuffix(" thing")


def _either(rng: random.Random, one: str, other: str) -> str:
    return f"{one} or {other}" if rng.random() < 0.5 else f"{other} or {one}"


def _only(scene: Scene, a: Object, b: Object, where: str) -> bool:
    """Whether a is the only object on that side of b, clearly."""
    axis, sign = where in ("above", "below"), -1 if where in ("left", "above") else 1
    return all(o is a or o is b or sign * gap(o, b)[axis] < _AMBIGUOUS_GAP for o in scene.objects)


def _names(kinds: list[Kind], kind: Kind, excluded: int | None = None) -> list[tuple[int, ...]]:
    """The sets of attributes that name this object alone, without an excluded attribute; short ones first."""
    return [
        named
        for named, take in _NAMINGS
        if excluded not in named and [take(other) for other in kinds].count(take(kind)) == 1
    ]


def _shortest(names: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [name for name in names if len(name) == len(names[0])]


def _noun(kind: Kind | list[str], named: tuple[int, ...]) -> str:
    words = " ".join(kind[k] for k in named)
    return words if SHAPE in named else f"{words} thing"
