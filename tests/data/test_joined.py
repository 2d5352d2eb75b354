"""Data sets joined by +: all images of each, mixed anew every epoch, no image id shared."""

from dataclasses import replace

import numpy as np
import pytest

from dlip import data
from dlip.common.errors import UserError
from dlip.data import sources
from dlip.data.joined import Joined
from dlip.data.scenes.dataset import Scenes
from tests.data.helpers import write_captioned, write_questioned


@pytest.fixture
def both(tmp_path) -> str:
    """Five captioned images, joined with four of as many questions."""
    return f"{write_captioned(tmp_path / 'captioned', 'ggggg')}+{write_questioned(tmp_path / 'questioned', 4)}"


def test_all_images_of_each(both):
    joined = data.open(both, "train")
    assert (joined.name, joined.split, len(joined)) == ("captioned+questioned", "train", 9)
    assert joined.counts() == {"images": 9, "captions": 5, "questions": 4}
    assert [item.captions for item in joined] == [[f"shade {i}"] for i in range(5)] + [[]] * 4
    assert [q.answers for item in joined for q in item.questions] == [[f"{i}"] for i in range(4)]
    assert len({item.image_id for item in joined}) == 9  # though names are equal
    assert [joined.without_image(i) for i in range(9)] == [replace(item, image=None) for item in joined]
    assert data.splits(both) == ["train"] and joined.fields == {"captions", "questions"}
    assert {"shade 4", "how much?"} <= set(joined.texts(5))
    for beyond in (-1, 9):
        with pytest.raises(IndexError):
            joined[beyond]


@pytest.mark.parametrize(("limit", "counts"), [(4, (2, 2)), (5, (3, 2)), (1, (1, 0)), (100, (5, 4))])
def test_a_limit_takes_an_equal_share_of_each(both, limit, counts):
    limited = data.open(both, "train", limit)
    assert limited.counts() == {"images": sum(counts), "captions": counts[0], "questions": counts[1]}
    assert limited.fields == {"captions", "questions"} if limit > 1 else {"captions"}
    assert sorted(limited.order(0, 0)) == list(range(sum(counts)))
    assert limited.fingerprint() != data.open(both, "train").fingerprint() or limit == 100
    assert not limited.verify()


def test_order_is_a_permutation_that_mixes_the_datasets():
    parts = [Scenes("val", size=300), Scenes("val", seed=1, size=100)]
    joined = Joined(parts)
    first, second = joined.order(0, 0), joined.order(0, 1)
    assert sorted(first) == sorted(second) == list(range(400)) and first != second
    assert first == joined.order(0, 0) != joined.order(1, 0)
    assert [i >= 300 for i in first] != [i >= 300 for i in second]
    assert [i - 300 for i in first if i >= 300] == parts[1].order(0, 0)  # each in its own order
    share = np.mean([np.array(first[start : start + 100]) >= 300 for start in range(0, 400, 100)], axis=1)
    assert (abs(share - 0.25) < 0.15).all()  # a quarter of every stretch is of the smaller one
    assert joined[0].tags is None  # each data set has tags of its own


def test_wrong_names(tmp_path):
    one, two = write_captioned(tmp_path / "one", "g"), write_captioned(tmp_path / "two", "g", split="val")
    (tmp_path / "empty" / "images").mkdir(parents=True)
    (tmp_path / "empty" / "vqa.json").write_text("[]")
    wrong = (f"{one}+{two}", f"scenes+{one}", tmp_path / "empty", f"{one}+", f"{one}+{one}", " ", f"{one}+{one}x")
    for name in wrong:
        with pytest.raises(UserError):
            data.open(name, "train")
            data.splits(name)


def test_plus_within_a_name(tmp_path):
    place = write_captioned(tmp_path / "c++", "gg")  # an existing folder
    for name in (str(place), f"hub:{place}?rows=2"):
        assert sources.dataset_names(name) == [name]
    assert sources.dataset_names("scenes+hub:name") == ["scenes", "hub:name"]
