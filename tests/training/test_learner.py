import pytest
import torch

from dlip.training.loop import train
from tests.training.helpers import SHORT, TRAIN_SCENES


def state(vlm) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in vlm.med.state_dict().items()}


@pytest.mark.parametrize("tied", [True, False])
def test_retrieval_by_itc_stays_when_image_and_text_are_frozen(tied, make_vlm, tmp_path):
    vlm = make_vlm(1, tie_decoder=tied)
    texts, images, before = ["a red circle", "two stars"], [TRAIN_SCENES[i].image for i in range(2)], state(vlm)
    similarity = vlm.similarity(images, texts)
    config = SHORT.replace(freeze=("image", "text"), weights={"itm": 1.0, "lm": 1.0, "vqa": 1.0})
    trained = train(vlm, TRAIN_SCENES, config, tmp_path, progress=False).model()
    assert torch.equal(trained.similarity(images, texts), similarity)
    changed = {name for name, value in state(trained).items() if not torch.equal(value, before[name])}
    for part in ("crossattention.self.query", "itm_head", "text_decoder.bert.encoder.layer.0.attention", "cls.pred"):
        assert any(part in name for name in changed), part


@pytest.mark.parametrize(("frozen", "part"), [("image", "vision_"), ("text", "text_")])
def test_one_frozen_part_leaves_the_other_in_training(frozen, part, make_vlm, tmp_path):
    vlm = make_vlm(1)
    before = state(vlm)
    trained = train(
        vlm, TRAIN_SCENES, SHORT.replace(freeze=(frozen,), weights={"itc": 1.0}), tmp_path, progress=False
    ).model()
    changed = {name for name, value in state(trained).items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith(part) for name in changed)


def test_a_student_in_eval_mode_is_trained_with_dropout(make_vlm, tmp_path):
    losses = []
    for training in (True, False):
        student = make_vlm(1, dropout=0.3)
        student.med.train(training)
        config = SHORT.replace(steps=2, weights={"lm": 1.0})
        run = train(student, TRAIN_SCENES, config, tmp_path / str(training), progress=False)
        losses.append(run.losses()["lm"])
    assert losses[0] == losses[1]
