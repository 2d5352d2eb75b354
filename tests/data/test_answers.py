"""Answers as VQA v2's evaluation normalizes them."""

import pytest

from dlip.data.answers import normalize


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("  A  Dog\n", "dog"),
        ("two", "2"),
        ("None", "0"),
        ("Ten o'clock", "10 o'clock"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("twas", "'twas"),
        ("ow's'at", "'ow's'at"),
        ("yall'd've", "y'all'd've"),
        ("girl's", "girl's"),
        ("t-shirt", "t shirt"),
        ("black/white", "black white"),
        ("red, white", "red white"),
        ("what?", "what"),
        ("100,978", "100978"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("3.5", "3.5"),
        ("3. 5", "3 5"),
        ("mt. fuji", "mt fuji"),
        ("u.s.a", "usa"),
        (".5", ".5"),
    ],
)
def test_normalization(answer, expected):
    """By the published rules, and their program where the rules are silent (spaces beside punctuation)."""
    assert normalize(answer) == expected
