"""Command line options from dataclasses, and back to words."""

import argparse
from dataclasses import dataclass

import pytest

from dlip.common.errors import UserError
from dlip.common.fields import option
from dlip.common.options import add_options, build, comma_separated, to_argv


@dataclass(frozen=True)
class Inner:
    limit: int | None = None
    """Images."""
    project: bool = option(True, flag="fixed", inverse=True)
    """Learn a projection."""


@dataclass(frozen=True)
class Options:
    source: str = option(positional=True)
    """Where to read."""
    out: str = option()
    """Where to write."""
    only: tuple[str, ...] = ()
    """Rows."""
    tasks: tuple[str, ...] = option(("a", "b"), parse=comma_separated, show=",".join)
    """Tasks."""
    cache: str | None = option(None, const="there", command="one")
    """Cache."""
    crop: bool = option(False, negatable=True)
    """Crop 10% of images."""
    hidden: int = option(3, hidden=True)
    inner: Inner = Inner()
    """Inner options."""


def parse(text: str, command: str = "one", defaults: dict | None = None) -> Options:
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_options(parser, Options, command, defaults or {})
    return build(Options, command, (defaults or {}) | vars(parser.parse_args(text.split())))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("s --out o", Options("s", "o")),
        ("s --out o --only a --only b --tasks b", Options("s", "o", ("a", "b"), ("b",))),
        ("s --out o --cache --crop", Options("s", "o", cache="there", crop=True)),
        ("s --out o --cache here --limit 4 --fixed", Options("s", "o", cache="here", inner=Inner(4, False))),
        ("s --out=-o", Options("s", "-o")),
    ],
)
def test_words_and_options_are_each_others_inverse(text, options):
    assert parse(text) == options
    assert parse(" ".join(to_argv(options, "one", {}))) == options


def test_a_commands_defaults_are_below_what_was_typed():
    assert parse("s --out o", defaults={"limit": 5}).inner.limit == 5
    assert parse("s --out o --limit 6", defaults={"limit": 5}).inner.limit == 6
    assert parse("s --out o --no-crop", defaults={"crop": True}) == Options("s", "o")
    assert to_argv(Options("s", "o"), "one", {"crop": True}) == ["s", "--out", "o", "--no-crop"]


def test_missing_and_foreign_options_are_refused():
    with pytest.raises(UserError, match="dlip one needs --out; see dlip one --help"):
        parse("s")
    with pytest.raises(SystemExit):
        parse("s --out o --cache", command="two")
    with pytest.raises(UserError, match="'a,,b' has an empty name"):
        comma_separated("a,,b")
    assert comma_separated("a.pth:image_heads=4,text_heads=4, b") == ("a.pth:image_heads=4,text_heads=4", "b")


def test_errors_name_options_as_they_are_typed():
    for values, name in ((("", "o"), "SOURCE"), (("s", ""), "--out")):
        with pytest.raises(UserError, match=f"^{name} is empty"):
            build(Options, "one", dict(zip(("source", "out"), values, strict=True)))


def test_help_has_each_fields_docstring_and_default(capsys):
    parser = argparse.ArgumentParser()
    add_options(parser, Options, "one", {})
    text = parser.format_help()
    for line in ("Where to write. (required)", "Tasks. (default: a,b)", "Crop 10% of images.", "Inner options:"):
        assert line in text
    assert "--hidden" not in text and "--fixed" in text
