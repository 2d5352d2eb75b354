"""The named terms of the loss, in groups, and what is typed of them."""

import re

from dlip.common.errors import UserError

TERMS = (
    "itc", "itm", "lm", "vqa", "tags",
    "hr.image", "hr.text", "hr.fusion", "hr.decoder",
    "at.self", "at.cross", "at.decoder_self", "at.decoder_cross",
    "kd.itc", "kd.itm", "kd.lm", "kd.vqa",
)  # fmt: skip
"""Every term a loss may have; an ablation is a table of their weights."""

VLP = {"itc": 1.0, "itm": 1.0, "lm": 1.0, "vqa": 1.0}
HR = {f"hr.{source}": 1.0 for source in ("image", "text", "fusion", "decoder")}
AT = {f"at.{map_}": 1.0 for map_ in ("self", "cross", "decoder_self", "decoder_cross")}
KD = {f"kd.{task}": 1.0 for task in VLP}
"""Every term of the paper's L_VLP, L_HR and L_AT (section 3.3) with weight 1; beyond it, answers and the logits.

The paper's L_HR is the mean over its four sources: `hr=0.25` is exactly its.
"""
GROUPS = {"vlp": VLP, "hr": HR, "at": AT, "kd": KD}
NEEDS = {"vqa": "questions", "kd.vqa": "questions", "tags": "tags", "hr.image": "pictures"}
"""What a term needs of the data; captions where nothing is said."""


def learnt(weights: dict[str, float]) -> frozenset[str]:
    """The tasks whose heads these weights train; all where they train none, as the paper's AT+HR does."""
    return frozenset(task for task in VLP if weights.get(task) or weights.get(f"kd.{task}")) or frozenset(VLP)


def weights(text: str) -> dict[str, float]:
    """`vlp,hr,kd.lm=0.5` as term -> weight; a group stands for all its terms. Raises UserError for an unknown one."""
    return _by_term(text, float)


def joins(text: str) -> dict[str, int]:
    """`vlp=500,itm=900` as term -> step at which it joins. Raises UserError as `weights` does."""
    return _by_term(text, int)


def layers(text: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """`fusion=5:1+3:0,text=2:0` as source -> pairs (teacher layer, student layer); TrainConfig says which sources.

    Raises UserError where it is not of this form.
    """
    out = {}
    for part in filter(None, text.split(",")):
        source, _, pairs = part.partition("=")
        if not re.fullmatch(r"-?\d{1,4}:-?\d{1,4}(\+-?\d{1,4}:-?\d{1,4})*", pairs):
            raise UserError(f"the layers {part!r} are no pairs of layers; give teacher:student, as in fusion=5:1+3:0")
        out[source] = tuple(tuple(map(int, pair.split(":"))) for pair in pairs.split("+"))
    return out


def _by_term(text: str, number: type) -> dict:
    out = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in GROUPS and name not in TERMS:
            raise UserError(f"there is no loss term {name!r}; choose one of {', '.join((*GROUPS, *TERMS))}")
        try:
            value = number(value or 1)
        except ValueError:
            kind, example = ("weight", "0.5") if number is float else ("first step", "500")
            raise UserError(f"the {kind} of {name} is {value!r}; give a number, as in {name}={example}") from None
        out |= {term: value for term in GROUPS.get(name, (name,))}
    return out
