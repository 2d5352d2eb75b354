"""What visitors type and choose: every mistake names its field and its limits."""

import pytest

from app import inputs
from dlip.errors import UserError


@pytest.mark.parametrize("value", [None, -1, 9, float("nan"), "3", True, [3]])
def test_a_number_that_cannot_be_is_named_with_its_limits(value):
    with pytest.raises(UserError, match=r"^beams is .*; choose a number from 1 to 8$"):
        inputs.whole(value, "beams", 1, 8)


def test_numbers_keep_their_fraction_unless_they_are_whole():
    assert inputs.number(0.5, "top p", 0.1, 1) == 0.5 and inputs.whole(3.0, "beams", 1, 8) == 3
    with pytest.raises(UserError, match="from 0 to 2,147,483,648"):
        inputs.whole(-1, "seed", 0, 2**31)


def test_texts_are_trimmed_and_bounded():
    assert inputs.text("  a\n \0 b\x7f ", "text") == "a b" and inputs.text(None, "question", optional=True) == ""
    with pytest.raises(UserError, match="the question is empty; type one"):
        inputs.text(" \0 ", "question")
    with pytest.raises(UserError, match="the question has 1,001 characters; shorten it to 1,000"):
        inputs.text("x" * 1001, "question", optional=True)
