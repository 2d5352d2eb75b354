"""The named terms of the loss, their groups, and the text that the command line takes for them."""

import re
from collections.abc import Callable

from dlip.common.errors import UserError
from dlip.models.tasks import SOURCES

TERMS = (
    "itc", "itm", "lm", "vqa", "tags",
    "hr.image", "hr.text", "hr.fusion", "hr.decoder",
    "at.self", "at.cross", "at.decoder_self", "at.decoder_cross",
    "kd.itc", "kd.itm", "kd.lm", "kd.vqa",
)  # fmt: skip
"""Every term a loss may have; an ablation is a table of their weights."""

VLP = {"itc": 1.0, "itm": 1.0, "lm": 1.0, "vqa": 1.0}
HR = {f"hr.{source}": 1.0 for source in SOURCES}
AT = {f"at.{maps}": 1.0 for maps in ("self", "cross", "decoder_self", "decoder_cross")}
KD = {f"kd.{ability}": 1.0 for ability in VLP}
"""Terms of the paper's L_VLP, L_HR and L_AT (section 3.3) with weight 1; beyond it, vqa in VLP, and logits in KD.

The paper's L_HR is the mean over its four sources, which is `hr=0.25`.
"""
GROUPS = {"vlp": VLP, "hr": HR, "at": AT, "kd": KD}
BY_TOKEN = ("hr.fusion", "hr.decoder", *AT, "kd.lm", "kd.vqa")
"""Terms that compare student and teacher token by token, so that both must tokenize texts alike."""
NEEDS = {"vqa": "questions", "kd.vqa": "questions", "tags": "tags", "hr.image": "images"}
"""What a term needs of the data; captions where it is not named."""
TRAINED = {
    "itc": {"image", "text"}, "kd.itc": {"image", "text"}, "hr.text": {"text"},
    **dict.fromkeys(("hr.image", "tags"), {"image"}),
}  # fmt: skip
"""The parts that a term trains, of those that may be frozen; a term that is not named also trains others."""
MEAN_OVER = {
    "lm": "next tokens", "kd.lm": "next tokens", "vqa": "answer tokens", "kd.vqa": "answer tokens",
    **dict.fromkeys(("hr.text", "hr.fusion", "at.self", "at.cross"), "tokens"),
    **dict.fromkeys(("hr.decoder", "at.decoder_self", "at.decoder_cross"), "decoder tokens"),
    **dict.fromkeys(("hr.image", "tags"), "images"),
}  # fmt: skip
"""What a term is a mean over; captions where it is not named."""


def abilities(weights: dict[str, float]) -> frozenset[str]:
    """Abilities whose heads these weights train."""
    return frozenset(ability for ability in VLP if weights.get(ability) or weights.get(f"kd.{ability}"))


def trained_abilities(weights: dict[str, float]) -> frozenset[str]:
    """Abilities of a model trained with these weights; all of them where they train no head, as the paper's AT+HR."""
    return abilities(weights) or frozenset(VLP)


def distills(weights: dict[str, float]) -> list[str]:
    """Terms with weight that need a teacher."""
    return [term for term, weight in weights.items() if weight and "." in term]


def weights(text: str) -> dict[str, float]:
    """`vlp,hr,kd.lm=0.5` as term -> weight; a group stands for all its terms. Raises UserError for an unknown one."""
    return _by_term(text, float)


def starts(text: str) -> dict[str, int]:
    """`vlp=500,itm=900` as term -> step at which it joins. Raises UserError as `weights` does."""
    return _by_term(text, int)


def layers(text: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """`fusion=5:1+3:0,text=2:0` as source -> pairs (teacher layer, student layer).

    Raises UserError where the text has another form; TrainConfig checks the sources.
    """
    pairs_of = {}
    for part in filter(None, text.split(",")):
        source, _, pairs = part.partition("=")
        if not re.fullmatch(r"-?\d{1,4}:-?\d{1,4}(\+-?\d{1,4}:-?\d{1,4})*", pairs):
            raise UserError(f"the layers {part!r} are not teacher:student pairs; write them as in fusion=5:1+3:0")
        pairs_of[source] = tuple(tuple(map(int, pair.split(":"))) for pair in pairs.split("+"))
    return pairs_of


def terms_text(values: dict[str, float]) -> str:
    """The inverse of `weights` and `starts`; a whole group of one value is written by its name."""
    items, words = list(values.items()), []
    while items:
        (name, value), size = items[0], 1
        for group, terms in GROUPS.items():
            if items[: len(terms)] == [(term, value) for term in terms]:
                name, size = group, len(terms)
        words.append(name if value == 1 else f"{name}={str(value).removesuffix('.0')}")
        items = items[size:]
    return ",".join(words)


def layers_text(layers: dict[str, tuple[tuple[int, int], ...]]) -> str:
    """The inverse of `layers`."""
    return ",".join(f"{source}={'+'.join(f'{a}:{b}' for a, b in pairs)}" for source, pairs in layers.items())


def _by_term(text: str, number: Callable) -> dict:
    values = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in GROUPS and name not in TERMS:
            raise UserError(f"there is no loss term {name!r}; choose one of {', '.join((*GROUPS, *TERMS))}")
        try:
            value = number(value or 1)
        except ValueError:
            kind, example = ("weight", "0.5") if number is float else ("first step", "500")
            raise UserError(f"the {kind} of {name} is {value!r}; give a number, as in {name}={example}") from None
        values |= {term: value for term in GROUPS.get(name, (name,))}
    return values
