"""Cost of a run before it starts: FLOPs counted by hand, a few images predict a batch, nothing is written."""

import json
from dataclasses import replace

import pytest
import torch

from dlip.cli import main
from dlip.cost.count import task_macs
from dlip.data.collate import Collate
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.run import new_model, new_student
from dlip.models.config import scenes_size
from dlip.training import dry_run as costs
from dlip.training.config import TrainConfig
from dlip.training.dry_run import budget, extrapolate, first_images, probe
from dlip.training.learner import Learner
from dlip.training.optimizer import make_optimizer
from dlip.training.teacher import Teacher
from dlip.vlm import VLM


@pytest.fixture(scope="module")
def teacher() -> VLM:
    return VLM.load("scenes/teacher")


@pytest.fixture
def short_probes(monkeypatch):
    monkeypatch.setattr(costs, "MIN_PROBE_S", 0)


def made(student: VLM, teacher: VLM | None, config: TrainConfig) -> tuple:
    return Learner(student, teacher, config), Teacher(teacher.med) if teacher else None


def test_flops_by_hand(teacher):
    """Of labels alone the image encoder's products: forward once, backward twice, but not for the pixels' gradient."""
    config = TrainConfig(steps=1, batch_size=4, weights={"tags": 1.0})
    student, dataset = new_student("scenes-student", teacher, 0), Scenes("val", size=4)
    batch = Collate(student.tokenizer, 48)([dataset[i] for i in range(4)])
    learner = Learner(student, None, config, dataset[0].tags.shape[1])
    result = probe(learner, None, batch, config, 0)
    c, kinds = student.med.config, dataset[0].tags.shape[1]
    image = task_macs(c, "retrieval")["image"].flops  # of one picture
    patches = 2 * c.grid**2 * 3 * c.patch_size**2 * c.image_width
    head = 2 * c.grid**2 * c.image_width * kinds
    assert result.flops == 4 * (3 * image - patches + 3 * head)


def test_small_probes_predict_a_batch(teacher):
    config = TrainConfig(
        steps=1, batch_size=16, weights={"itc": 1, "itm": 1, "lm": 1, "vqa": 1, "hr.image": 1, "kd.lm": 1}
    )
    student, dataset = new_student("scenes-student", teacher, 0), Scenes("val", size=16)
    batch = Collate(student.tokenizer, 48, questions=2)([dataset[i] for i in range(16)])
    part, full = (probe(*made(student, teacher, config), b, config, 0) for b in (first_images(batch, 4), batch))
    assert (part.images, full.images) == (4, 16)
    assert part.flops * 4 == pytest.approx(full.flops, rel=0.02)
    assert part.saved_bytes * 4 == pytest.approx(full.saved_bytes, rel=0.05)


@pytest.mark.parametrize("changes", [{}, dict(precision="bf16"), dict(momentum=0.9, queue=512)])
def test_constant_costs_are_counted_once(changes, teacher, short_probes):
    """Weights cast to bf16, a queue."""
    config = TrainConfig(steps=1, batch_size=16, weights={"itc": 1, "lm": 1}, **changes)
    student, dataset = new_student("scenes-student", teacher, 0), Scenes("val", size=16)
    batch = Collate(student.tokenizer, 48)([dataset[i] for i in range(16)])
    extrapolated, full = (way(*made(student, None, config), batch, config, 0) for way in (extrapolate, probe))
    assert extrapolated.images == 16
    assert extrapolated.flops == pytest.approx(full.flops, rel=0.01)
    assert extrapolated.saved_bytes == pytest.approx(full.saved_bytes, rel=0.03)


def test_gradient_checkpointing_saves_memory_and_costs_time(teacher):
    student, dataset = new_student("scenes-student", teacher, 0), Scenes("val", size=4)
    config = TrainConfig(steps=1, batch_size=4, weights={"lm": 1.0})
    plain, less = (budget(student, dataset, config.replace(gradient_checkpointing=on)) for on in (False, True))
    assert less["memory_gb"]["saved"] < 0.7 * plain["memory_gb"]["saved"] and less["flops"] > 1.2 * plain["flops"]


def test_probes_use_the_first_batch(teacher):
    """Not the first of the data: of joined sets these would all be of one."""
    said = [replace(item, questions=[]) for item in Scenes("val", size=32)]
    asked = [replace(item, captions=[]) for item in Scenes("val", size=32, seed=1)]

    class Half(Scenes):
        items = said + asked

        def __getitem__(self, i):
            return self.items[i]

    class Turned(Half):
        items = asked + said

    config = TrainConfig(steps=1, batch_size=32, weights={"lm": 1.0, "vqa": 1.0})
    student = new_student("scenes-student", teacher, 0)
    one, other = (budget(student, kind("val", size=64), config)["flops"] for kind in (Half, Turned))
    assert one == pytest.approx(other, rel=0.25)


def test_first_images_keep_their_questions_and_padding(teacher):
    dataset = [replace(item, questions=item.questions * (i != 1)) for i, item in enumerate(Scenes("val", size=6))]
    batch = Collate(teacher.tokenizer, 48, questions=2)(dataset)
    part = first_images(batch, 3)
    assert part.ids.shape == (3, batch.ids.shape[1]) and part.question_rows.tolist() == [0, 0, 2, 2]
    torch.testing.assert_close(part.question_ids, batch.question_ids[batch.question_rows < 3])
    unasked = first_images(
        Collate(teacher.tokenizer, 48)([replace(item, questions=[]) for item in dataset[:2]] + dataset[2:]), 2
    )
    assert unasked.question_rows.tolist() == [1] and len(unasked.question_ids) == 1
    assert first_images(batch, 6) is batch


