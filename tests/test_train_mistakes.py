"""Runs that go wrong: numbers that are none, what does not fit, folders of others, damaged checkpoints."""

from dataclasses import replace

import pytest
import torch
from test_train import PICTURES, SHORT, log

from dlip.checkpoints import read_tensors
from dlip.config import HR, VLP
from dlip.data.scenes import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.errors import UserError
from dlip.train import Learner, train
from dlip.vlm import VLM


def test_a_loss_that_is_no_number_stops_the_run(make_vlm, tmp_path):
    student = make_vlm()
    student.med.text_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="itc is no finite number in step 0"):
        train(student, PICTURES, SHORT.replace(weights={"itc": 1.0, "lm": 1.0}), tmp_path, progress=False)
    assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / "model.safetensors").exists()


class Spoilt:
    """Losses of which one, or its gradient, is no number in the steps that are named; put in for Learner's."""

    def __init__(self, monkeypatch, steps: set[int], term: str, gradient: bool):
        self.steps, self.term, self.gradient = steps, term, gradient
        plain = Learner.forward
        monkeypatch.setattr(Learner, "forward", lambda *inputs: self.spoil(inputs[3], plain(*inputs)))

    def spoil(self, step: int, losses: dict) -> dict:
        if step in self.steps:
            loss = losses[self.term]
            losses[self.term] = NoGradient.apply(loss) if self.gradient else loss * float("nan")
        return losses


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")


@pytest.mark.parametrize(("gradient", "says"), [(False, "lm is no"), (True, "the gradient of lm is no")])
def test_a_gradient_that_is_no_number_stops_the_run_in_its_step(gradient, says, make_vlm, tmp_path, monkeypatch):
    Spoilt(monkeypatch, {4}, "lm", gradient)
    config = SHORT.replace(weights={"itc": 1.0, "lm": 1.0}, save_every=2)
    with pytest.raises(UserError, match=f"^{says} finite number in step 4; .* --nonfinite skip"):
        train(make_vlm(), PICTURES, config, tmp_path, progress=False)
    last = read_tensors(tmp_path / "checkpoint-00000004.safetensors")[0]  # stands as it was
    assert all(tensor.isfinite().all() for tensor in last.values())


def test_a_temperature_without_a_gradient_stops_the_run_too(make_vlm, tmp_path):
    student = make_vlm()
    student.med.temp.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="^the gradient of itc is no finite number in step 0"):
        train(student, PICTURES, SHORT.replace(weights={"itc": 1.0, "lm": 1.0}), tmp_path, progress=False)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_are_left_out(gradient, accumulate, make_vlm, tmp_path, monkeypatch):
    """A run without the step's update; its log counts the others alone."""
    config = SHORT.replace(
        weights={"itc": 1.0, "lm": 1.0}, momentum=0.9, queue=12, nonfinite="skip", accumulate=accumulate, save_every=4
    )
    Spoilt(monkeypatch, {3}, "lm", gradient)
    with pytest.warns(UserWarning, match="lm is no finite number in step 3; the step is left out"):
        run = train(make_vlm(1), PICTURES, config, tmp_path / "skipped", progress=False)
    monkeypatch.undo()
    whole = train(make_vlm(1), PICTURES, config, tmp_path / "whole", progress=False)
    ours, theirs = ({row["step"]: row["losses"] for row in some.rows()} for some in (run, whole))
    assert ours[3] == theirs[3] and 4 not in ours and ours[6] != theirs[6]
    kept = {step: read_tensors(run.folder / f"checkpoint-0000000{step}.safetensors")[0] for step in (4, 6)}
    assert all(tensor.isfinite().all() for tensor in kept[6].values())
    assert kept[4]["learner.momentum.place"] == 3 * config.batch_size % 12


class Bare(Scenes):
    """Scenes that lack captions, questions or tags."""

    def __init__(self, lacks: str):
        super().__init__("val", size=8)
        self.lacks = lacks

    def __getitem__(self, i: int):
        return replace(super().__getitem__(i), **{self.lacks: []})

    def counts(self) -> dict[str, int]:
        return super().counts() | ({self.lacks: 0} if self.lacks != "tags" else {})


