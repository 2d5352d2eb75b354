"""The loop: it learns, follows its schedule, resumes to the last bit, and says what is wrong."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from dlip.checkpoints.tensors import read_tensors
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.training.config import TrainConfig
from dlip.training.learner import Learner
from dlip.training.loop import train
from dlip.training.run_folder import Run, weights_hash
from dlip.training.weights import weights
from dlip.vlm import VLM
from tests.helpers import randomize_weights
from tests.training.helpers import SHORT, TRAIN_SCENES, InterruptedDataset, Sparse, force_fp16_scaler, untimed_rows

VLP, HR, AT, KD = map(weights, ("vlp", "hr", "at", "kd"))

# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("terms", "steps"), [(["itc"], 70), (["lm", "vqa", "tags"], 40)])
def test_losses_fall(terms, steps, make_vlm, tmp_path):
    config = TrainConfig(
        steps=steps, batch_size=8, lr=1e-2, warmup=10, schedule="cosine", log_every=10, save_every=100,
        weights=dict.fromkeys(terms, 1.0),
    )  # fmt: skip
    student = make_vlm(image_width=32, text_width=32)
    run = train(student, Scenes("train-small", size=8), config, tmp_path, progress=False)
    losses = run.losses()
    assert losses["step"] == list(range(10, steps + 1, 10)) and run.finished
    for term in terms:
        assert losses[term][-1] < 0.8 * losses[term][0], term
    loaded = run.model()
    for (name, actual), expected in zip(student.med.named_parameters(), loaded.med.parameters(), strict=True):
        assert torch.equal(actual, expected), name
    assert not student.med.training and run.config()["train"]["steps"] == steps


def test_distillation_approaches_the_teacher(make_vlm, tmp_path):
    teacher = make_vlm(0)
    config = SHORT.replace(steps=40, lr=5e-3, save_every=40, log_every=5, weights={**HR, **AT, **KD})
    before = {name: p.clone() for name, p in teacher.med.named_parameters()}
    losses = train(make_vlm(1), TRAIN_SCENES, config, tmp_path, teacher, progress=False).losses()
    assert losses.keys() == {"step", "total", *HR, *AT, *KD}
    for term in (*HR, "kd.itc", "kd.lm", "kd.vqa", "total"):
        assert losses[term][-1] < 0.5 * losses[term][0], term
    assert all(torch.equal(p, before[name]) for name, p in teacher.med.named_parameters())


def test_teacher_runs_only_after_its_terms_join(make_vlm, tmp_path):
    teacher, asked = make_vlm(0), []
    teacher.med.register_forward_hook(lambda *_: asked.append(1))
    config = SHORT.replace(weights={"lm": 1.0, "hr.text": 1.0}, start_term_at={"hr.text": 4})
    train(make_vlm(1), TRAIN_SCENES, config, tmp_path, teacher, progress=False)
    assert len(asked) == SHORT.steps - 4


def test_the_total_is_the_weighted_sum(make_vlm, tmp_path):
    config = SHORT.replace(steps=1, weights={"itc": 0.5, "lm": 2.0, "kd.lm": 3.0, "itm": 0.0})
    (row,) = untimed_rows(train(make_vlm(1), TRAIN_SCENES, config, tmp_path, make_vlm(0), progress=False))
    losses = row["losses"]
    assert losses.keys() == {"itc", "lm", "kd.lm", "total"}
    assert losses["total"] == pytest.approx(0.5 * losses["itc"] + 2 * losses["lm"] + 3 * losses["kd.lm"], abs=1e-4)


def test_terms_join_in_their_step(make_vlm, tmp_path):
    """Until a term joins the run is the run without it; no row of the log spans its joining."""
    config = SHORT.replace(log_every=4, weights={"itc": 1.0, "lm": 1.0, "hr.image": 1.0})
    late = config.replace(start_term_at={"lm": 3, "hr.image": 2})
    losses = train(make_vlm(1), TRAIN_SCENES, late, tmp_path / "late", make_vlm(0), progress=False).losses()
    assert losses["step"] == [2, 3, 4, 6] and None not in losses["itc"] + losses["total"]
    assert [loss is None for loss in losses["hr.image"]] == [True, False, False, False]
    assert [loss is None for loss in losses["lm"]] == [True, True, False, False]
    assert losses["total"][:2] == pytest.approx([losses["itc"][0], losses["itc"][1] + losses["hr.image"][1]], abs=1e-4)
    alone = SHORT.replace(log_every=2, weights={"itc": 1.0})
    assert (
        train(make_vlm(1), TRAIN_SCENES, alone, tmp_path / "one", progress=False).losses()["itc"][0] == losses["itc"][0]
    )
    with pytest.raises(UserError, match="no loss term is active in the first step"):
        late.replace(start_term_at={"itc": 1, "lm": 1, "hr.image": 1})
    with pytest.raises(UserError, match="no loss term 'hr.imgae'"):
        late.replace(start_term_at={"hr.imgae": 1})


@pytest.mark.parametrize(("optimizer", "tolerance"), [("adamw", 1e-5), ("muon", 0.05)])  # Muon computes in bf16
def test_accumulation_equals_one_batch(optimizer, tolerance, make_vlm, tmp_path):
    """Of a term that is a plain mean over pictures, micro-batches have the mean gradient of the whole batch."""
    config = SHORT.replace(
        steps=2, warmup=0, weights={"hr.image": 1.0}, weight_decay=0.0, optimizer=optimizer
    )  # fmt: skip
    results = []
    for accumulate in (1, 2, 4):
        student = make_vlm(1)
        cut = config.replace(accumulate=accumulate)
        run = train(student, TRAIN_SCENES, cut, tmp_path / f"{accumulate}", make_vlm(0), progress=False)
        results.append((student.med.vision_model.encoder.layers[0].mlp.fc1.weight, run.losses()["total"]))
    start, (whole, losses_of_whole) = make_vlm(1).med.vision_model.encoder.layers[0].mlp.fc1.weight, results[0]
    for weight, losses in results[1:]:
        assert (weight - whole).norm() < tolerance * (whole - start).norm()
        assert losses == pytest.approx(losses_of_whole, abs=1e-4)


def test_environment_does_not_change_accumulation(make_vlm, tmp_path, monkeypatch):
    plain = train(make_vlm(1), TRAIN_SCENES, SHORT.replace(steps=2), tmp_path / "plain", progress=False)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    assert untimed_rows(
        train(make_vlm(1), TRAIN_SCENES, SHORT.replace(steps=2), tmp_path / "set", progress=False)
    ) == untimed_rows(plain)


ACCUMULATED = ["vqa", "lm", *(term for term in {**HR, **AT, **KD} if term not in ("hr.image", "kd.itc", "kd.itm"))]


@pytest.mark.parametrize("term", ACCUMULATED)
def test_accumulation_equals_one_batch_of_partly_annotated_images(term, make_vlm, tmp_path):
    """With a prompt, which counts among the decoder's tokens, and weights far from their start, whose maps differ."""

    def made(seed: int) -> VLM:
        vlm = make_vlm(seed, prompt_ids=(9, 10))
        randomize_weights(vlm.med, seed)
        return vlm

    config = SHORT.replace(steps=1, warmup=0, weights={term: 1.0}, batch_size=24, label_smoothing=0.0)
    results = []
    for accumulate in (1, 12):  # 12: some micro-batches of two images have no caption or question
        student, cut = made(1), config.replace(accumulate=accumulate)
        teacher = made(2) if "." in term else None
        run = train(student, Sparse("val", size=24), cut, tmp_path / f"{accumulate}", teacher, progress=False)
        weight = student.med.text_encoder.encoder.layer[0].output.dense.weight
        results.append((weight, run.losses()[term], run.rows()[-1]["norm"]))
    (whole, whole_losses, whole_norm), (parts, losses, norm) = results
    assert whole_losses[0] > 1e-3
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    assert losses == pytest.approx(whole_losses, abs=1e-5)
    assert norm == pytest.approx(whole_norm, rel=2e-3, abs=2e-4)  # AdamW's first step hides a common factor


