"""An optimizer step: its rate, what decays, what is clipped, and numbers that are none."""

import math
from itertools import chain

import pytest
import torch

from dlip.checkpoints.tensors import read_tensors
from dlip.common.errors import UserError
from dlip.losses.contrastive import MomentumITC
from dlip.training.config import TrainConfig
from dlip.training.learner import Learner
from dlip.training.loop import train
from dlip.training.optimizer import learning_rate, make_optimizer
from dlip.training.weights import weights
from dlip.vlm import VLM
from tests.training.helpers import SHORT, TRAIN_SCENES, InterruptedDataset, force_fp16_scaler, untimed_rows

HR, VLP = weights("hr"), weights("vlp")


def test_learning_rates_by_hand():
    epoch = TrainConfig(lr=1.0, warmup=4, decay=0.5, steps=12)
    rates = [learning_rate(step, epoch, steps_per_epoch=3) for step in range(12)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    rates = [
        learning_rate(step, epoch.replace(warmup=2), steps_per_epoch=3) for step in range(9)
    ]  # within the first epoch
    assert rates == [0.5, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    cosine = epoch.replace(schedule="cosine")
    rates = [learning_rate(step, cosine, steps_per_epoch=3) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and rates[8] == pytest.approx(0.5)
    assert rates[6] == pytest.approx((1 + math.cos(math.pi / 4)) / 2) and rates[12] == pytest.approx(0)


def test_the_loop_follows_the_schedule(make_vlm, tmp_path):
    """Three steps an epoch; two of warm-up; log rows state rate and epoch."""
    rows = untimed_rows(train(make_vlm(), TRAIN_SCENES, SHORT.replace(decay=0.5), tmp_path, progress=False))
    assert [row["lr"] for row in rows] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4])
    assert [row["epoch"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-3)
    rows = untimed_rows(
        train(make_vlm(), TRAIN_SCENES, SHORT.replace(decay=0.5, accumulate=2), tmp_path / "two", progress=False)
    )
    assert [row["epoch"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-3)


def test_only_the_forward_pass_runs_under_autocast(make_vlm, tmp_path):
    vlm, halved = make_vlm(), []
    vlm.med.register_forward_hook(lambda *_: halved.append(torch.is_autocast_enabled("cpu")))
    vlm.med.temp.register_hook(lambda _: halved.append(torch.is_autocast_enabled("cpu")))
    train(vlm, TRAIN_SCENES, SHORT.replace(steps=1, warmup=0, precision="bf16"), tmp_path, progress=False)
    assert halved == [True, False]


def test_only_matrices_have_weight_decay(make_vlm):
    learner = Learner(make_vlm(), None, SHORT.replace(momentum=0.9, queue=4))
    adamw = make_optimizer(learner, SHORT)
    names = {id(p): name for name, p in learner.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in adamw.param_groups)
    assert (adamw.param_groups[0]["weight_decay"], adamw.param_groups[1]["weight_decay"]) == (0.02, 0.0)
    assert {group["betas"] for group in adamw.param_groups} == {(0.9, 0.98)}
    assert "med.temp" in plain and "med.vision_model.embeddings.class_embedding" in plain
    assert all(name.endswith(("bias", "norm1.weight", "norm2.weight", "layernorm.weight", "LayerNorm.weight"))
               for name in plain if not name.endswith(("temp", "class_embedding")))  # fmt: skip
    assert all(name.endswith(("weight", "position_embedding")) for name in decayed)
    assert not any(".momentum." in name for name in (*decayed, *plain))
    assert {*decayed, *plain} == {name for name in names.values() if ".momentum." not in name}


def test_muon_steps_the_matrices_of_the_layers(make_vlm):
    """Each once, though the tied decoder shares some; the paper's recipes keep AdamW."""
    config = SHORT.replace(weights={**VLP, **HR, "tags": 1.0}, optimizer="muon", lr=1e-3)
    learner = Learner(make_vlm(1), make_vlm(0), config, tags=4)
    muon = make_optimizer(learner, config)
    names = {id(p): name for name, p in learner.named_parameters()}
    assert [group["weight_decay"] for group in muon.param_groups] == [0.02, 0.02, 0.0]
    first, *rest = ([names[id(p)] for p in group["params"]] for group in muon.param_groups)
    assert all("encoder.layer" in name and name.endswith("weight") and "orm" not in name for name in first)
    assert not [name for group in rest for name in group if name in first]
    assert sorted([*first, *chain(*rest)]) == sorted(names.values())
    one_layer = ["attention.self.query", "attention.output.dense", "crossattention.self.value", "output.dense"]
    assert {f"med.text_encoder.encoder.layer.0.{part}.weight" for part in one_layer} <= {*first}
    others = ["text_encoder.embeddings.word_embeddings", "vision_model.embeddings.patch_embedding", "vision_proj"]
    assert {f"med.{name}.weight" for name in [*others, "itm_head"]} | {"terms.tags.head.weight"} <= {*chain(*rest)}
    assert type(make_optimizer(learner, config.replace(optimizer="adamw"))) is torch.optim.AdamW


@pytest.mark.parametrize("clip", [1.0, 1e-14])
def test_gradients_are_clipped_before_the_step(clip, make_vlm, tmp_path):
    """So short a gradient drowns in AdamW's epsilon, and all weights stay but the temperature, which is not clipped.
    The log states the norm before clipping."""
    student, before = make_vlm(1), make_vlm(1)
    config = SHORT.replace(steps=2, clip=clip, weight_decay=0.0, warmup=0)
    (row, _) = untimed_rows(train(student, TRAIN_SCENES, config, tmp_path, progress=False))
    pairs = zip(student.med.parameters(), before.med.parameters(), strict=True)
    assert (max((a - b).abs().max().item() for a, b in pairs if a.ndim) < 1e-7) == (clip < 1)
    assert row["norm"] > 0.1 and abs(student.med.temp.item() - 0.07) > 1e-4


@pytest.mark.parametrize(("start", "end"), [(1e-4, 1e-3), (0.9, 0.5)])
def test_temperature_stays_within_bounds(start, end, make_vlm, tmp_path):
    student = make_vlm(1)
    student.med.temp.data.fill_(start)
    train(student, TRAIN_SCENES, SHORT.replace(steps=1, lr=1e-9), tmp_path, progress=False)
    assert student.med.temp.item() == pytest.approx(end)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_alpha_rises_with_epochs(accumulate, make_vlm, tmp_path, monkeypatch):
    epochs, forward = [], MomentumITC.forward

    def listen(self, features, med, batch, progress):
        epochs.append(progress)
        return forward(self, features, med, batch, progress)

    monkeypatch.setattr(MomentumITC, "forward", listen)
    config = SHORT.replace(accumulate=accumulate, momentum=0.9, weights={"itc": 1.0})
    train(make_vlm(), TRAIN_SCENES, config, tmp_path, progress=False)
    assert epochs[::accumulate] == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3]) and len(epochs) == 6 * accumulate


# --- numbers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["lm", "itm"])
def test_nonfinite_loss_stops_the_run(other, make_vlm, tmp_path):
    """Nor do hard negatives of such a similarity: they are drawn before the loss is looked at."""
    student = make_vlm()
    student.med.text_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="non-finite in step 1: itc"):
        train(student, TRAIN_SCENES, SHORT.replace(weights={"itc": 1.0, other: 1.0}), tmp_path, progress=False)
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


