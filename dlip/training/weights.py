"""Weights of terms as text: what the command line takes, and the table of all terms."""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches

from dlip.common.errors import UserError


def registry() -> dict:
    """The registered terms by name; imported on first use, because the command line starts without torch."""
    from dlip.losses import TERMS

    return TERMS


def groups() -> dict[str, list[str]]:
    """Group -> its terms."""
    names = dict.fromkeys(term.group for term in registry().values() if term.group)
    return {group: [name for name, term in registry().items() if term.group == group] for group in names}


def check_name(name: str) -> None:
    """Raise UserError for a term or group that is not registered, with the nearest name."""
    known = [*groups(), *registry()]
    if name not in known:
        nearest = get_close_matches(name, known, 1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise UserError(f"there is no loss term {name!r}{hint} The terms are {', '.join(known)}")


def weights(values: str | Mapping[str, float]) -> dict[str, float]:
    """`vlp,hr,kd.lm=0.5`, or {"vlp": 1, "hr": 1, "kd.lm": 0.5}, as term -> weight; a group stands for all its terms.

    Raises UserError for an unknown term and for a weight that is not a number.
    """
    return _by_term(values, float, "weight", "0.5")


def starts(values: str | Mapping[str, int]) -> dict[str, int]:
    """`vlp=500,itm=900` as term -> step at which it joins. Raises UserError as `weights` does."""
    return _by_term(values, int, "first step", "500")


def _by_term(values: str | Mapping, number: Callable, kind: str, example: str) -> dict:
    if isinstance(values, str):
        parts = (part.partition("=") for part in values.split(",") if part)
        values = {name: value or 1 for name, _, value in parts}
    by_term = {}
    for name, value in values.items():
        check_name(name)
        try:
            value = number(value)
        except (TypeError, ValueError):
            raise UserError(f"the {kind} of {name} is {value!r}; give a number, as in {name}={example}") from None
        by_term |= dict.fromkeys(groups().get(name, [name]), value)
    return by_term


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
        for group, terms in groups().items():
            if items[: len(terms)] == [(term, value) for term in terms]:
                name, size = group, len(terms)
        words.append(name if value == 1 else f"{name}={str(value).removesuffix('.0')}")
        items = items[size:]
    return ",".join(words)


def layers_text(layers: dict[str, tuple[tuple[int, int], ...]]) -> str:
    """The inverse of `layers`."""
    return ",".join(f"{source}={'+'.join(f'{a}:{b}' for a, b in pairs)}" for source, pairs in layers.items())


def distills(weights: dict[str, float]) -> list[str]:
    """Terms with weight that need a teacher."""
    return [name for name, weight in weights.items() if weight and registry()[name].distills]


def abilities(weights: dict[str, float]) -> frozenset[str]:
    """Abilities whose heads these weights train."""
    return frozenset(ability for name, w in weights.items() if w and (ability := registry()[name].ability))


def trained_abilities(weights: dict[str, float]) -> frozenset[str]:
    """Abilities of a model trained with these weights; all of them where they train no head, as the paper's AT+HR."""
    from dlip.models.features import ABILITIES

    return abilities(weights) or frozenset(ABILITIES)


def describe_terms() -> list[tuple[str, str, str, str]]:
    """Every term: its name, its group, what it needs of the data, and what it is."""
    return [
        (name, term.group or "", term.needs, (term.__doc__ or "").partition("\n")[0].rstrip("."))
        for name, term in registry().items()
    ]


def terms_table() -> str:
    """`describe_terms` in Markdown, as it stands in docs/training.md."""
    rows = [f"| `{name}` | {group} | {needs} | {what} |" for name, group, needs, what in describe_terms()]
    return "\n".join(["| term | group | needs | what it is |", "|---|---|---|---|", *rows])


def terms_help() -> str:
    """`describe_terms` for a terminal."""
    return "".join(f"  {name:18} {group:4} {needs:10} {what}\n" for name, group, needs, what in describe_terms())
