"""The journal of written captions: it survives a crash, and refuses what was written otherwise."""

import json

import pytest

from dlip.common.errors import UserError
from dlip.recaptioning.journal import Journal

ABOUT = {"writing": {"writer": "m", "top_p": 0.9, "filter": None}, "data": {"train": "abc"}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "written.jsonl"


def test_what_was_added_is_read_again(path):
    journal = Journal(path, ABOUT)
    journal.append("train", 0, [["a", "b"], ["c", ""]], [[0.1, 0.2], [0.3, 1e-9]])
    journal.append("val", 4, [["é\u2028\n"]], None)
    for read in (journal, Journal(path, ABOUT)):
        assert read.captions == {"train": {0: ["a", "b"], 1: ["c", ""]}, "val": {4: ["é\u2028\n"]}}
        assert read.scores == {"train": {0: [0.1, 0.2], 1: [0.3, 1e-9]}}


@pytest.mark.parametrize("cut", range(1, 80, 13))
def test_a_line_cut_by_a_crash_is_written_again(path, cut):
    rows = [("train", i, [[f"caption {i}"]], None) for i in range(2)]
    for row in rows:
        Journal(path, ABOUT).append(*row)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    after = Journal(path, ABOUT)
    for row in rows:
        if row[1] not in after.captions.get("train", {}):
            after.append(*row)
    assert path.read_bytes() == whole


def test_a_journal_of_something_else_is_refused(path):
    Journal(path, ABOUT).append("train", 0, [["a"]], None)
    before = path.read_bytes()
    other = ABOUT | {"writing": ABOUT["writing"] | {"top_p": 0.5}}
    with pytest.raises(UserError, match="written with --top-p 0.9, not with --top-p 0.5; name another folder"):
        Journal(path, other)
    with pytest.raises(UserError, match="written without --filter, not with --filter t; name another folder"):
        Journal(path, ABOUT | {"writing": ABOUT["writing"] | {"filter": "t"}})
    with pytest.raises(UserError, match="holds captions of other data, or the data have changed"):
        Journal(path, ABOUT | {"data": {"train": "abd"}})
    with pytest.raises(UserError, match="of the splits train; pass these as --splits"):
        Journal(path, ABOUT | {"data": {"train": "abc", "val": "x"}})
    assert path.read_bytes() == before
    for content in ("no JSON\n", "[]\n[]\n", json.dumps(ABOUT) + '\n{"split": "train"}\n'):
        path.write_text(content)
        with pytest.raises(UserError, match="cannot be read .* name another folder"):
            Journal(path, ABOUT)


def test_other_options_may_follow_if_nothing_was_written(path):
    path.write_text(json.dumps(ABOUT) + "\n")
    Journal(path, ABOUT | {"data": {}}).append("train", 0, [["a"]], None)
    assert Journal(path, ABOUT | {"data": {}}).captions == {"train": {0: ["a"]}}
