"""The paper's seven conclusions as claims about rows of grids; `dlip.experiments.analysis.conclusions` judges them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dlip.cost.count import paper_count
from dlip.experiments.grids import IMAGE, TEXT, module_row, student_size
from dlip.models.config import preset
from dlip.records import HEADLINE_SCORES

MARGIN = 1.5
"""Effects within +-MARGIN points count as equal."""
COMPOSITE = dict.fromkeys(HEADLINE_SCORES, 1 / len(HEADLINE_SCORES))
"""Headline score -> weight in the composite."""
WORDS_MINUS_RETRIEVAL = {"facts_f1": 0.5, "vqa_mean": 0.5, "ir1": -1.0}


@dataclass(frozen=True)
class Claim:
    """A range for a weighted sum of rows' scores, in points."""

    comparison: str
    grid: str
    rows: Mapping[str, float]
    """Row -> weight; weights add up to 0."""
    low: float = 0.0
    high: float = math.inf
    score: Mapping[str, float] = field(default_factory=COMPOSITE.copy)
    """Headline score -> weight; the points are summed with these weights."""
    decides: bool = True
    """Whether the verdict on the conclusion depends on this claim; others are shown beside it."""


@dataclass(frozen=True)
class Conclusion:
    number: int
    statement: str
    claims: tuple[Claim, ...]


def slopes() -> dict[str, float]:
    """Row of `modules` -> weight: points lost per halving of the image encoder, minus those of the text encoder.

    Least-squares slopes over log2 of the encoder's parameters, averaged over the other encoder at the teacher's and at
    the student's size; undistilled rows, as in the paper.
    """
    row_weights: dict[str, float] = {}
    for sizes, side, sign in ((IMAGE, "image", 1.0), (TEXT, "text", -1.0)):
        x = np.log2([paper_count(preset(student_size(sizes[size])))[f"{side}_params"] for size in sizes])
        weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        for other in ("base", "small"):
            for size, weight in zip(sizes, weights, strict=True):
                name = module_row(size, other) if side == "image" else module_row(other, size)
                row_weights[name] = row_weights.get(name, 0.0) + sign * weight / 2
    return row_weights


def difference(row: str, other: str) -> dict[str, float]:
    """Weights of the first row minus the second."""
    return {row: 1.0, other: -1.0}


def main_effect(part: str, other: str) -> dict[str, float]:
    """Weights in `init`: the part trained minus not, averaged over the other part trained and not."""
    return {f"{part} trained": 0.5, "both trained": 0.5, "neither trained": -0.5, f"{other} trained": -0.5}


CONCLUSIONS = (
    Conclusion(1, "Image and text encoders matter equally under compression.", (
        Claim("points lost per halving of the image encoder, minus those of the text encoder", "modules", slopes(),
              -MARGIN, MARGIN),
    )),
    Conclusion(2, "A large fusion module is unnecessary: half of the layers suffice.", (
        Claim("6 fused layers minus 3", "fusion", difference("6 of 6 layers fused", "3 of 6 layers fused"),
              -math.inf, MARGIN),
    )),
    Conclusion(3, "Representations carry more than attention maps.", (
        Claim("VLP+HR minus VLP+AT", "objectives", difference("VLP+HR", "VLP+AT")),
        Claim("VLP+HR as in the paper, minus VLP+AT", "objectives", difference("VLP+HR as in the paper", "VLP+AT"),
              decides=False),
    )),
    Conclusion(4, "Fused information carries more than either modality's; cross-attention more than self-attention.", (
        Claim("fusion states minus image states", "modalities", difference("fusion", "image")),
        Claim("fusion states minus text states", "modalities", difference("fusion", "text")),
        Claim("cross-attention minus self-attention", "attention", difference("cross-attention", "self-attention")),
    )),
    Conclusion(5, "Decoder tasks need decoder states to be distilled.", (
        Claim("decoder states minus fusion states: on captions and questions, minus on retrieval", "modalities",
              difference("decoder", "fusion"), score=WORDS_MINUS_RETRIEVAL),
    )),
    Conclusion(6, "Pretrained weights are vital for the image encoder, nearly irrelevant for the text encoder.", (
        Claim("image encoder trained minus not", "init", main_effect("image", "text"), MARGIN),
        Claim("text encoder trained minus not", "init", main_effect("text", "image"), -MARGIN, MARGIN),
    )),
    Conclusion(7, "The losses complement each other.", (  # AT+HR trains no head here, so it is not compared
        Claim("VLP+HR minus VLP", "objectives", difference("VLP+HR", "VLP")),
        Claim("VLP+AT minus VLP", "objectives", difference("VLP+AT", "VLP")),
        Claim("VLP+AT+HR minus VLP+HR", "objectives", difference("VLP+AT+HR", "VLP+HR")),
        Claim("VLP+AT+HR minus VLP+AT", "objectives", difference("VLP+AT+HR", "VLP+AT")),
    )),
)  # fmt: skip


def claimed_rows() -> frozenset[tuple[str, str]]:
    """Grid and name of every row that a conclusion compares."""
    return frozenset((claim.grid, row) for c in CONCLUSIONS for claim in c.claims for row in claim.rows)
