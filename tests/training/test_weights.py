"""Loss terms as text."""

import pytest

from dlip.common.errors import UserError
from dlip.training.config import TrainConfig
from dlip.training.weights import (
    describe_terms,
    distills,
    layers,
    layers_text,
    starts,
    terms_table,
    terms_text,
    trained_abilities,
    weights,
)
from tests.helpers import ROOT

VLP, HR, AT, KD = (weights(group) for group in ("vlp", "hr", "at", "kd"))


def test_groups_and_terms_as_text():
    assert weights("vlp,hr,at,kd") == {**VLP, **HR, **AT, **KD} and weights("itm=0") == {"itm": 0.0}
    assert weights("hr,kd.lm=0.5") == {**HR, "kd.lm": 0.5} and set(weights("hr=5").values()) == {5.0}
    assert weights("hr,hr.text=0") == {**HR, "hr.text": 0.0} and starts("lm=30,itm=7") == {"lm": 30, "itm": 7}
    with pytest.raises(UserError, match="there is no loss term 'hrs'"):
        weights("hrs")
    with pytest.raises(UserError, match="the first step of lm is '0.5'"):
        starts("lm=0.5")
    with pytest.raises(UserError, match="the weight of itc is 'much'"):
        weights("itc=much")


@pytest.mark.parametrize(
    "text", ["vlp,hr=5,kd.lm=0.5", "lm,itc,hr.text=0", "vlp=400,hr.image=0,kd=800", "itc,itm,lm,vqa=2,at", ""]
)
def test_text_is_the_inverse_and_keeps_the_order(text):
    read = starts if "400" in text else weights
    assert terms_text(read(text)) == text and list(read(terms_text(read(text)))) == list(read(text))


def test_trained_abilities():
    assert trained_abilities(weights("itc,kd.lm,hr")) == {"itc", "lm"}
    assert trained_abilities(weights("hr,at")) == {*VLP}  # as the paper's AT+HR
    assert distills(weights("itc,hr.text,at.self=0")) == ["hr.text"]


def test_layers_as_text():
    pairs = {"fusion": ((5, 1), (3, 0)), "text": ((-1, -1),)}
    assert layers("fusion=5:1+3:0,text=-1:-1") == pairs and layers("") == {} and layers(layers_text(pairs)) == pairs
    assert TrainConfig(layers=pairs, weights=HR).layers == pairs
    for text in ("fusion", "fusion=", "fusion=5", "fusion=5:a", "fusion=5:1+", "=5:1:2"):
        with pytest.raises(UserError, match="are not teacher:student pairs"):
            layers(text)
    with pytest.raises(UserError, match="no source 'heads'"):
        TrainConfig(layers=layers("heads=1:0"))


def test_the_docs_table_is_made_from_the_classes():
    assert terms_table() in (ROOT / "docs" / "training.md").read_text()
    assert all(needs and what for _, _, needs, what in describe_terms())


def test_unknown_term_names_the_nearest():
    with pytest.raises(UserError, match="hr.image"):
        weights({"vlp": 1, "hr.imag": 2})
