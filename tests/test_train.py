"""The loop: it learns, follows its schedule, resumes to the last bit, and says what is wrong."""

import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from dlip.checkpoints import read_tensors
from dlip.config import AT, HR, KD, VLP, TrainConfig, scenes_size
from dlip.data.scenes import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.errors import UserError
from dlip.model import Med
from dlip.objectives import MomentumITC
from dlip.train import Learner, learning_rate, optimiser, train
from dlip.vlm import VLM

PICTURES = Scenes("train-small", size=24)
SHORT = TrainConfig(steps=6, batch_size=8, lr=1e-3, warmup=2, log_every=1, save_every=2)


@pytest.fixture(scope="module")
def words(tiny) -> Tokenizer:
    return tiny.tokenizer


@pytest.fixture
def make(words):
    """Makes an untrained model; the same seed gives the same weights."""

    def make_vlm(seed: int = 1, **changes) -> VLM:
        torch.manual_seed(seed)
        return VLM(Med(replace(scenes_size(16, 1, 2, vocab_size=len(words)), **changes)), words, "small")

    return make_vlm


class Interrupted:
    """A data set during whose `last` item the user presses Ctrl-C."""

    def __init__(self, dataset, last: int):
        self.dataset, self.left, self.name, self.split = dataset, last, dataset.name, dataset.split
        self.counts = dataset.counts

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return self.dataset[i]


