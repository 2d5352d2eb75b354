"""Validation of what visitors type and choose; each error names its field."""

import inspect
import re
import typing
from collections.abc import Callable
from functools import wraps

from dlip.common.errors import UserError
from dlip.common.text import replace_surrogates

KINDS = {
    str: (str, "a text"),
    int: (int | float, "a number"),
    float: (int | float, "a number"),
    bool: (bool, "true or false"),
    list: (list | tuple, "a list"),
}
"""Annotation of a parameter -> types that are accepted, and their name."""
MAX_CHARACTERS = 1000
CONTROL_CHARACTERS = dict.fromkeys((*range(32), 127), " ")


def checked(function: Callable) -> Callable:
    """The function, raising UserError for an argument that does not have its annotated type; None passes."""
    kinds = {name: KINDS.get(_plain(hint)) for name, hint in typing.get_type_hints(function).items()}
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args, **kwargs):
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if kinds[name] and value is not None and not isinstance(value, kinds[name][0]):
                raise UserError(f"{name.replace('_', ' ')} is {value!r:.40}; give {kinds[name][1]}")
        return function(*args, **kwargs)

    return call


def _plain(hint: object) -> object:
    """str of Literal["a", "b"], int of int | None, list of list[int]."""
    if typing.get_origin(hint) is typing.Literal:
        return type(typing.get_args(hint)[0])
    types = [part for part in typing.get_args(hint) if part is not type(None)]
    return types[0] if type(None) in typing.get_args(hint) and len(types) == 1 else typing.get_origin(hint) or hint


def text(value: str | None, field: str, optional: bool = False) -> str:
    """The text on one line, with control characters as spaces and lone surrogates as question marks.

    Raises UserError if it has more than `MAX_CHARACTERS`, or is empty and not optional.
    """
    value = " ".join(replace_surrogates(value or "").translate(CONTROL_CHARACTERS).split())
    if not value and not optional:
        raise UserError(f"the {field} is empty; type one")
    if len(value) > MAX_CHARACTERS:
        raise UserError(f"the {field} has {len(value):,} characters; shorten it to {MAX_CHARACTERS:,}")
    return value


def number(value: float | None, field: str, least: float, most: float) -> float:
    """Raise UserError if the number is missing, not a number, or out of range."""
    hint = f"choose a number from {least:,} to {most:,}"
    if value is None:
        raise UserError(f"{field} is missing; {hint}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{field} is {value!r:.40}; {hint}")
    return value


def integer(value: float | None, field: str, least: int, most: int) -> int:
    """As `number`, rounded down."""
    return int(number(value, field, least, most))


def digits_as_int(value: object) -> object:
    """An int for a text of digits, as the API sends choices of a list; any other value as it is."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value) else value
