"""Sentences as terminals and pages can show them."""

import pickle

from dlip.common.errors import LONGEST, UserError, number_of, one_line


def test_what_does_not_print_is_escaped():
    assert str(UserError("a\n b \x1b[31m \ud800 \u202e é 猫 📷")) == "a b \\x1b[31m \\ud800 \\u202e é 猫 📷"


def test_a_long_sentence_loses_its_middle():
    shown = one_line("there is no model " + "\0" * 5000 + "; name another")
    assert len(shown) < LONGEST + 10
    assert shown.startswith("there is no model \\x00") and shown.endswith("\\x00; name another") and " ... " in shown


def test_counts_and_their_nouns_agree():
    assert [number_of(n, "fault") for n in (0, 1, 2, 1000)] == ["0 faults", "1 fault", "2 faults", "1,000 faults"]


def test_it_survives_a_process():
    assert str(pickle.loads(pickle.dumps(UserError("a\x07b")))) == "a\\x07b"
