"""What visitors type and choose: every mistake names its field and its limits."""

import inspect
import typing

import gradio as gr
import pytest

from app import inputs
from app.page import build
from dlip.common.errors import UserError


@pytest.mark.parametrize("value", [None, -1, 9, float("nan"), "3", True, [3]])
def test_invalid_numbers_are_named_with_their_range(value):
    with pytest.raises(UserError, match=r"^beams is .*; choose a number from 1 to 8$"):
        inputs.integer(value, "beams", 1, 8)


def test_integers_are_rounded_down():
    assert inputs.number(0.5, "top p", 0.1, 1) == 0.5 and inputs.integer(3.0, "beams", 1, 8) == 3
    with pytest.raises(UserError, match="from 0 to 2,147,483,648"):
        inputs.integer(-1, "seed", 0, 2**31)


def test_digits_become_a_number():
    assert [inputs.digits_as_int(value) for value in ("16", 4, 2.5, None, "x", "²")] == [16, 4, 2.5, None, "x", "²"]
    assert inputs.digits_as_int("9" * 5000) == "9" * 5000  # which Python reads as no number


def test_texts_are_stripped_and_limited():
    assert inputs.text("  a\n \0 b\x7f ", "text") == "a b" and inputs.text(None, "question", optional=True) == ""
    assert inputs.text("a \ud83d b", "text") == "a ? b" and inputs.text("\U0001f600", "text") == "\U0001f600"
    with pytest.raises(UserError, match="the question is empty; type one"):
        inputs.text(" \0 ", "question")
    with pytest.raises(UserError, match="the question has 1,001 characters; shorten it to 1,000"):
        inputs.text("x" * 1001, "question", optional=True)


@pytest.fixture(scope="module")
def endpoints() -> list:
    """The functions behind the named endpoints."""
    return [one.fn for one in build().fns.values() if isinstance(one.api_name, str) and one.api_visibility == "public"]


WRONG = {
    "a text": (5, ["x"], {}), "a number": ("x", [], {"x": 1}), "true or false": ("x", [True]), "a list": ("x", 5, {}),
}  # fmt: skip


def test_arguments_of_a_wrong_type_are_one_sentence(endpoints, caplog):
    """Every field of every endpoint, one at a time, nothing in the others."""
    tried = 0
    for function in endpoints:
        hints, nothing = typing.get_type_hints(function), dict.fromkeys(inspect.signature(function).parameters)
        for name in nothing:
            kind, message = inputs.KINDS.get(inputs._plain(hints[name]), ((), None))
            for value in WRONG.get(message, ()):
                with pytest.raises(gr.Error, match=f"(?i)^.{name.replace('_', ' ')} is .*; give {message}"):
                    function(*(nothing | {name: value}).values())
                tried += 1
    assert tried > 150 and not caplog.records