def log(run) -> list[dict]:
    """The log without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "pictures_per_s")} for row in run.rows()]


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("terms", "steps"), [(["itc"], 70), (["lm", "vqa", "tags"], 40)])
def test_losses_fall(terms, steps, make, tmp_path):
    config = TrainConfig(
        steps=steps, batch_size=8, lr=1e-2, warmup=10, schedule="cosine", log_every=10, save_every=100,
        weights=dict.fromkeys(terms, 1.0),
    )  # fmt: skip
    student = make(image_width=32, text_width=32)
    run = train(student, Scenes("train-small", size=8), config, tmp_path, progress=False)
    losses = run.losses()
    assert losses["step"] == list(range(10, steps + 1, 10)) and run.finished
    for term in terms:
        assert losses[term][-1] < 0.8 * losses[term][0], term
    loaded = run.model()
    for (name, ours), theirs in zip(student.med.named_parameters(), loaded.med.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    assert not student.med.training and run.config()["train"]["steps"] == steps


def test_a_student_nears_its_teacher(make, tmp_path):
    teacher = make(0)
    config = SHORT.replace(steps=40, lr=5e-3, save_every=40, log_every=5, weights={**HR, **AT, **KD})
    before = {name: p.clone() for name, p in teacher.med.named_parameters()}
    losses = train(make(1), PICTURES, config, tmp_path, teacher, progress=False).losses()
    assert losses.keys() == {"step", "total", *HR, *AT, *KD}
    for term in (*HR, "kd.itc", "kd.lm", "kd.vqa", "total"):
        assert losses[term][-1] < losses[term][0], term
    assert all(torch.equal(p, before[name]) for name, p in teacher.med.named_parameters())


def test_the_total_is_the_weighted_sum(make, tmp_path):
    config = SHORT.replace(steps=1, weights={"itc": 0.5, "lm": 2.0, "kd.lm": 3.0, "itm": 0.0})
    (row,) = log(train(make(1), PICTURES, config, tmp_path, make(0), progress=False))
    losses = row["losses"]
    assert losses.keys() == {"itc", "lm", "kd.lm", "total"}
    assert losses["total"] == pytest.approx(0.5 * losses["itc"] + 2 * losses["lm"] + 3 * losses["kd.lm"], abs=1e-4)


def test_terms_join_in_their_step(make, tmp_path):
    """Until a term joins the run is the run without it; no row of the log spans its joining."""
    config = SHORT.replace(log_every=4, weights={"itc": 1.0, "lm": 1.0, "hr.image": 1.0})
    late = config.replace(joins={"lm": 3, "hr.image": 2})
    losses = train(make(1), PICTURES, late, tmp_path / "late", make(0), progress=False).losses()
    assert losses["step"] == [2, 3, 4, 6] and None not in losses["itc"] + losses["total"]
    assert [loss is None for loss in losses["hr.image"]] == [True, False, False, False]
    assert [loss is None for loss in losses["lm"]] == [True, True, False, False]
    assert losses["total"][:2] == pytest.approx([losses["itc"][0], losses["itc"][1] + losses["hr.image"][1]], abs=1e-4)
    alone = SHORT.replace(log_every=2, weights={"itc": 1.0})
    assert train(make(1), PICTURES, alone, tmp_path / "one", progress=False).losses()["itc"][0] == losses["itc"][0]
    with pytest.raises(UserError, match="no loss term is there at the first step"):
        late.replace(joins={"itc": 1, "lm": 1, "hr.image": 1})
    with pytest.raises(UserError, match="no loss term 'hr.imgae'"):
        late.replace(joins={"hr.imgae": 1})


def test_accumulation_equals_one_batch(make, tmp_path):
    """Of a term that is a plain mean over pictures, micro-batches have the mean gradient of the whole batch."""
    config = SHORT.replace(steps=2, warmup=0, weights={"hr.image": 1.0}, weight_decay=0.0)
    results = []
    for accumulate in (1, 2, 4):
        student = make(1)
        cut = config.replace(accumulate=accumulate)
        run = train(student, PICTURES, cut, tmp_path / f"{accumulate}", make(0), progress=False)
        results.append((student.med.vision_model.encoder.layers[0].mlp.fc1.weight, run.losses()["total"]))
    for weight, losses in results[1:]:
        torch.testing.assert_close(weight, results[0][0], atol=1e-5, rtol=1e-4)
        assert losses == pytest.approx(results[0][1], abs=1e-4)


# --- schedule and optimiser -------------------------------------------------------------------------------------------


def test_rates_counted_by_hand():
    epoch = TrainConfig(lr=1.0, warmup=4, decay=0.5, steps=12)
    rates = [learning_rate(step, epoch, per_epoch=3) for step in range(12)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.125]
    cosine = epoch.replace(schedule="cosine")
    rates = [learning_rate(step, cosine, per_epoch=3) for step in range(13)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0] and rates[8] == pytest.approx(0.5)
    assert rates[6] == pytest.approx((1 + math.cos(math.pi / 4)) / 2) and rates[12] == pytest.approx(0)


def test_the_loop_follows_the_schedule(make, tmp_path):
    """Three steps an epoch; two of warm-up; log rows state rate and epoch."""
    rows = log(train(make(), PICTURES, SHORT.replace(decay=0.5), tmp_path, progress=False))
    assert [row["lr"] for row in rows] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4, 5e-4, 5e-4])
    assert [row["epoch"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-3)
    rows = log(train(make(), PICTURES, SHORT.replace(decay=0.5, accumulate=2), tmp_path / "two", progress=False))
    assert [row["epoch"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2], abs=1e-3)


def test_what_decays(make):
    learner = Learner(make(), None, SHORT.replace(momentum=0.9, queue=4))
    adamw = optimiser(learner, SHORT)
    names = {id(p): name for name, p in learner.named_parameters()}
    decayed, plain = ([names[id(p)] for p in group["params"]] for group in adamw.param_groups)
    assert (adamw.param_groups[0]["weight_decay"], adamw.param_groups[1]["weight_decay"]) == (0.02, 0.0)
    assert "med.temp" in plain and "med.vision_model.embeddings.class_embedding" in plain
    assert all(name.endswith(("bias", "norm1.weight", "norm2.weight", "layernorm.weight", "LayerNorm.weight"))
               for name in plain if not name.endswith(("temp", "class_embedding")))  # fmt: skip
    assert all(name.endswith(("weight", "position_embedding")) for name in decayed)
    assert not any(name.startswith("momentum") for name in (*decayed, *plain))
    assert {*decayed, *plain} == {name for name in names.values() if not name.startswith("momentum")}


@pytest.mark.parametrize("clip", [1.0, 1e-14])
def test_gradients_are_clipped_before_the_step(clip, make, tmp_path):
    """So short a gradient drowns in AdamW's epsilon, and all weights stay but the temperature, which is not clipped.
    The log states the norm before clipping."""
    student, before = make(1), make(1)
    config = SHORT.replace(steps=2, clip=clip, weight_decay=0.0, warmup=0)
    (row, _) = log(train(student, PICTURES, config, tmp_path, progress=False))
    pairs = zip(student.med.parameters(), before.med.parameters(), strict=True)
    assert (max((a - b).abs().max().item() for a, b in pairs if a.ndim) < 1e-7) == (clip < 1)
    assert row["norm"] > 0.1 and abs(student.med.temp.item() - 0.07) > 1e-4


@pytest.mark.parametrize(("start", "end"), [(1e-4, 1e-3), (0.9, 0.5)])
def test_the_temperature_stays_within_blips_bounds(start, end, make, tmp_path):
    student = make(1)
    student.med.temp.data.fill_(start)
    train(student, PICTURES, SHORT.replace(steps=1, lr=1e-9), tmp_path, progress=False)
    assert student.med.temp.item() == pytest.approx(end)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_soft_labels_are_told_the_epochs_done(accumulate, make, tmp_path, monkeypatch):
    told, forward = [], MomentumITC.forward

    def listen(self, features, med, batch, progress):
        told.append(progress)
        return forward(self, features, med, batch, progress)

    monkeypatch.setattr(MomentumITC, "forward", listen)
    config = SHORT.replace(accumulate=accumulate, momentum=0.9, weights={"itc": 1.0})
    train(make(), PICTURES, config, tmp_path, progress=False)
    assert told[::accumulate] == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3]) and len(told) == 6 * accumulate


# --- resuming ---------------------------------------------------------------------------------------------------------

CASES = {
    "alone": (SHORT, {}),
    "momentum": (SHORT.replace(momentum=0.9, queue=12), {}),
    "momentum without queue": (SHORT.replace(momentum=0.9), dict(dropout=0.1)),
    "teacher": (SHORT.replace(weights={**VLP, "tags": 1.0, **HR, **AT, **KD}, augment=True), dict(dropout=0.1)),
    "accumulate": (SHORT.replace(accumulate=2, momentum=0.9, queue=12, schedule="cosine"), {}),
    "all": (
        SHORT.replace(accumulate=2, momentum=0.9, queue=12, weights={**VLP, **HR, "kd.itm": 1.0}),
        dict(dropout=0.1),
    ),
    "bf16": (SHORT.replace(precision="bf16", momentum=0.9, queue=12, weights={**VLP, **HR, **AT}), {}),
    "rarely logged": (SHORT.replace(log_every=5), {}),
    "workers": (SHORT.replace(workers=1), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_goes_on_to_the_last_bit(case, make, tmp_path):
    """Stopped in evaluation at step 5, in a batch after it, and compared with a run that never stopped."""
    config, changes = CASES[case]
    config = config.replace(eval_every=5)

    def go(folder, dataset=PICTURES, evaluate=lambda vlm: {"a": 1}):
        teacher = make(0) if any("." in term for term in config.weights) else None
        return train(make(1, **changes), dataset, config, folder, teacher, evaluate, progress=False)

    whole = go(tmp_path / "whole")

    def stop(vlm):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "parts", evaluate=stop)
    torch.manual_seed(99)  # whatever else the process does meanwhile
    if not config.workers:
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "parts", Interrupted(PICTURES, 5))
    parts = go(tmp_path / "parts")
    assert log(parts) == log(whole)
    name = "checkpoint-00000006.safetensors"
    ours, theirs = (read_tensors(run.folder / name)[0] for run in (parts, whole))
    assert ours.keys() == theirs.keys() and any(key.startswith("optimiser.") for key in ours)
    assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]
    assert (parts.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    assert sorted(path.name for path in parts.folder.glob("checkpoint-*")) == ["checkpoint-00000004.safetensors", name]


def test_the_scale_of_fp16_is_resumed(make, tmp_path, monkeypatch):
    """accelerate has no fp16 on a CPU, so it is put in: the first losses overflow and their steps are left out."""

    class Scaled(Accelerator):
        def __init__(self, **options):
            super().__init__(**options)
            self.native_amp = True
            self.scaler = torch.amp.GradScaler("cpu", 2.0**40, backoff_factor=2.0**-16, growth_interval=2)

    monkeypatch.setattr("dlip.train.Accelerator", Scaled)

    def stop(vlm):
        raise KeyboardInterrupt

    config = SHORT.replace(eval_every=5, precision="fp16")
    rows = log(train(make(1), PICTURES, config, tmp_path / "whole", evaluate=lambda vlm: {}, progress=False))
    assert rows[0]["norm"] is None and rows[-1]["norm"] > 0
    with pytest.raises(KeyboardInterrupt):
        train(make(1), PICTURES, config, tmp_path / "parts", evaluate=stop, progress=False)
    assert log(train(make(1), PICTURES, config, tmp_path / "parts", evaluate=lambda vlm: {}, progress=False)) == rows
    name = "checkpoint-00000006.safetensors"
    (ours, one), (theirs, two) = (read_tensors(tmp_path / part / name) for part in ("parts", "whole"))
    assert one["scaler"] == two["scaler"] and one["scaler"]["scale"] < 2.0**40
    assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]


def test_a_finished_run_is_left_as_it_is(make, tmp_path):
    run = train(make(), PICTURES, SHORT, tmp_path, progress=False)
    before, rows = (tmp_path / "model.safetensors").read_bytes(), run.rows()
    again = train(make(5), PICTURES, SHORT, tmp_path, progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() == before and again.rows() == rows


def test_the_seed_decides(make, tmp_path):
    runs = [
        log(train(make(1), PICTURES, SHORT.replace(seed=seed), tmp_path / f"{i}", progress=False))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert runs[0] == runs[1] != runs[2]


# --- evaluation during training ---------------------------------------------------------------------------------------


def test_evaluation_is_logged_and_changes_nothing(make, tmp_path):
    """Also when it comes before the first row of losses; the student trains on with its dropout."""
    seen = []

    def evaluate(vlm):
        vlm.med.eval()
        seen.append(vlm)
        return {"tr@1": 12.5}

    config, student = SHORT.replace(log_every=4, save_every=6), make(1, dropout=0.1)
    plain = train(make(1, dropout=0.1), PICTURES, config, tmp_path / "plain", progress=False)
    run = train(student, PICTURES, config.replace(eval_every=2), tmp_path / "eval", evaluate=evaluate, progress=False)
    assert [row for row in log(run) if "eval" in row] == [{"step": step, "eval": {"tr@1": 12.5}} for step in (2, 4, 6)]
    assert seen == [student] * 3 and run.losses() == plain.losses()


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_the_run(make, tmp_path):
    student = make()
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
def test_a_gradient_that_is_no_number_stops_the_run_in_its_step(gradient, says, make, tmp_path, monkeypatch):
    Spoilt(monkeypatch, {4}, "lm", gradient)
    config = SHORT.replace(weights={"itc": 1.0, "lm": 1.0}, save_every=2)
    with pytest.raises(UserError, match=f"^{says} finite number in step 4; .* --nonfinite skip"):
        train(make(), PICTURES, config, tmp_path, progress=False)
    last = read_tensors(tmp_path / "checkpoint-00000004.safetensors")[0]  # stands as it was
    assert all(tensor.isfinite().all() for tensor in last.values())


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_are_left_out(gradient, accumulate, make, tmp_path, monkeypatch):
    """A run without the step's update; its log counts the others alone."""
    config = SHORT.replace(
        weights={"itc": 1.0, "lm": 1.0}, momentum=0.9, queue=12, nonfinite="skip", accumulate=accumulate, save_every=4
    )
    Spoilt(monkeypatch, {3}, "lm", gradient)
    with pytest.warns(UserWarning, match="lm is no finite number in step 3; the step is left out"):
        run = train(make(1), PICTURES, config, tmp_path / "skipped", progress=False)
    monkeypatch.undo()
    whole = train(make(1), PICTURES, config, tmp_path / "whole", progress=False)
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
def test_what_does_not_fit_is_named(dataset, changes, says, make, tmp_path):
    with pytest.raises(UserError, match=says):
        train(make(), dataset, SHORT.replace(**changes), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("teacher", "changes", "says"),
    [
        ({}, dict(weights=VLP), "no term of hr"),
        (dict(prompt_ids=(9, 10)), dict(weights={"kd.lm": 1.0}), "different prompts"),
        ({}, dict(weights={"hr.text": 1.0}, layers={"text": ((2, 0),)}), "text has no states of layer 2"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher, changes, says, make, tmp_path):
    with pytest.raises(UserError, match=says):
        train(make(), PICTURES, SHORT.replace(**changes), tmp_path / "run", make(0, **teacher), progress=False)
    assert not (tmp_path / "run").exists()


def test_other_vocabularies_are_refused(make, tmp_path):
    teacher, other = make(0), Tokenizer.train(["other words"], 100)
    with pytest.raises(UserError, match="different vocabularies"):
        train(make(), PICTURES, SHORT.replace(weights=HR), tmp_path, VLM(teacher.med, other), progress=False)


def test_a_folder_of_another_run_is_refused(make, tmp_path):
    train(make(), PICTURES, SHORT.replace(steps=1), tmp_path, about={"data": "scenes"}, progress=False)
    before = (tmp_path / "run.json").read_text()
    others = [
        (make(), SHORT.replace(steps=2), {"data": "scenes"}, "another train"),
        (make(embed_dim=8), SHORT.replace(steps=1), {"data": "scenes"}, "another model"),
        (make(), SHORT.replace(steps=1), {"data": "photos"}, "another data"),
        (make(), SHORT.replace(steps=1), {}, "another data"),
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
def test_a_damaged_checkpoint_is_left_aside_for_the_one_before(spoil, which, make, tmp_path):
    whole = train(make(), PICTURES, SHORT, tmp_path / "whole", progress=False)
    run = train(make(), PICTURES, SHORT, tmp_path / "run", progress=False)
    paths = sorted(run.folder.glob("checkpoint-*"))[-1 if which == "the last" else 0 :]
    for path in paths:
        path.write_bytes(spoil(path.read_bytes()))
    with pytest.warns(UserWarning, match=f"{paths[-1].name}.*; the run goes on from what was kept before"):
        again = train(make(), PICTURES, SHORT, tmp_path / "run", progress=False)
    assert log(again) == log(whole)
    assert (run.folder / "model.safetensors").read_bytes() == (whole.folder / "model.safetensors").read_bytes()
    assert sorted(path.name for path in run.folder.glob("damaged-*")) == [f"damaged-{path.name}" for path in paths]