@pytest.mark.parametrize(
    ("dataset", "changes", "says"),
    [
        (PICTURES, dict(weights={"itc": 1.0, "hr.text": 1.0}), "hr.text needs a teacher"),
        (PICTURES, dict(batch_size=25), "24 pictures, fewer than a batch of 25"),
        (Bare("captions"), dict(weights={"lm": 1.0}), "lm needs captions"),
        (Bare("questions"), dict(weights={"vqa": 1.0}), "vqa needs questions"),
        (Bare("tags"), dict(weights={"tags": 1.0}), "tags needs tags"),
    ],
)
def test_what_does_not_fit_is_named(dataset, changes, says, make_vlm, tmp_path):
    with pytest.raises(UserError, match=says):
        train(make_vlm(), dataset, SHORT.replace(**changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("teacher", "changes", "says"),
    [
        ({}, dict(weights=VLP), "no term of hr"),
        (dict(prompt_ids=(9, 10)), dict(weights={"kd.lm": 1.0}), "different prompts"),
        ({}, dict(weights={"hr.text": 1.0}, layers={"text": ((2, 0),)}), "text has no states of layer 2"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher, changes, says, make_vlm, tmp_path):
    with pytest.raises(UserError, match=says):
        train(
            make_vlm(),
            PICTURES,
            SHORT.replace(**changes),
            tmp_path / "run",
            make_vlm(0, **teacher),
            progress=False,
        )
    assert not (tmp_path / "run").exists()


def test_other_vocabularies_are_refused(make_vlm, tmp_path):
    teacher, other = make_vlm(0), Tokenizer.train(["other words"], 100)
    with pytest.raises(UserError, match="different vocabularies"):
        train(make_vlm(), PICTURES, SHORT.replace(weights=HR), tmp_path, VLM(teacher.med, other), progress=False)


def test_a_folder_of_another_run_is_refused(make_vlm, tmp_path):
    train(make_vlm(), PICTURES, SHORT.replace(steps=1), tmp_path, about={"data": "scenes"}, progress=False)
    before = (tmp_path / "run.json").read_text()
    others = [
        (make_vlm(), SHORT.replace(steps=2), {"data": "scenes"}, "another train"),
        (make_vlm(embed_dim=8), SHORT.replace(steps=1), {"data": "scenes"}, "another model"),
        (make_vlm(), SHORT.replace(steps=1), {"data": "photos"}, "another data"),
        (make_vlm(), SHORT.replace(steps=1), {}, "another data"),
    ]
    for student, config, about, says in others:
        with pytest.raises(UserError, match=says):
            train(student, PICTURES, config, tmp_path, about=about, progress=False)
    assert (tmp_path / "run.json").read_text() == before


def cut(content: bytes) -> bytes:
    return content[:2000]


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.filterwarnings("ignore:.*the run goes on from what was kept before")  # of all but the last
@pytest.mark.parametrize("spoil", [cut, flipped])
@pytest.mark.parametrize("which", ["the last", "all"])
def test_a_damaged_checkpoint_is_left_aside_for_the_one_before(spoil, which, make_vlm, tmp_path):
    whole = train(make_vlm(), PICTURES, SHORT, tmp_path / "whole", progress=False)
    run = train(make_vlm(), PICTURES, SHORT, tmp_path / "run", progress=False)
    paths = sorted(run.folder.glob("checkpoint-*"))[-1 if which == "the last" else 0 :]
    for path in paths:
        path.write_bytes(spoil(path.read_bytes()))
    half = run.folder / ".checkpoint-00000006.safetensors.0123abcd"  # of a process that was killed
    half.touch()
    with pytest.warns(UserWarning, match=f"{paths[-1].name}.*; the run goes on from what was kept before"):
        again = train(make_vlm(), PICTURES, SHORT, tmp_path / "run", progress=False)
    assert log(again) == log(whole) and not half.exists()
    assert (run.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    assert sorted(path.name for path in run.folder.glob("damaged-*")) == [f"damaged-{path.name}" for path in paths]
