"""Types of a configuration's fields, checked when it is read from JSON."""

from dataclasses import fields
from types import UnionType
from typing import get_args, get_origin

from dlip.common.errors import UserError

MOST_NUMBER = 1e38
"""Of anything that is no count: more does not fit single precision."""


KINDS = {
    int: ((int,), "a whole number"), float: ((int, float), "a number"), bool: ((bool,), "true or false"),
    str: ((str,), "a word"), dict: ((dict,), "a table"), tuple: ((list, tuple), "a list of numbers"),
}  # fmt: skip
"""Type of a field -> the types that its value may have when it is read from JSON, in words."""


def check_kinds(cls: type, values: dict, what: str) -> None:
    """Raises UserError where `values` are no table of fields of a configuration, each of the type of its field."""
    known = {f.name: f.type for f in fields(cls)}
    if not isinstance(values, dict) or (unknown := set(values) - set(known)):
        said = f"has unknown names {sorted(unknown)}" if isinstance(values, dict) else "is no table of names"
        raise UserError(f"the {what} configuration {said}; dlip/models/config.py has them all")
    for name, value in values.items():
        one, *other = get_args(known[name]) if isinstance(known[name], UnionType) else (known[name],)
        types, words = KINDS[get_origin(one) or one]
        sound = isinstance(value, types) and (one is bool or not isinstance(value, bool))
        if sound and types == KINDS[tuple][0]:
            sound = all(type(number) in (int, float) and abs(number) < MOST_NUMBER for number in value)
        if sound and one is float:
            sound = abs(value) < MOST_NUMBER
        if not sound and not (value is None and other):
            raise UserError(f"{what}.{name} is {value!r}; it has to be {words}")
