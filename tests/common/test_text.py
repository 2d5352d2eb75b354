"""Text as terminals and pages can show it."""

from dlip.common.text import MAX_CHARACTERS, one_line, plural


def test_a_long_text_loses_its_middle():
    line = one_line("there is no model " + "\0" * 5000 + "; name another")
    assert len(line) < MAX_CHARACTERS + 10
    assert line.startswith("there is no model \\x00") and line.endswith("\\x00; name another") and " ... " in line


def test_counts_and_their_nouns_agree():
    assert [plural(n, "fault") for n in (0, 1, 2, 1000)] == ["0 faults", "1 fault", "2 faults", "1,000 faults"]
