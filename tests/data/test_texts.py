"""Texts of a data set, and the warning of those that a vocabulary loses."""

import warnings

import pytest

from dlip import data
from dlip.data.batch import Example
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes
from dlip.data.texts import warn_of_lost_texts
from dlip.data.tokenizer import Tokenizer
from tests.helpers import ListDataset


def test_texts_of_a_limited_dataset_are_those_of_its_images(tmp_path):
    write_folder(tmp_path / "set", {"train": Scenes("train-small", size=6)})
    write_folder(tmp_path / "more", {"train": Scenes("train-small", size=6)})
    for name in (str(tmp_path / "set"), f"{tmp_path / 'set'}+{tmp_path / 'more'}"):
        some = data.open(name, "train", limit=2)
        assert list(some.texts(6)) == [text for i in range(2) for text in ListDataset([some[i]]).texts(1)]


def captioned(*captions: str) -> ListDataset:
    """A dataset of images with one caption each."""
    return ListDataset(Example(None, 0, [caption]) for caption in captions)


@pytest.mark.parametrize(
    ("captions", "lost"),
    [
        (["a dog runs", "ein Mädchen"], "of mine 11% of the tokens are unknown to the vocabulary, so"),
        (["a dog runs", "a dog runs a dog runs"], "of mine 50% are cut at 7 tokens, so"),
        (["Ä Ö Ü Ä Ö Ü"], "75% of the tokens are unknown to the vocabulary and 100% are cut at 7 tokens, so"),
    ],
)
def test_lost_texts_are_counted(captions, lost):
    """By hand: [CLS] and [SEP] count; of "ein Mädchen" the word with an unknown letter is one of 9 tokens."""
    words = Tokenizer.train(["a dog runs", "ein"], 100)
    with pytest.warns(UserWarning, match=lost):
        warn_of_lost_texts(captioned(*captions), words, 7)


def test_known_texts_give_no_warning():
    words = Tokenizer.train(["a dog runs"], 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_lost_texts(captioned("a dog", "dogs"), words, 7)
        warn_of_lost_texts(captioned(), words, 7)