@pytest.mark.parametrize(("gradient", "says"), [(False, "lm"), (True, "the gradient of lm")])
def test_nonfinite_gradient_stops_the_run(gradient, says, make_vlm, tmp_path, monkeypatch):
    Spoilt(monkeypatch, {4}, "lm", gradient)
    config = SHORT.replace(weights={"itc": 1.0, "lm": 1.0}, save_every=2)
    with pytest.raises(UserError, match=f"^non-finite in step 5: {says}; .* --nonfinite skip"):
        train(make_vlm(), TRAIN_SCENES, config, tmp_path, progress=False)
    last = read_tensors(tmp_path / "checkpoint-00000004.safetensors")[0]  # stands as it was
    assert all(tensor.isfinite().all() for tensor in last.values())


def test_nonfinite_gradient_of_an_earlier_micro_batch_is_named(make_vlm, tmp_path, monkeypatch):
    plain, bad = Learner.forward, []

    def forward(learner, batch, teacher, step, epoch):
        losses = plain(learner, batch, teacher, step, epoch)
        bad[:] = bad or [batch.image_id[0]]
        return losses | ({"lm": NoGradient.apply(losses["lm"])} if batch.image_id[0] == bad[0] else {})

    monkeypatch.setattr(Learner, "forward", forward)
    config = SHORT.replace(weights={"itc": 1.0, "lm": 1.0}, accumulate=2)
    with pytest.raises(UserError, match="^non-finite in step 1: the gradient of lm"):
        train(make_vlm(), TRAIN_SCENES, config, tmp_path, progress=False)


def test_nonfinite_gradient_at_the_lowest_fp16_scale_stops_the_run(make_vlm, tmp_path, monkeypatch):
    """Above a scale of 1 it may be an overflow, which the scaler answers by a smaller one."""
    force_fp16_scaler(monkeypatch, 4.0, 0.5)
    Spoilt(monkeypatch, set(range(6)), "lm", gradient=True)
    config = SHORT.replace(weights={"itc": 1.0, "lm": 1.0}, precision="fp16")
    with pytest.raises(UserError, match="^non-finite in step 4: the gradient of lm"):
        train(make_vlm(), TRAIN_SCENES, config, tmp_path, progress=False)


@pytest.mark.parametrize("gradient", [False, True])
def test_skipped_steps_in_fp16(gradient, make_vlm, tmp_path, monkeypatch):
    force_fp16_scaler(monkeypatch, 2.0**-8, 0.5)
    Spoilt(monkeypatch, {3}, "lm", gradient)
    config = SHORT.replace(weights={"itc": 1.0, "lm": 1.0}, precision="fp16", nonfinite="skip")
    with pytest.warns(UserWarning, match="non-finite in step 4: .*lm; the step is skipped"):
        run = train(make_vlm(1), TRAIN_SCENES, config, tmp_path, progress=False)
    assert [(row["step"], "skipped" in row) for row in run.rows()] == [(i, i == 4) for i in range(1, 7)]