def test_images_come_in_the_order_of_the_data(make_vlm, tmp_path):
    """As of scenes, whose twins share a batch, and of shards, which are read one after another."""
    read = []

    class Backwards(Scenes):
        def order(self, seed: int, epoch: int) -> list[int]:
            return list(range(len(self)))[::-1]

        def __getitem__(self, i: int):
            read.append(i)
            return super().__getitem__(i)

    config = SHORT.replace(steps=3, weights={"itc": 1.0})
    train(make_vlm(), Backwards("val", size=24), config, tmp_path, progress=False)
    assert read[-24:] == list(range(24))[::-1]


@pytest.mark.parametrize(("student", "teacher"), [(48, 64), (80, 64)])
def test_batches_have_the_larger_images_and_the_students_longest_text(student, teacher, make_vlm, tmp_path):
    seen, taught_by = [], make_vlm(0, image_size=teacher)
    taught_by.med.register_forward_pre_hook(
        lambda _, given: seen.append((given[0].images.shape[-1], given[0].ids.shape[1]))
    )
    config = SHORT.replace(steps=1, weights={"hr.image": 1.0})
    train(make_vlm(1, image_size=student, max_text=6), TRAIN_SCENES, config, tmp_path, taught_by, progress=False)
    assert seen == [(max(student, teacher), 6)]