def test_joining_terms_cost_from_their_step(teacher, short_probes):
    student, dataset = new_student("scenes-student", teacher, 0), Scenes("val", size=8)
    config = TrainConfig(steps=10, batch_size=8, weights={"hr.image": 1.0, "lm": 1.0})
    early = budget(student, dataset, config.replace(weights={"hr.image": 1.0}), teacher)
    full = budget(student, dataset, config, teacher)
    mixed = budget(student, dataset, config.replace(start_term_at={"lm": 4}), teacher)
    assert mixed["flops"] == pytest.approx(0.4 * early["flops"] + 0.6 * full["flops"], rel=1e-6)
    assert mixed["memory_gb"] == full["memory_gb"]
    assert (full["images"], full["epochs"], full["train_images"]) == (80, 10.0, 8)


def test_epochs_are_turned_into_steps(teacher):
    student, config = new_model(scenes_size(32, 1, 1), teacher.tokenizer, 0), TrainConfig(batch_size=8, epochs=2)
    assert budget(student, Scenes("val", size=32), config)["steps"] == 8


def test_memory_and_hours(teacher, short_probes):
    student = new_model(scenes_size(32, 1, 1), teacher.tokenizer, 0)
    config = TrainConfig(steps=10, batch_size=8)
    alone = budget(student, Scenes("val", size=8), config)
    stored = sum(p.numel() for p in student.med.parameters()) * 4e-9
    kept = 24e-9  # mean and standard deviation of the pixels
    weights = {"student": stored + kept, "gradients": stored, "optimizer": 2 * stored, "teacher": 0}
    assert alone["memory_gb"] == pytest.approx(weights | {"saved": alone["memory_gb"]["saved"]})
    assert alone["hours"]["A100"] == pytest.approx(alone["flops"] / (19.5e12 * 0.35) / 3600)
    for precision, a100, t4 in (("bf16", 312e12, 8.1e12), ("fp16", 312e12, 65e12)):  # a T4 emulates bf16
        half = budget(student, Scenes("val", size=8), config.replace(precision=precision))
        assert half["hours"]["A100"] == pytest.approx(half["flops"] / (a100 * 0.35) / 3600)
        assert half["hours"]["T4"] == pytest.approx(half["flops"] / (t4 * 0.35) / 3600)
        assert half["memory_gb"]["saved"] < alone["memory_gb"]["saved"]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_moments_are_those_of_the_optimizer(optimizer, teacher, short_probes):
    student = new_student("scenes-student", teacher, 0)
    config = TrainConfig(steps=1, batch_size=4, weights={"itc": 1.0}, optimizer=optimizer)
    learner = Learner(student, None, config)
    made_optimizer = make_optimizer(learner, config)
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made_optimizer.step()
    moments = [m for state in made_optimizer.state.values() for name, m in state.items() if name != "step"]
    cost = budget(student, Scenes("val", size=4), config)["memory_gb"]["optimizer"]
    assert cost == pytest.approx(sum(m.nbytes for m in moments) / 1e9)


def test_micro_batches_cost_as_much_and_hold_less(teacher, short_probes):
    student, dataset = new_student("scenes-student", teacher, 0), Scenes("val", size=16)
    config = TrainConfig(steps=10, batch_size=16, weights={"hr.image": 1.0})
    whole, parts = (budget(student, dataset, config.replace(accumulate=n), teacher) for n in (1, 4))
    assert parts["images"] == whole["images"] == 160
    assert parts["flops"] == pytest.approx(whole["flops"], rel=1e-3)
    assert parts["memory_gb"]["saved"] < 0.3 * whole["memory_gb"]["saved"]


def test_dry_run_writes_no_files_and_draws_no_random_numbers(tmp_path, monkeypatch, capsys, teacher):
    monkeypatch.chdir(tmp_path)
    words = ["distill", "--teacher", "scenes/teacher", "--size", "scenes-student", "--limit", "8", "--batch-size", "8"]
    words += ["--epochs", "1200", "--start-term-at", "itm=1100", "--out", "run", "--dry-run"]
    assert main(words) == 0 and capsys.readouterr().out.startswith("1,200 steps, ")  # more than where none are named
    words[words.index("--epochs") + 1 : words.index("--out")] = ["4"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("4 steps, 32 images: 4.0 epochs of 8\n") and "this machine" in said
    assert main([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    assert list(tmp_path.iterdir()) == []
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        budget(new_student("scenes-student", teacher, 0), Scenes("val", size=8), TrainConfig(batch_size=8, steps=1))
    assert torch.equal(before, torch.get_rng_state())


def test_a_faulty_image_is_skipped(tmp_path, capsys):
    write_folder(tmp_path / "set", {"train": Scenes("val", size=9), "val": Scenes("val", size=2)})
    next((tmp_path / "set" / "images").glob("train-*0.png")).unlink()
    words = ["train", "--size", "scenes-student", "--data", str(tmp_path / "set"), "--batch-size", "8", "--epochs", "1"]
    words += ["--out", str(tmp_path / "run"), "--dry-run"]
    assert main(words) == 2 and "there is no image" in capsys.readouterr().err
    assert main([*words, "--on-error", "skip"]) == 0 and "epochs of 8" in capsys.readouterr().out


def test_invalid_options_are_refused_before_a_probe(capsys, monkeypatch):
    monkeypatch.setattr(costs, "probe", lambda *_: pytest.fail("probed"))
    words = ["distill", "--teacher", "scenes/teacher", "--size", "scenes-student", "--weights", "vlp", "--out", "run"]
    assert main([*words, "--dry-run"]) == 2
    assert "no term of hr.*" in capsys.readouterr().err
