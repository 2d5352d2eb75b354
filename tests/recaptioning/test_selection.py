"""Which written captions are kept, and in what mixture with human ones."""

import pytest

from dlip.recaptioning.config import SelectionConfig
from dlip.recaptioning.selection import mix, select

WRITTEN = ["a", "", "b", "own", "a", "c"]
SCORES = [0.2, 0.9, 0.5, 0.8, 0.6, 0.4]


def test_empty_and_repeated_captions_go():
    assert select(["own"], WRITTEN, None, SelectionConfig()) == ["a", "b", "c"]
    assert select([], WRITTEN, None, SelectionConfig()) == ["a", "b", "own", "c"]


def test_the_best_are_kept():
    assert select(["own"], WRITTEN, SCORES, SelectionConfig(keep=5)) == ["b", "c", "a"]
    assert select(["own"], WRITTEN, SCORES, SelectionConfig(keep=2)) == ["b", "c"]
    assert select(["own"], WRITTEN, SCORES, SelectionConfig(threshold=0.5)) == ["b"]
    assert select(["own"], WRITTEN, SCORES, SelectionConfig(threshold=0.3, keep=1)) == ["b"]
    assert select(["own"], WRITTEN, SCORES, SelectionConfig(threshold=0.95)) == []


@pytest.mark.parametrize(
    ("human", "written", "share", "kept"),
    [
        (5, 3, None, (5, 3)), (5, 3, 0.5, (3, 3)), (3, 5, 0.5, (3, 3)), (5, 3, 0.25, (1, 3)), (5, 1, 0.25, (1, 1)),
        (2, 20, 0.1, (2, 18)), (5, 3, 0, (0, 3)), (5, 3, 1, (5, 0)), (0, 3, 0.5, (0, 3)), (5, 0, 0.5, (5, 0)),
        (5, 0, 0, (0, 0)), (1, 5, 0.9, (1, 1)),
    ],
)  # fmt: skip
def test_mixing_drops_the_last_of_one_kind(human, written, share, kept):
    humans, others = [f"h{i}" for i in range(human)], [f"w{i}" for i in range(written)]
    assert mix(humans, others, share) == (humans[: kept[0]], others[: kept[1]])