@pytest.mark.parametrize(
    ("term", "change"),
    [("lm", {"label_smoothing": 0.5}), ("vqa", {"label_smoothing": 0.5}), ("vqa", {"questions": 3}),
     ("itc", {"augment": True}), ("itc", {"alpha": 0.0}), ("hr.text", {"center_states": True}),
     ("hr.text", {"learn_teacher_projection": False})],
)  # fmt: skip
def test_options_reach_the_losses(term, change, make_vlm, tmp_path):
    momentum = 0.9 if term == "itc" else 0.0
    config = SHORT.replace(steps=2, warmup=0, weights={term: 1.0}, label_smoothing=0.0, momentum=momentum)
    losses = []
    for name, changes in (("plain", {}), ("changed", change)):
        teacher = make_vlm(2) if "." in term else None
        run = train(make_vlm(1), TRAIN_SCENES, config.replace(**changes), tmp_path / name, teacher, progress=False)
        losses.append(run.losses()[term])
    assert losses[0][-1] != pytest.approx(losses[1][-1], abs=1e-6)


def test_rows_of_the_log_are_means_of_their_steps(make_vlm, tmp_path):
    config = SHORT.replace(steps=4, save_every=4, weights={"lm": 1.0})
    every, second = (
        train(make_vlm(1), TRAIN_SCENES, config.replace(log_every=n), tmp_path / str(n), progress=False).losses()["lm"]
        for n in (1, 2)
    )
    assert second == pytest.approx([(every[0] + every[1]) / 2, (every[2] + every[3]) / 2], abs=1e-5)


def test_flip_mirrors_photographs(make_vlm, tmp_path):
    class Photographs(Scenes):
        def __getitem__(self, i: int):
            item = super().__getitem__(i)
            return replace(item, image=Image.fromarray(item.image), captions=["a circle"], questions=[])

    config, losses = SHORT.replace(steps=2, warmup=0, weights={"lm": 1.0}, augment=True), []
    for flip in (False, True):
        run = train(
            make_vlm(1), Photographs("train-small", size=24), config.replace(flip=flip), tmp_path / str(flip),
            progress=False,
        )  # fmt: skip
        losses.append(run.losses()["lm"][0])
    assert losses[0] != pytest.approx(losses[1], abs=1e-7)


