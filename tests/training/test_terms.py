"""What is typed of terms, and what is not understood."""

import pytest

from dlip.common.errors import UserError
from dlip.training.config import TrainConfig
from dlip.training.terms import HR, joins, layers, weights


def test_groups_and_terms_as_words():
    assert weights("hr,kd.lm=0.5") == {**HR, "kd.lm": 0.5} and set(weights("hr=5").values()) == {5.0}
    assert weights("hr,hr.text=0") == {**HR, "hr.text": 0.0} and joins("lm=30,itm=7") == {"lm": 30, "itm": 7}
    with pytest.raises(UserError, match="there is no loss term 'hrs'"):
        weights("hrs")
    with pytest.raises(UserError, match="the first step of lm is '0.5'"):
        joins("lm=0.5")


def test_layers_as_words():
    pairs = {"fusion": ((5, 1), (3, 0)), "text": ((-1, -1),)}
    assert layers("fusion=5:1+3:0,text=-1:-1") == pairs and layers("") == {}
    assert TrainConfig(layers=pairs, weights=HR).layers == pairs
    for text in ("fusion", "fusion=", "fusion=5", "fusion=5:a", "fusion=5:1+", "=5:1:2"):
        with pytest.raises(UserError, match="are no pairs of layers; give teacher:student"):
            layers(text)
    with pytest.raises(UserError, match="no source 'heads'"):
        TrainConfig(layers=layers("heads=1:0"))
