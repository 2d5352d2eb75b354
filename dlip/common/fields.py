"""Dataclass fields as the one declaration of an option: its type, default, bounds, and docstring.

From a field come validation (`check`), reading from JSON (`from_dict`), and its flag and help (dlip/common/options.py).
"""

import ast
import inspect
import operator
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, field, fields, is_dataclass, replace
from functools import cache
from itertools import pairwise
from numbers import Integral, Real
from textwrap import dedent
from types import NoneType, UnionType
from typing import Any, Literal, Self, get_args, get_origin

from dlip.common.errors import UserError

LIMITS = {"above": ("above", operator.gt), "least": ("at least", operator.ge), "most": ("at most", operator.le)}
"""Bound of an option -> its words, and the comparison of a value with it that must hold."""
MAX_NUMBER = 1e38
"""Largest float of a configuration: more does not fit single precision."""
TYPE_NAMES = {
    int: "a whole number", float: "a number", bool: "true or false", str: "a string", dict: "an object",
    tuple: "a list",
}  # fmt: skip


def option(default: Any = MISSING, *, factory: Callable[[], Any] = MISSING, **metadata) -> Any:
    """A dataclass field with bounds and what `dlip.common.options` reads of it. metadata: any of

    - least, most: inclusive bounds. above: exclusive lower bound.
    - flag: name of its flag, if not the field's; `inverse`: the flag turns the field off; `negatable`: a --no-FLAG too.
    - positional: it has no flag. required: it must be passed, though the class has a default. hidden: it has no flag.
    - command: the only command that has it.
    - parse, show: from text to value, and back; metavar, choices: as in argparse (choices of a Literal: those that the
      command line offers); const: value of the flag alone.
    """
    return field(default=default, default_factory=factory, metadata=metadata)


def base_type(f: Field) -> type:
    """A field's type without "or None" and without parameters: `tuple` of `tuple[str, ...] | None`."""
    types = [one for one in get_args(f.type) if one is not NoneType] if isinstance(f.type, UnionType) else [f.type]
    if get_origin(types[0]) is Literal:
        return str
    return dict if is_dataclass(types[0]) else get_origin(types[0]) or types[0]


def choices(f: Field) -> tuple:
    """The values of a Literal or of `choices`; empty where any value will do."""
    return get_args(f.type) if get_origin(f.type) is Literal else tuple(f.metadata.get("choices", ()))


def key(f: Field) -> str:
    """The name of a field's flag and of its value among those that were typed."""
    return f.metadata.get("flag", f.name)


def flag(f: Field) -> str:
    """A field as a command line names it: `--batch-size`, or its metavar if it is positional."""
    if f.metadata.get("positional"):
        return f.metadata.get("metavar", key(f).upper())
    return f"--{key(f).replace('_', '-')}"


@cache
def docstrings(cls: type) -> dict[str, str]:
    """Field -> the docstring below it in the source, on one line."""
    found: dict[str, str] = {}
    for base in (base for base in reversed(cls.__mro__) if is_dataclass(base)):
        for line, below in pairwise(ast.parse(dedent(inspect.getsource(base))).body[0].body):
            if (
                isinstance(line, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                found[line.target.id] = " ".join(below.value.value.split())
    return found


def check(config, prefix: str) -> None:
    """Raise UserError as `check_value` for the fields of a dataclass.

    prefix: what errors put before a field's name, as in "train.".
    """
    for f in fields(config):
        check_value(f, getattr(config, f.name), f"{prefix}{f.name}")


def check_value(f: Field, value, name: str) -> None:
    """Raise UserError, which calls it `name`, for a value not of a field's type, bounds or choices, or empty."""
    _check_type(value, f, name)
    if value == "":
        raise UserError(f"{name} is empty; give a value, or drop it")
    if value is not None and choices(f) and value not in choices(f):
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(map(str, choices(f)))}")
    if value is None or base_type(f) not in (int, float):
        return
    limits = [(words, holds, f.metadata[limit]) for limit, (words, holds) in LIMITS.items() if limit in f.metadata]
    if not all(holds(value, bound) for _, holds, bound in limits):
        expected = [TYPE_NAMES[base_type(f)], *(f"{words} {bound:,}" for words, _, bound in limits)]
        raise UserError(f"{name} is {value}; give {', '.join(expected)}")


def from_dict(cls: type, values: dict, what: str):
    """A dataclass from its JSON; lists become tuples, and objects the dataclasses of their fields.

    Raises UserError where `values` are not an object of fields of `cls`, each of its field's type, and what the class
    itself refuses.
    """
    if not isinstance(values, dict):
        raise UserError(f"the {what} configuration is {values!r}, which is not an object of names and values")
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(set(values) - set(known)):
        raise UserError(f"the {what} configuration has the unknown name {unknown[0]!r}; {cls.__name__} has them all")
    read = {}
    for name, value in values.items():
        kind = known[name].type
        _check_type(value, known[name], f"{what}.{name}")
        read[name] = from_dict(kind, value, name) if is_dataclass(kind) else value
    missing = [f.name for f in fields(cls) if f.default is f.default_factory is MISSING and f.name not in read]
    if missing:
        raise UserError(f"the {what} configuration has no {missing[0]}; add it")
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in read.items()})


class Config:
    """What configurations share: a frozen dataclass that is written as JSON and read back.

    Errors call a `TrainConfig` train, and so on.
    """

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> Self:
        """Raise UserError where a value is missing, has an unknown name or is of the wrong type."""
        return from_dict(cls, values, cls.__name__.removesuffix("Config").lower())

    def replace(self, **changes) -> Self:
        return replace(self, **changes)


def _check_type(value, f: Field, name: str) -> None:
    """Raise UserError where a value, or a value of a dict of numbers, is not of its field's type."""
    if _valid(value, f.type):
        return
    kind = base_type(f)
    if kind is dict and isinstance(value, dict):
        _, kind = get_args(f.type)
        name, value = next((f"{name}[{key!r}]", one) for key, one in value.items() if not _valid(one, kind))
    raise UserError(f"{name} is {value!r}; it has to be {TYPE_NAMES[get_origin(kind) or kind]}")


def _valid(value, kind) -> bool:
    """Whether a value, perhaps read from JSON, is of an annotated type."""
    if isinstance(kind, UnionType):
        return any(_valid(value, one) for one in get_args(kind))
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if is_dataclass(origin):
        return isinstance(value, origin | dict)
    if origin is dict:
        return isinstance(value, dict) and all(_valid(one, inner[1]) for one in value.values() if inner)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_valid(one, inner[0]) for one in value)
    if isinstance(value, bool):
        return origin is bool
    if origin is int:
        return isinstance(value, Integral)
    if origin is float:
        return isinstance(value, Real) and abs(value) < MAX_NUMBER  # written so that NaN fails
    return type(value) is (str if origin is Literal else origin)