def test_epochs_become_steps(make_vlm, tmp_path):
    config = SHORT.replace(steps=1, warmup=0, epochs=2, batch_size=8)
    run = train(make_vlm(1), Scenes("val", size=24), config, tmp_path, progress=False)
    assert run.rows()[-1]["step"] == 6


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
    "late terms": (
        SHORT.replace(weights={"itc": 1.0, "lm": 1.0, "hr.text": 1.0}, start_term_at={"lm": 4, "hr.text": 5}),
        {},
    ),
    "rarely logged": (SHORT.replace(log_every=5), {}),
    "workers": (SHORT.replace(workers=1), {}),
    "muon": (SHORT.replace(optimizer="muon", accumulate=2, precision="bf16", momentum=0.9, queue=12), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_resume_is_bit_exact(case, make_vlm, tmp_path):
    """Stopped in evaluation at step 5, in a batch after it, and compared with a run that never stopped."""
    config, changes = CASES[case]
    config = config.replace(eval_every=5)

    def go(folder, dataset=TRAIN_SCENES, evaluate=lambda vlm: {"a": 1}):
        teacher = make_vlm(0) if any("." in term for term in config.weights) else None
        return train(make_vlm(1, **changes), dataset, config, folder, teacher, evaluate, progress=False)

    full = go(tmp_path / "whole")

    def stop(vlm):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "parts", evaluate=stop)
    torch.manual_seed(99)  # whatever else the process does meanwhile
    if not config.workers:
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "parts", InterruptedDataset(TRAIN_SCENES, 5))
    parts = go(tmp_path / "parts")
    assert untimed_rows(parts) == untimed_rows(full)
    name = "checkpoint-00000006.safetensors"
    actual, expected = (read_tensors(run.folder / name)[0] for run in (parts, full))
    assert actual.keys() == expected.keys() and any(key.startswith("optimizer.") for key in actual)
    assert not [key for key in actual if not torch.equal(actual[key], expected[key])]
    assert (parts.folder / "model.safetensors").read_bytes() == (full.folder / "model.safetensors").read_bytes()
    assert sorted(path.name for path in parts.folder.glob("checkpoint-*")) == ["checkpoint-00000004.safetensors", name]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fp16_scale_is_resumed(optimizer, make_vlm, tmp_path, monkeypatch):
    """The first losses overflow and their steps are left out."""
    force_fp16_scaler(monkeypatch, 2.0**40, 2.0**-16)

    def stop(vlm):
        raise KeyboardInterrupt

    config = SHORT.replace(eval_every=5, precision="fp16", optimizer=optimizer)
    rows = untimed_rows(
        train(make_vlm(1), TRAIN_SCENES, config, tmp_path / "whole", evaluate=lambda vlm: {}, progress=False)
    )
    assert rows[0]["norm"] is None and rows[-1]["norm"] > 0
    with pytest.raises(KeyboardInterrupt):
        train(make_vlm(1), TRAIN_SCENES, config, tmp_path / "parts", evaluate=stop, progress=False)
    assert (
        untimed_rows(
            train(make_vlm(1), TRAIN_SCENES, config, tmp_path / "parts", evaluate=lambda vlm: {}, progress=False)
        )
        == rows
    )
    name = "checkpoint-00000006.safetensors"
    (actual, one), (expected, two) = (read_tensors(tmp_path / part / name) for part in ("parts", "whole"))
    assert one["scaler"] == two["scaler"] and one["scaler"]["scale"] < 2.0**40
    assert not [key for key in actual if not torch.equal(actual[key], expected[key])]


def test_finished_run_is_unchanged(make_vlm, tmp_path):
    run = train(make_vlm(), TRAIN_SCENES, SHORT, tmp_path, progress=False)
    before, rows = (tmp_path / "model.safetensors").read_bytes(), run.rows()
    again = train(make_vlm(5), TRAIN_SCENES, SHORT, tmp_path, progress=False)
    assert (tmp_path / "model.safetensors").read_bytes() == before and again.rows() == rows
    for checkpoint in tmp_path.glob("checkpoint-*"):
        checkpoint.unlink()
    student = make_vlm(5)
    assert train(student, TRAIN_SCENES, SHORT, tmp_path, progress=False).rows() == rows
    assert (tmp_path / "model.safetensors").read_bytes() == before and weights_hash(student) == weights_hash(
        run.model()
    )


