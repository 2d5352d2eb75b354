"""What a caption claims, and whether it is true of a scene: for the data's captions as for a model's.

Captions are read by their words alone, not by how they were written. Words that the language lacks, and
adjectives that lead to no shape, claim nothing. A relation that lacks one of its two objects is false.
"""

import re
from dataclasses import dataclass
from itertools import permutations, product

from dlip.data.scenes.world import ATTRIBUTES, BACKGROUNDS, SHAPES, VALUES, Object, Scene, relation

_ATTRIBUTE = {value: attribute for attribute, values in zip(ATTRIBUTES, VALUES, strict=True) for value in values}
_DIRECTION = {where: where for where in ("left", "right", "above", "below")} | {
    "over": "above",
    "under": "below",
}
_NUMBER = {"no": 0, "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}
_MOST = 5  # objects of one caption that are looked for; any further ones count as not there


@dataclass(frozen=True)
class Mention:
    """An object that a caption names."""

    start: int
    """Its first word in `caption.split()`, an article included."""
    end: int
    """One beyond its last word, the shape."""
    claims: tuple[tuple[str, str], ...]
    """(attribute, value) of each word, and ("texture", "plain") where no texture is named: captions leave out
    "plain" and nothing else."""


@dataclass(frozen=True)
class Reading:
    """What a caption claims of whatever scene."""

    mentions: list[Mention]
    relations: list[tuple[int | None, str, int | None]]
    """(a, direction, b): mention a lies in that direction from mention b."""
    counts: list[tuple[str, int]]
    backgrounds: list[str]


@dataclass(frozen=True)
class Fact:
    """One claim of a caption, judged against a scene."""

    kind: str
    """"object" (all of one mention), "attribute" (one claim of it), "relation", "count" or "background"."""
    text: str
    true: bool


def parse_caption(caption: str) -> Reading:
    """The claims of any text; nothing raises."""
    words = [re.sub("[^a-z]", "", word) for word in caption.lower().split()]
    mentions, counts, backgrounds = [], [], []
    marks: list[tuple[str, str | int]] = []  # what relations are made of, in the order of the words
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        if word in SHAPES:
            marks.append(("object", len(mentions)))
            mentions.append(_mention(words, i))
        elif word in _DIRECTION:
            marks.append(("where", word))
        elif word in ("it", "its", "and"):
            marks.append((word[:2], ""))
        elif word == "background" and before in BACKGROUNDS:
            backgrounds.append(before)
        elif word in ("object", "objects") and before in _NUMBER:
            counts.append((before, _NUMBER[before]))
    return Reading(mentions, _relations(marks), counts, backgrounds)


def mentions(caption: str) -> list[Mention]:
    """The objects that a caption names, each with its place among the caption's words."""
    return parse_caption(caption).mentions


def _mention(words: list[str], shape: int) -> Mention:
    start = shape
    while start and words[start - 1] in _ATTRIBUTE and words[start - 1] not in SHAPES:
        start -= 1
    claims = [(_ATTRIBUTE[word], word) for word in words[start : shape + 1]]
    if "texture" not in dict(claims):
        claims.append(("texture", "plain"))
    if start and words[start - 1] in ("a", "an", "the"):
        start -= 1
    return Mention(start, shape + 1, tuple(claims))


def _relations(marks: list[tuple]) -> list[tuple[int | None, str, int | None]]:
    found: list[tuple[int | None, str, int | None]] = []
    for at, (mark, word) in enumerate(marks):
        if mark != "where":
            continue
        earlier = [None, None] + [value for sort, value in marks[:at] if sort == "object"]
        later = [value for sort, value in marks[at:] if sort == "object"] + [None, None]
        last, following = (marks[at - 1][0] if at else ""), (marks[at + 1][0] if at + 1 < len(marks) else "")
        if "it" in (last, following):  # a ... with b to its left, with b above it
            a, b = earlier[-1], earlier[-2]
        elif earlier[-1] is None:  # under b sits a
            b, a = later[:2]
        elif last == "an" and found:  # a is left of b and above c
            a, b = found[-1][0], later[0]
        else:  # a above b
            a, b = earlier[-1], later[0]
        found.append((a, _DIRECTION[word], b))
    return found


def referents(reading: Reading, scene: Scene) -> list[int | None]:
    """For each mention the object it means: its place in `scene.objects`, or None where objects are too few.

    Every mention is of another object. Of all ways to choose them, the one that makes most mentions wholly true,
    then most of their attributes, then most relations.
    """
    described = [mention.claims for mention in reading.mentions[:_MOST]]
    slots: list[int | None] = list(range(len(scene.objects)))
    slots += [None] * (len(described) - len(slots))
    agree = [[sum(getattr(o, k) == v for k, v in claims) for o in scene.objects] for claims in described]

    undescribed = [None] * (len(reading.mentions) - len(described))

    def merit(choice: tuple) -> tuple[int, int, int]:
        agreed = [agree[k][o] if o is not None else 0 for k, o in enumerate(choice)]
        whole = sum(count == len(claims) for count, claims in zip(agreed, described, strict=True))
        meant = [*choice, *undescribed]
        return whole, sum(agreed), sum(_holds(claim, meant, scene) for claim in reading.relations)

    return [*max(permutations(slots, len(described)), key=merit), *undescribed]


def certain_referents(reading: Reading, scene: Scene) -> list[int | None]:
    """As `referents`, but None where the words of a mention are not true of an object, or do not tell it from others.

    Where no texture is named, any will do; of objects that all other attributes fail to tell apart, the plain one is
    meant. How mentions lie, and that each is of another object, tells objects apart too.
    """
    described = [mention.claims for mention in reading.mentions[:_MOST]]
    said = [claims[:-1] if claims[-1][0] == "texture" else claims for claims in described]  # a shape is said last
    fitting = [[i for i, o in enumerate(scene.objects) if _true_of(o, claims)] or [None] for claims in said]
    undescribed = [None] * (len(reading.mentions) - len(described))

    def merit(choice: tuple) -> tuple[int, int, int]:
        there = [(scene.objects[i], claims) for i, claims in zip(choice, described, strict=True) if i is not None]
        whole = sum(len(claims) == len(ATTRIBUTES) and _true_of(o, claims) for o, claims in there)
        meant = [*choice, *undescribed]
        return len({*choice} - {None}), whole, sum(_holds(claim, meant, scene) for claim in reading.relations)

    merits = {choice: merit(choice) for choice in product(*fitting)}
    best = [choice for choice, worth in merits.items() if worth == max(merits.values())]
    return [some[0] if len(set(some)) == 1 else None for some in zip(*best, strict=True)] + undescribed


def _true_of(o: Object, claims: tuple[tuple[str, str], ...]) -> bool:
    return all(getattr(o, attribute) == value for attribute, value in claims)


def _holds(claim: tuple[int | None, str, int | None], meant: list[int | None], scene: Scene) -> bool:
    a, b = (None if mention is None else meant[mention] for mention in (claim[0], claim[2]))
    return a is not None and b is not None and relation(scene.objects[a], scene.objects[b]) == claim[1]


def judge(reading: Reading, scene: Scene) -> list[Fact]:
    """Every claim and whether it is true: objects with their attributes, relations, counts, backgrounds."""
    meant = referents(reading, scene)
    facts = []
    for mention, place in zip(reading.mentions, meant, strict=True):
        o = None if place is None else scene.objects[place]
        right = [o is not None and getattr(o, attribute) == value for attribute, value in mention.claims]
        values = [value for _, value in mention.claims]
        facts.append(Fact("object", " ".join(values), all(right)))
        facts += [Fact("attribute", value, true) for value, true in zip(values, right, strict=True)]
    facts += [Fact("relation", claim[1], _holds(claim, meant, scene)) for claim in reading.relations]
    facts += [Fact("count", word, number == len(scene.objects)) for word, number in reading.counts]
    facts += [Fact("background", word, word == scene.background) for word in reading.backgrounds]
    return facts


def caption_facts(caption: str, scene: Scene) -> list[Fact]:
    """Every claim of a caption, judged of a scene; none where nothing could be read."""
    return judge(parse_caption(caption), scene)


def is_true_caption(caption: str, scene: Scene) -> bool:
    """Whether a caption names at least one object and claims nothing untrue."""
    reading = parse_caption(caption)
    return bool(reading.mentions) and all(fact.true for fact in judge(reading, scene))
