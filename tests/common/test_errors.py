"""Messages of UserError are one printable line."""

import pickle

from dlip.common.errors import UserError, first_line


def test_unprintable_characters_are_escaped():
    assert str(UserError("a\n b \x1b[31m \ud800 \u202e é 猫 📷")) == "a b \\x1b[31m \\ud800 \\u202e é 猫 📷"


def test_it_can_be_pickled():
    assert str(pickle.loads(pickle.dumps(UserError("a\x07b")))) == "a\\x07b"


def test_first_line_of_any_message():
    assert first_line(ValueError("\n a\nb")) == "a" and first_line(ValueError(" \n")) == "ValueError"
