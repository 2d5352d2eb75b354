"""Precision, recall and F1 of the facts that captions state, against what a complete caption of the scene states."""

from dataclasses import replace

import numpy as np

from dlip.data.scenes.truth import ParsedCaption, check_claims, described, parse_caption, referents
from dlip.data.scenes.world import ATTRIBUTES, OPPOSITE, Scene, relation

FACT_KINDS = ("object", "attribute", "relation")
COUNTS = ("true", "claims", "recalled", "described")
"""What is counted of each kind: true claims, claims, described facts that the caption states, described facts."""


def count_facts(caption: str, scene: Scene) -> np.ndarray:
    """int64 [3, 4]: `COUNTS` of each of `FACT_KINDS`.

    An object is recalled by a mention of exactly its attributes, an attribute by a mention of its object, a relation
    in either direction. What a caption says twice counts once.
    """
    parsed = _without_repetition(parse_caption(caption))
    assigned = referents(parsed, scene)
    claims, (objects, pairs) = check_claims(parsed, assigned, scene), described(scene)

    stated = {kind: set() for kind in FACT_KINDS}
    for mention, place in zip(parsed.mentions, assigned, strict=True):
        if place is not None:
            true = {claim for claim in mention.claims if getattr(scene.objects[place], claim[0]) == claim[1]}
            stated["attribute"] |= {(place, attribute) for attribute, _ in true}
            if len(true) == len(ATTRIBUTES) == len(mention.claims):
                stated["object"].add(place)
    for a, where, b in parsed.relations:
        one, other = (None if mention is None else assigned[mention] for mention in (a, b))
        if None not in (one, other) and relation(scene.objects[one], scene.objects[other]) == where:
            stated["relation"].add((min(one, other), max(one, other)))

    all_facts = {
        "object": objects,
        "attribute": [(o, attribute) for o in objects for attribute in ATTRIBUTES],
        "relation": pairs,
    }
    counts = []
    for kind, facts in all_facts.items():
        true = [claim.true for claim in claims if claim.kind == kind]
        counts.append([sum(true), len(true), len(stated[kind].intersection(facts)), len(facts)])
    return np.array(counts)


def _without_repetition(parsed: ParsedCaption) -> ParsedCaption:
    """The caption with each object, attribute and relation stated once.

    Equal mentions with all attributes are of one object, as no two objects of a scene are alike.
    """
    place, mentions = [], []
    for mention in parsed.mentions:
        mention = replace(mention, claims=tuple(dict.fromkeys(mention.claims)))
        same = [i for i, other in enumerate(mentions) if {*other.claims} == {*mention.claims}]
        if same and {attribute for attribute, _ in mention.claims} == {*ATTRIBUTES}:
            place.append(same[0])
        else:
            place.append(len(mentions))
            mentions.append(mention)

    def normalized(claim: tuple) -> tuple:
        a, b = (None if mention is None else place[mention] for mention in (claim[0], claim[2]))
        return (b, OPPOSITE[claim[1]], a) if None not in (a, b) and b < a else (a, claim[1], b)

    relations = list(dict.fromkeys(map(normalized, parsed.relations)))
    return ParsedCaption(mentions, relations, parsed.counts, parsed.backgrounds)


def fact_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> float64 [..., 3], 0 to 1, of each of `FACT_KINDS`, from sums of `count_facts` [..., 3, 4].

    "precision" (NaN without claims), "recall" (NaN where nothing is described) and "f1", their harmonic mean: 0 where
    nothing is both claimed and true, NaN where nothing is claimed or described.
    """
    true, claims, recalled, total = np.moveaxis(np.asarray(counts, float), -1, 0)
    with np.errstate(invalid="ignore"):
        precision, recall = true / claims, recalled / total
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    return {"precision": precision, "recall": recall, "f1": np.where(claims + total > 0, f1, np.nan)}


def facts_f1(counts: np.ndarray) -> np.ndarray:
    """float64 [...], 0 to 1: mean F1 of the kinds that have one, from sums of `count_facts` [..., 3, 4]; else NaN."""
    f1 = fact_scores(counts)["f1"]
    known = ~np.isnan(f1)
    with np.errstate(invalid="ignore"):
        return np.where(known, f1, 0).sum(-1) / known.sum(-1)
