"""The warning of texts that a vocabulary loses."""

import warnings

import pytest

from dlip.data.batch import Example
from dlip.data.texts import warn_of_lost_texts
from dlip.data.tokenizer import Tokenizer
from tests.helpers import ListDataset


@pytest.mark.parametrize(
    ("captions", "lost"),
    [
        (["a dog runs", "ein Mädchen"], "11% of the tokens are unknown"),
        (["a dog runs", "a dog runs a dog runs"], "50% are cut at 7 tokens"),
        (["Ä Ö Ü Ä Ö Ü"], "75% of the tokens are unknown to the vocabulary and 100% are cut"),
        (["a dog", "dogs"], None),
        ([], None),
    ],
)
def test_lost_texts_are_counted(captions, lost):
    """By hand: [CLS] and [SEP] count; of "ein Mädchen" the word with an unknown letter is one of 9 tokens."""
    words, dataset = Tokenizer.train(["a dog runs", "ein"], 100), ListDataset(Example(None, 0, [c]) for c in captions)
    with pytest.warns(UserWarning, match=lost) if lost else warnings.catch_warnings():
        warnings.simplefilter("always" if lost else "error")
        warn_of_lost_texts(dataset, words, 7)