@pytest.mark.parametrize("name", ["run@48", "scenes/student"])
def test_model_of_a_folder_named_like_a_built_in_one(name, make_vlm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_vlm(3).save("run")
    student = make_vlm()
    run = train(student, TRAIN_SCENES, SHORT.replace(steps=1), name, progress=False)
    assert weights_hash(run.model()) == weights_hash(student) and run.model().name == name


def test_seed_determines_the_run(make_vlm, tmp_path):
    runs = [
        untimed_rows(train(make_vlm(1), TRAIN_SCENES, SHORT.replace(seed=seed), tmp_path / f"{i}", progress=False))
        for i, seed in enumerate((0, 0, 1))
    ]
    assert runs[0] == runs[1] != runs[2]


class InOrder(Scenes):
    def order(self, seed: int, epoch: int) -> list[int]:
        return list(range(len(self)))


@pytest.mark.parametrize("part", ["order", "captions", "torch"])
def test_seed_reaches_every_draw(part, make_vlm, tmp_path, monkeypatch):
    seen, forward = [], Learner.forward

    def listen(learner, batch, *rest):
        seen.append({"order": batch.index.tolist(), "captions": batch.captions, "torch": torch.initial_seed()}[part])
        return forward(learner, batch, *rest)

    monkeypatch.setattr(Learner, "forward", listen)
    data = TRAIN_SCENES if part == "order" else InOrder("val", size=8)
    for seed in (0, 1):
        config = SHORT.replace(steps=1, warmup=0, seed=seed, weights={"lm": 1.0})
        train(make_vlm(1), data, config, tmp_path / str(seed), progress=False)
    assert seen[0] != seen[1]


# --- evaluation during training ---------------------------------------------------------------------------------------


def test_evaluation_is_logged_and_does_not_change_training(make_vlm, tmp_path):
    """Also when it comes before the first row of losses; the student trains on with its dropout."""
    seen = []

    def evaluate(vlm):
        vlm.med.eval()
        seen.append(vlm)
        return {"tr@1": 12.5}

    config, student = SHORT.replace(log_every=4, save_every=6), make_vlm(1, dropout=0.1)
    plain = train(make_vlm(1, dropout=0.1), TRAIN_SCENES, config, tmp_path / "plain", progress=False)
    rows_when_evaluated = []
    run = train(
        student, TRAIN_SCENES, config.replace(eval_every=2), tmp_path / "eval", evaluate=evaluate, progress=False,
        on_row=lambda row: rows_when_evaluated.append((row["step"], Run(tmp_path / "eval").rows()[-1])),
    )  # fmt: skip
    assert [row for row in untimed_rows(run) if "eval" in row] == [
        {"step": step, "eval": {"tr@1": 12.5}} for step in (2, 4, 6)
    ]
    assert all(step == row["step"] for step, row in rows_when_evaluated)
    assert [step for step, row in rows_when_evaluated if "eval" in row] == [2, 4, 6]
    assert seen == [student] * 3 and run.losses() == plain.losses()


def test_seconds_are_those_of_training(make_vlm, tmp_path, monkeypatch):
    """Not of what happens while the loop waits: evaluation, and whoever is shown the log."""
    clock = [0.0]

    def passed(seconds: float = 0.001) -> float:
        clock[0] += seconds
        return clock[0]

    def wait(_) -> dict:
        passed(1000)
        return {}

    monkeypatch.setattr("dlip.training.run_folder.time.perf_counter", passed)
    config = SHORT.replace(steps=4, log_every=2, eval_every=3)
    run = train(make_vlm(), TRAIN_SCENES, config, tmp_path, evaluate=wait, on_row=wait, progress=False)
    assert 0 < run.seconds() < 1


def test_a_model_that_was_a_teacher_learns(make_vlm, tmp_path):
    model = make_vlm(0)
    train(make_vlm(1), TRAIN_SCENES, SHORT.replace(weights={"hr.image": 1.0}), tmp_path / "a", model, progress=False)
    before = model.med.vision_proj.weight.clone()
    train(model, TRAIN_SCENES, SHORT.replace(weights={"itc": 1.0}), tmp_path / "b", progress=False)
    assert not torch.equal(model.med.vision_proj.weight, before)
