"""Training configurations: defaults, refused values, and the round trip through JSON."""

import json

import pytest

from dlip.common.errors import UserError
from dlip.losses import TERMS
from dlip.training.config import TrainConfig
from dlip.training.weights import weights

AT, HR, KD, VLP = weights("at"), weights("hr"), weights("kd"), weights("vlp")


def test_defaults_are_the_papers():
    c = TrainConfig()
    assert (c.lr, c.decay, c.weight_decay, c.schedule) == (5e-4, 0.85, 0.02, "epoch") and c.learn_teacher_projection
    assert c.weights == VLP and set(VLP.values()) == {1.0}
    assert sorted([*VLP, "tags", *HR, *AT, *KD]) == sorted(TERMS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(weights={"hr.sound": 1.0}), "no loss term 'hr.sound'"),
        (dict(weights={"itc": 0.0}), "nothing to learn"),
        (dict(weights={}), "nothing to learn"),
        (dict(layers={"vision": ((-1, -1),)}), "no source 'vision'"),
        (dict(layers={"fusion": ((-1, -1, 0),)}), "give pairs"),
        (dict(layers={"fusion": ()}), "give pairs"),
        (dict(schedule="step"), "schedule is 'step'"),
        (dict(precision="int8"), "precision is 'int8'"),
        (dict(steps=0), "steps is 0"),
        (dict(batch_size=10, accumulate=4), "batch_size 10 is not divisible by 4 micro-batches"),
        (dict(epochs=0.0), "epochs is 0.0; give a number, above 0"),
        (dict(start_term_at={"lm": 1000}), "lm joins after 1000 of 1000 steps"),
        (dict(queue=64), "queue needs momentum"),
        (dict(freeze=("decoder",)), "no part 'decoder'"),
        (dict(freeze=("image", "text")), "itc trains nothing that is not frozen"),
        (dict(weights={"hr.text": 1.0}, freeze=("text",)), "hr.text trains nothing"),
        (dict(weights={"lm": 1.0}, freeze=("image",), backbone_lr=1e-3), "the image backbone is frozen too"),
        (dict(weights={"lm": 1.0}, momentum=0.9), "momentum encoders serve itc alone"),
        (dict(steps=1e3), "steps is 1000.0; it has to be a whole number"),
        (dict(precision=None), "precision is None; it has to be a string"),
        (dict(weights={"itc": "1"}), r"weights\['itc'\] is '1'; it has to be a number"),
        (dict(weights="vlp,hr"), "weights is 'vlp,hr'; it has to be an object"),
    ],
)
def test_invalid_configurations_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        TrainConfig(**changes)


def test_configurations_survive_json():
    c = TrainConfig(weights={**VLP, **HR}, layers={"image": ((5, 3), (-1, -1))}, momentum=0.995, queue=32)
    again = TrainConfig.from_dict(json.loads(json.dumps(c.to_dict())))
    assert json.dumps(again.to_dict()) == json.dumps(c.to_dict())
    assert c.replace(steps=7).steps == 7 and c.steps == 1000


def test_unknown_names_and_wrong_types_are_refused():
    with pytest.raises(UserError, match="stepz"):
        TrainConfig.from_dict({"stepz": 3})
    with pytest.raises(UserError, match=r"train\.weights is \[\]; it has to be an object"):
        TrainConfig.from_dict({"weights": []})
