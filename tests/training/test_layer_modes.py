"""Layers computed again keep less, compiled ones run: losses and gradients are the same."""

from functools import partial

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.training.config import TrainConfig
from dlip.training.layer_modes import can_compile, set_layer_modes
from dlip.training.learner import Learner
from dlip.training.loop import train
from dlip.training.teacher import Teacher
from dlip.training.weights import weights
from dlip.vlm import VLM

AT, HR, KD, VLP = weights("at"), weights("hr"), weights("kd"), weights("vlp")

DROPOUT = dict(dropout=0.1, image_layers=4, text_layers=4)


def learn(learner: Learner, teacher: VLM, batch) -> tuple[dict, dict, int]:
    """Losses, gradients, and the numbers kept for backward."""
    kept, mine = {}, {p.data_ptr() for p in learner.parameters()}

    def keep(x):
        if x.data_ptr() not in mine:
            kept[x.data_ptr()] = x.numel()
        return x

    torch.manual_seed(1)
    learner.zero_grad()
    with saved_tensors_hooks(keep, lambda x: x):
        losses = learner(batch, Teacher(teacher.med), 0, 1.0)
    numbers = sum(kept.values())
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}, numbers


@pytest.mark.parametrize("terms", [VLP, {**VLP, **HR, **AT, **KD}])
def test_losses_and_gradients_stay_the_same(terms, make_med, make_batch):
    """With dropout, whose choices are made again, and with maps, which layers hand out."""
    student, teacher, batch = VLM(make_med(1, **DROPOUT), None), VLM(make_med(0), None), make_batch()
    learner = Learner(student, teacher if "hr.text" in terms else None, TrainConfig(weights=terms)).train()
    plain = learn(learner, teacher, batch)
    set_layer_modes(student.med, recomputed=True)
    less = learn(learner, teacher, batch)
    assert plain[0] == less[0] and plain[1].keys() == less[1].keys()
    for name, gradient in plain[1].items():
        torch.testing.assert_close(less[1][name], gradient, msg=name)
    assert less[2] < 0.6 * plain[2]
    set_layer_modes(student.med)
    assert learn(learner, teacher, batch)[2] == plain[2]


def test_layer_modes_do_not_change_a_run(tiny, tmp_path):
    config, rows = TrainConfig(steps=2, batch_size=4, warmup=1, log_every=1), []
    for on in (False, True):
        torch.manual_seed(0)
        student = VLM(type(tiny.med)(tiny.med.config), tiny.tokenizer)
        wrapped = []
        done = train(
            student, Scenes("train-small", size=8), config.replace(gradient_checkpointing=on), tmp_path / f"{on}",
            progress=False, on_row=lambda row, med=student.med, seen=wrapped: seen.append(
                any("forward" in vars(module) for module in med.modules())
            ),
        )  # fmt: skip
        assert set(wrapped) == {on}
        rows.append(done.losses())
        assert not any("forward" in vars(module) for module in student.med.modules())
    assert rows[0] == rows[1]


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="g++ is not installed")
@pytest.mark.parametrize(
    ("backend", "terms"), [("inductor", {"itc": 1.0}), ("aot_eager", {**VLP, **HR, **AT, **KD})], ids=["g++", "traced"]
)
def test_compiled_layers_have_the_same_gradients(backend, terms, make_med, make_batch, monkeypatch):
    """With g++, which takes long, for a few layers; for all terms what is traced is run without it."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    student, teacher, batch = VLM(make_med(1), None), VLM(make_med(0), None), make_batch()
    learner = Learner(student, teacher if "hr.text" in terms else None, TrainConfig(weights=terms)).train()
    plain = learn(learner, teacher, batch)
    for recomputed in (False, True):
        set_layer_modes(student.med, recomputed, compiled=True)
        assert "forward" in vars(student.med.vision_model.encoder.layers[0])
        mine = learn(learner, teacher, batch)
        for one, other in zip(plain[:2], mine[:2], strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_no_layer_is_compiled_too_often(make_med, make_batch, monkeypatch):
    """torch.compile would warn, and run the text attention uncompiled from then on."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr("dlip.training.layer_modes.can_compile", lambda: True)
    torch.compiler.reset()
    student, teacher, batch = VLM(make_med(1), None), VLM(make_med(0), None), make_batch()
    frozen = Teacher(teacher.med)
    learner = Learner(student, teacher, TrainConfig(weights={**VLP, **HR, **AT, **KD})).train()
    for model in (student.med, frozen):
        set_layer_modes(model, compiled=True)
    monkeypatch.setattr(torch.compiler.config, "fail_on_recompile_limit_hit", True)
    sum(learner(batch, frozen, 0, 1.0).values()).backward()


def test_compile_without_a_compiler_is_refused(make_med, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a C.. compiler"):
        set_layer_modes(make_med(), compiled=True)
