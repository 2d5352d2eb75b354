"""Command line options from dataclass fields (dlip/common/fields.py): flags, help lines, values, and back to words.

A field that is a dataclass itself gives its fields' flags in a group. tyro and jsonargparse were tried in its place:
they take 0.5 to 0.7 s to import, print a usage or a box for a mistake, and have no flag whose value is optional
(`--cache`).
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from dlip.common.errors import UserError
from dlip.common.fields import base_type, check_value, choices, docstrings, flag, key

METAVARS = {int: "N", float: "X"}


def comma_separated(text: str) -> tuple[str, ...]:
    """`a,b` as a tuple; in `a:x=1,y=2` the settings stay with their name. Raises UserError for an empty name."""
    names = tuple(name.strip() for name in re.split(r",(?!\w+=)", text))
    if not all(names):
        raise UserError(f"{text!r} has an empty name; put one comma between names")
    return names


def add_options(parser: argparse.ArgumentParser, cls: type, command: str, defaults: dict[str, Any], group=None) -> None:
    """Add a flag or positional argument for each field of `cls` that `command` has.

    defaults: the command's own, by `key`. group: where they go; the parser itself by default. The parser's result
    holds only what was typed.
    """
    for f in (f for f in fields(cls) if not is_dataclass(f.type) and _has(f, command)):
        _add(group or parser, f, f"{docstrings(cls)[f.name]}{_default(f, defaults)}")
    for f in (f for f in fields(cls) if is_dataclass(f.type)):
        section = parser.add_argument_group(docstrings(cls)[f.name].rstrip("."))
        add_options(parser, f.type, command, defaults, section)


def _has(f: Field, command: str) -> bool:
    return not f.metadata.get("hidden") and f.metadata.get("command", command) == command


def _default(f: Field, defaults: dict[str, Any]) -> str:
    value = defaults.get(key(f), default(f))
    if value is MISSING or f.metadata.get("required"):
        return " (required)" if not f.metadata.get("positional") else ""
    if f.metadata.get("inverse") or value is None or value is False or value == () or value == {}:
        return ""
    return f" (default: {_text(f, value)})"


def default(f: Field) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _text(f: Field, value) -> str:
    return f.metadata["show"](value) if "show" in f.metadata else str(value)


def _add(parser: argparse.ArgumentParser, f: Field, help_: str) -> None:
    about, kind, values = f.metadata, base_type(f), f.metadata.get("choices", choices(f))
    options: dict[str, Any] = {"help": help_.replace("%", "%%"), "default": argparse.SUPPRESS}
    if kind is bool:
        off = "store_false" if about.get("inverse") else "store_true"
        options["action"] = argparse.BooleanOptionalAction if about.get("negatable") else off
    else:
        options["metavar"] = about.get("metavar", None if values else METAVARS.get(kind, key(f).upper()))
        options |= {"choices": values or None, "type": about.get("parse", kind if kind in (int, float) else str)}
        if kind is tuple and "parse" not in about:
            options |= {"nargs": "*"} if about.get("positional") else {"action": "append"}
        if "const" in about:
            options |= {"nargs": "?", "const": about["const"]}
    if about.get("positional"):
        parser.add_argument(key(f), **options)
    else:
        parser.add_argument(flag(f), dest=key(f), **options)


def build(cls: type, command: str, values: dict[str, Any]):
    """`cls` from values by `key`; its fields' defaults where there are none.

    Raises UserError for a value that is missing or, by its flag, that `check_value` refuses, and what the class itself
    refuses.
    """
    found = {}
    for f in fields(cls):
        if is_dataclass(f.type):
            found[f.name] = build(f.type, command, values)
        elif key(f) in values and not f.metadata.get("hidden"):
            value = values[key(f)]
            found[f.name] = tuple(value) if isinstance(value, list) else value
            check_value(f, found[f.name], flag(f))
        elif default(f) is MISSING or (f.metadata.get("required") and _has(f, command)):
            raise UserError(f"dlip {command} needs {flag(f)}; see dlip {command} --help")
    return cls(**found)


def to_argv(options, command: str, defaults: dict[str, Any]) -> list[str]:
    """The command-line arguments from which `build` makes `options`: those that differ from the defaults."""
    return [argument for f, value in _values(options, command) for argument in _argv(f, value, defaults)]


def _values(options, command: str) -> Iterator[tuple[Field, Any]]:
    for f in fields(options):
        if is_dataclass(f.type):
            yield from _values(getattr(options, f.name), command)
        elif _has(f, command):
            yield f, getattr(options, f.name)


def _argv(f: Field, value, defaults: dict[str, Any]) -> list[str]:
    if value is None or value == defaults.get(key(f), default(f)):
        return []
    name = flag(f)
    if base_type(f) is bool:
        return [name if bool(value) != bool(f.metadata.get("inverse")) else f"--no-{name[2:]}"]
    if base_type(f) is tuple and "parse" not in f.metadata:
        texts = [str(one) for one in value]
    else:
        texts = [_text(f, value)]
    if f.metadata.get("positional"):
        return texts
    return [word for text in texts for word in ([f"{name}={text}"] if text.startswith("-") else [name, text])]
