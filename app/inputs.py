"""What visitors type and choose, within its limits; a mistake names its field."""

import inspect
import re
import typing
from collections.abc import Callable
from functools import wraps

from dlip.common.errors import UserError

KINDS = {
    str: (str, "a text"),
    int: (int | float, "a number"),
    float: (int | float, "a number"),
    bool: (bool, "true or false"),
    list: (list | tuple, "a list"),
}
"""Annotation of a parameter -> what may be sent, and what it is called."""
LONGEST = 1000
"""Characters of a text, at most."""
CONTROLS = dict.fromkeys((*range(32), 127), " ")


def checked(function: Callable) -> Callable:
    """The function, refusing what is of another kind than its annotations say with a UserError: over the API anything
    can be sent. Nothing (None) is left to the function."""
    kinds = {name: KINDS.get(_plain(hint)) for name, hint in typing.get_type_hints(function).items()}
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args, **named):
        for name, value in signature.bind(*args, **named).arguments.items():
            if kinds[name] and value is not None and not isinstance(value, kinds[name][0]):
                raise UserError(f"{name.replace('_', ' ')} is {value!r:.40} here; give {kinds[name][1]}")
        return function(*args, **named)

    return call


def _plain(hint: object) -> object:
    """str of Literal["a", "b"], int of int | None, list of list[int]."""
    if typing.get_origin(hint) is typing.Literal:
        return type(typing.get_args(hint)[0])
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    return parts[0] if type(None) in typing.get_args(hint) and len(parts) == 1 else typing.get_origin(hint) or hint


def text(words: str | None, noun: str, optional: bool = False) -> str:
    """Control characters as spaces, and none around it; halves of characters as question marks, as models read them.
    Raises UserError where it is longer than `LONGEST`, or empty and not `optional`."""
    words = " ".join((words or "").encode(errors="replace").decode().translate(CONTROLS).split())
    if not words and not optional:
        raise UserError(f"the {noun} is empty; type one")
    if len(words) > LONGEST:
        raise UserError(f"the {noun} has {len(words):,} characters; shorten it to {LONGEST:,}")
    return words


def number(value: float | None, name: str, least: float, most: float) -> float:
    """Raises UserError where it is missing, no number, or beyond its limits."""
    asked = f"choose a number from {least:,} to {most:,}"
    if value is None:
        raise UserError(f"{name} is missing; {asked}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(f"{name} is {value!r:.40} here; {asked}")
    return value


def counted(value: object) -> object:
    """A number that comes as a text, as in a list of choices over the API; what is none stays what it is."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value) else value


def whole(value: float | None, name: str, least: int, most: int) -> int:
    """As `number`, without its fraction."""
    return int(number(value, name, least, most))
