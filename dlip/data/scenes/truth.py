"""The claims of a caption, of the dataset or of a model, and whether they are true of a scene.

Captions are parsed word by word, whatever their form. Words outside the vocabulary, and adjectives without a shape,
claim nothing. A relation that lacks one of its two objects is false.
"""

import re
from dataclasses import dataclass
from itertools import pairwise, permutations, product

from dlip.data.answers import ARTICLES
from dlip.data.scenes.world import ATTRIBUTES, BACKGROUNDS, OPPOSITE, SHAPES, VALUES, Object, Scene, relation

_ATTRIBUTE = {value: attribute for attribute, values in zip(ATTRIBUTES, VALUES, strict=True) for value in values}
_DIRECTION = {where: where for where in OPPOSITE} | {"over": "above", "under": "below"}
_NUMBER = {"no": 0, "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
_MAX_MENTIONS = 5  # mentions of one caption that are matched to objects; further ones count as absent
_DESCRIBED = 3  # objects that a complete caption names


@dataclass(frozen=True)
class Mention:
    """An object that a caption names."""

    start: int
    """Index of its first word in `caption.split()`, an article included."""
    end: int
    """Index after its last word, the shape."""
    claims: tuple[tuple[str, str], ...]
    """(attribute, value) of each word, and ("texture", "plain") if no texture is named, as captions omit "plain"."""


@dataclass(frozen=True)
class ParsedCaption:
    """The claims of a caption."""

    mentions: list[Mention]
    relations: list[tuple[int | None, str, int | None]]
    """(a, direction, b): mention a is in that direction from mention b."""
    counts: list[tuple[str, int]]
    backgrounds: list[str]


@dataclass(frozen=True)
class Fact:
    """One claim of a caption, checked against a scene."""

    kind: str
    """"object" (all of one mention), "attribute" (one claim of it), "relation", "count" or "background"."""
    text: str
    true: bool


def parse_caption(caption: str) -> ParsedCaption:
    """The claims of any text; never raises."""
    words = [re.sub("[^a-z]", "", word) for word in caption.lower().split()]
    mentions, counts, backgrounds = [], [], []
    marks: list[tuple[str, str | int]] = []  # parts of relations, in the order of the words
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        if word in SHAPES:
            marks.append(("object", len(mentions)))
            mentions.append(_mention(words, i))
        elif word in _DIRECTION:
            marks.append(("where", word))
        elif word in ("it", "its", "and"):
            marks.append(("and" if word == "and" else "it", ""))
        elif word == "background" and before in BACKGROUNDS:
            backgrounds.append(before)
        elif word in ("object", "objects") and before in _NUMBER:
            counts.append((before, _NUMBER[before]))
    return ParsedCaption(mentions, _relations(marks), counts, backgrounds)


def _mention(words: list[str], shape: int) -> Mention:
    start = shape
    while start and words[start - 1] in _ATTRIBUTE and words[start - 1] not in SHAPES:
        start -= 1
    claims = [(_ATTRIBUTE[word], word) for word in words[start : shape + 1]]
    if "texture" not in dict(claims):
        claims.append(("texture", "plain"))
    if start and words[start - 1] in ARTICLES:
        start -= 1
    return Mention(start, shape + 1, tuple(claims))


def _relations(marks: list[tuple]) -> list[tuple[int | None, str, int | None]]:
    relations: list[tuple[int | None, str, int | None]] = []
    for at, (mark, word) in enumerate(marks):
        if mark != "where":
            continue
        earlier = [None, None] + [value for sort, value in marks[:at] if sort == "object"]
        later = [value for sort, value in marks[at:] if sort == "object"] + [None, None]
        last, following = (marks[at - 1][0] if at else ""), (marks[at + 1][0] if at + 1 < len(marks) else "")
        if "it" in (last, following) or following != "object":  # b ... with a to its left, with a above it, a at left
            a, b = earlier[-1], next((mention for mention in earlier if mention is not None), None)
            b = None if a == b else b
        elif earlier[-1] is None:  # under b sits a
            b, a = later[:2]
        elif last == "and" and relations:  # a is left of b and above c
            a, b = relations[-1][0], later[0]
        else:  # a above b
            a, b = earlier[-1], later[0]
        relations.append((a, _DIRECTION[word], b))
    return relations


def referents(parsed: ParsedCaption, scene: Scene) -> list[int | None]:
    """For each mention its object: an index into `scene.objects`, or None if there are too few objects.

    Every mention has another object. Of all assignments, the one that makes most mentions entirely true, then most of
    their attributes, then most relations.
    """
    described = [mention.claims for mention in parsed.mentions[:_MAX_MENTIONS]]
    slots: list[int | None] = list(range(len(scene.objects)))
    slots += [None] * (len(described) - len(slots))
    agree = [[sum(getattr(o, k) == v for k, v in claims) for o in scene.objects] for claims in described]

    unmatched = [None] * (len(parsed.mentions) - len(described))

    def score(choice: tuple) -> tuple[int, int, int]:
        agreed = [agree[k][o] if o is not None else 0 for k, o in enumerate(choice)]
        complete = sum(count == len(claims) for count, claims in zip(agreed, described, strict=True))
        assigned = [*choice, *unmatched]
        return complete, sum(agreed), sum(_holds(claim, assigned, scene) for claim in parsed.relations)

    return [*max(permutations(slots, len(described)), key=score), *unmatched]


def certain_referents(parsed: ParsedCaption, scene: Scene) -> list[int | None]:
    """As `referents`, but None for a mention that fits no object, or more than one.

    If no texture is named, any fits; among objects that no other attribute distinguishes, the plain one is taken.
    Relations, and that every mention has another object, distinguish objects too.
    """
    described = [mention.claims for mention in parsed.mentions[:_MAX_MENTIONS]]
    # the shape is a mention's last word, so a texture in the last place is the implied one
    named = [claims[:-1] if claims[-1][0] == "texture" else claims for claims in described]
    fitting = [[i for i, o in enumerate(scene.objects) if _true_of(o, claims)] or [None] for claims in named]
    unmatched = [None] * (len(parsed.mentions) - len(described))

    def score(choice: tuple) -> tuple[int, int, int]:
        there = [(scene.objects[i], claims) for i, claims in zip(choice, described, strict=True) if i is not None]
        complete = sum(len(claims) == len(ATTRIBUTES) and _true_of(o, claims) for o, claims in there)
        assigned = [*choice, *unmatched]
        return len({*choice} - {None}), complete, sum(_holds(claim, assigned, scene) for claim in parsed.relations)

    scores = {choice: score(choice) for choice in product(*fitting)}
    most = max(scores.values())
    best = [choice for choice, value in scores.items() if value == most]
    return [some[0] if len(set(some)) == 1 else None for some in zip(*best, strict=True)] + unmatched


def _true_of(o: Object, claims: tuple[tuple[str, str], ...]) -> bool:
    return all(getattr(o, attribute) == value for attribute, value in claims)


def _holds(claim: tuple[int | None, str, int | None], assigned: list[int | None], scene: Scene) -> bool:
    a, b = (None if mention is None else assigned[mention] for mention in (claim[0], claim[2]))
    return a is not None and b is not None and relation(scene.objects[a], scene.objects[b]) == claim[1]


def caption_facts(caption: str, scene: Scene) -> list[Fact]:
    """Every claim of a caption and whether it is true: objects, attributes, relations, counts, backgrounds."""
    parsed = parse_caption(caption)
    return check_claims(parsed, referents(parsed, scene), scene)


def check_claims(parsed: ParsedCaption, assigned: list[int | None], scene: Scene) -> list[Fact]:
    """`caption_facts` of a parsed caption. assigned: the object of each mention, as `referents` returns them."""
    facts = []
    for mention, place in zip(parsed.mentions, assigned, strict=True):
        o = None if place is None else scene.objects[place]
        right = [o is not None and getattr(o, attribute) == value for attribute, value in mention.claims]
        values = [value for _, value in mention.claims]
        facts.append(Fact("object", " ".join(values), all(right)))
        facts += [Fact("attribute", value, true) for value, true in zip(values, right, strict=True)]
    facts += [Fact("relation", claim[1], _holds(claim, assigned, scene)) for claim in parsed.relations]
    facts += [Fact("count", word, number == len(scene.objects)) for word, number in parsed.counts]
    facts += [Fact("background", word, word == scene.background) for word in parsed.backgrounds]
    return facts


def described(scene: Scene) -> tuple[list[int], list[tuple[int, int]]]:
    """What a complete caption states: its objects and its relations, as indices and pairs of indices.

    It names the most salient objects, up to three, with all their attributes, and relates consecutive ones where
    `relation` does.
    """
    objects = list(range(len(scene.objects[:_DESCRIBED])))
    return objects, [(a, b) for a, b in pairwise(objects) if relation(scene.objects[a], scene.objects[b])]