def test_nonfinite_temperature_gradient_stops_the_run(make_vlm, tmp_path):
    student = make_vlm()
    student.med.temp.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match="^non-finite in step 1: the gradient of itc"):
        train(student, TRAIN_SCENES, SHORT.replace(weights={"itc": 1.0, "lm": 1.0}), tmp_path, progress=False)


def test_nonfinite_weights_are_not_saved(make_vlm, tmp_path):
    """Whatever made them so: the checkpoint before stands, and the run goes on from it."""

    def spoil(student):
        student.med.text_proj.weight.data[0, 0] = float("nan")
        return {}

    config = SHORT.replace(save_every=1, eval_every=3, nonfinite="skip")
    with pytest.raises(UserError, match="med.text_proj.weight is non-finite after 3 steps; lower"):
        train(make_vlm(), TRAIN_SCENES, config, tmp_path, evaluate=spoil, progress=False)
    assert sorted(path.name[-13] for path in tmp_path.glob("checkpoint-*")) == ["1", "2"]


def test_too_many_skipped_steps_stop_the_run(make_vlm, tmp_path, monkeypatch):
    monkeypatch.setattr("dlip.training.optimizer.MAX_SKIPPED_IN_A_ROW", 3)
    Spoilt(monkeypatch, {1, 3, 4, 5}, "lm", False)
    config = SHORT.replace(weights={"itc": 1.0, "lm": 1.0}, nonfinite="skip")
    sentence = "^non-finite in step 6: lm; 3 steps in a row were skipped"
    with pytest.warns(UserWarning, match="step 2: lm; the step is skipped"), pytest.raises(UserError, match=sentence):
        train(make_vlm(), TRAIN_SCENES, config, tmp_path, progress=False)


@pytest.mark.parametrize(
    ("optimizer", "accumulate", "gradient"),
    [("adamw", 1, False), ("adamw", 2, True), ("muon", 1, True), ("muon", 2, False)],
)
def test_skipped_steps(optimizer, gradient, accumulate, make_vlm, tmp_path, monkeypatch):
    """A run without the step's update; its log counts the others alone."""
    config = SHORT.replace(
        weights={"itc": 1.0, "lm": 1.0}, momentum=0.9, queue=12, nonfinite="skip", accumulate=accumulate, save_every=4,
        optimizer=optimizer,
    )  # fmt: skip
    Spoilt(monkeypatch, {3}, "lm", gradient)
    with pytest.warns(UserWarning, match="non-finite in step 4: .*lm; the step is skipped"):
        run = train(make_vlm(1), TRAIN_SCENES, config, tmp_path / "skipped", progress=False)
    monkeypatch.undo()
    full = train(make_vlm(1), TRAIN_SCENES, config, tmp_path / "whole", progress=False)
    assert [row["step"] for row in run.rows() if "skipped" in row] == [4]
    assert run.skipped_steps() == 1 and full.skipped_steps() == 0
    actual, expected = ({r["step"]: r["losses"] for r in some.rows() if "losses" in r} for some in (run, full))
    assert actual[3] == expected[3] and 4 not in actual and actual[6] != expected[6]
    assert actual[5] == pytest.approx(expected[5], rel=0.1)  # without micro-batches of the step that was left out
    kept = {step: read_tensors(run.folder / f"checkpoint-0000000{step}.safetensors")[0] for step in (4, 6)}
    assert all(tensor.isfinite().all() for tensor in kept[6].values())
    assert kept[4]["learner.terms.itc.momentum.place"] == 3 * config.batch_size % 12


@pytest.mark.filterwarnings("ignore:non-finite")
def test_vectors_of_a_skipped_step_stay_out_of_the_queue(make_med, make_batch):
    learner = Learner(VLM(make_med(), None), None, TrainConfig(weights={"itc": 1.0}, momentum=0.9, queue=12))
    learner(make_batch(), None, 0, 0.0)
    learner.after_skipped_step()
    learner.after_step()
    assert learner.terms["itc"].momentum.place == 0


def test_resume_after_only_skipped_steps(make_vlm, tmp_path, monkeypatch):
    """Its optimizer has no moments yet."""
    config = SHORT.replace(weights={"itc": 1.0, "lm": 1.0}, nonfinite="skip")
    Spoilt(monkeypatch, {0, 1}, "lm", False)
    full = train(make_vlm(1), TRAIN_SCENES, config, tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(make_vlm(1), InterruptedDataset(TRAIN_SCENES, 20), config, tmp_path / "parts", progress=False)
    assert [path.name for path in (tmp_path / "parts").glob("checkpoint-*")] == ["checkpoint-00000002.safetensors"]
    parts = train(make_vlm(1), TRAIN_SCENES, config, tmp_path / "parts", progress=False)
    name = "checkpoint-00000006.safetensors"
    actual, expected = (read_tensors(run.folder / name)[0] for run in (parts, full))
    assert actual.keys() == expected.keys() and all(torch.equal(actual[key], expected[key]) for key in actual)
