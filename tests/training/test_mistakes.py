"""Runs that go wrong: what does not fit, folders of others, damaged checkpoints."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from torch.utils.data import get_worker_info

from dlip.checkpoints.tensors import read_tensors, write_tensors
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.models.composite import Composite
from dlip.models.fast.precision import convert_precision
from dlip.training.loop import check_fit, train
from dlip.training.recipes import RECIPES
from dlip.training.run_folder import Run
from dlip.training.weights import weights
from dlip.vlm import VLM
from tests.training.helpers import SHORT, TRAIN_SCENES, InterruptedDataset, untimed_rows

HR, VLP = weights("hr"), weights("vlp")


class Bare(Scenes):
    """Scenes that lack captions, questions or tags."""

    def __init__(self, lacks: str):
        super().__init__("val", size=8)
        self.lacks, self.fields = lacks, Scenes.fields - {lacks}

    def __getitem__(self, i: int):
        return replace(super().__getitem__(i), **{self.lacks: []})


@pytest.mark.parametrize(
    ("dataset", "changes", "says"),
    [
        (TRAIN_SCENES, dict(weights={"itc": 1.0, "hr.text": 1.0}), "hr.text needs a teacher"),
        (TRAIN_SCENES, dict(batch_size=25), "24 images, fewer than a batch of 25"),
        (Bare("captions"), dict(weights={"lm": 1.0}), "lm needs captions"),
        (Bare("questions"), dict(weights={"vqa": 1.0}), "vqa needs questions"),
        (Bare("tags"), dict(weights={"tags": 1.0}), "tags needs tags"),
    ],
)
def test_unsuitable_data_are_refused(dataset, changes, says, make_vlm, tmp_path):
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
def test_unsuitable_teachers_are_refused(teacher, changes, says, make_vlm, tmp_path):
    with pytest.raises(UserError, match=says):
        train(
            make_vlm(), TRAIN_SCENES, SHORT.replace(**changes), tmp_path / "run", make_vlm(0, **teacher), progress=False
        )
    assert not (tmp_path / "run").exists()


def test_the_recipe_vqa_learns_from_questions_alone(make_vlm, tmp_path):
    recipe = RECIPES["vqa"]
    config = SHORT.replace(steps=1, weights=weights(f"{recipe.task_terms},{recipe.teacher_terms}"))
    losses = train(make_vlm(1), Bare("captions"), config, tmp_path, make_vlm(0), progress=False).losses()
    assert all(losses[term][0] > 0 for term in config.weights)


def test_a_run_from_before_an_option_existed_is_still_that_run(make_vlm, tmp_path):
    run = train(make_vlm(), TRAIN_SCENES, SHORT.replace(steps=1), tmp_path, progress=False)
    old = json.loads((tmp_path / "run.json").read_text())
    del old["train"]["cache_features"], old["model"]["image_backbone"]
    (tmp_path / "run.json").write_text(json.dumps(old))
    assert train(make_vlm(), TRAIN_SCENES, SHORT.replace(steps=1), tmp_path, progress=False).rows() == run.rows()


def test_folder_in_use_is_refused(make_vlm, tmp_path):
    with Run(tmp_path).exclusive(), pytest.raises(UserError, match="another process trains in"):
        train(make_vlm(), TRAIN_SCENES, SHORT.replace(steps=1), tmp_path, progress=False)
    assert train(make_vlm(), TRAIN_SCENES, SHORT.replace(steps=1), tmp_path, progress=False).finished


def test_folder_with_a_model_but_no_run_is_refused(make_vlm, tmp_path):
    make_vlm().save(tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds config.json but no run to resume; choose another folder"):
        train(make_vlm(), TRAIN_SCENES, SHORT.replace(steps=1), tmp_path / "model", progress=False)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_resume_with_another_teacher_or_fewer_images_is_refused(make_vlm, tmp_path):
    config = SHORT.replace(steps=1, weights=HR)
    train(make_vlm(1), TRAIN_SCENES, config, tmp_path, make_vlm(2), progress=False)
    with pytest.raises(UserError, match=r"holds a run with another teacher \(its weights differ\); choose"):
        train(make_vlm(1), TRAIN_SCENES, config, tmp_path, make_vlm(3), progress=False)
    with pytest.raises(UserError, match="holds a run with another number of images"):
        train(make_vlm(1), Scenes("val", size=12), config, tmp_path, make_vlm(2), progress=False)
    with pytest.warns(UserWarning, match="initial weights changed since the run in .* started; it is resumed"):
        train(make_vlm(4), TRAIN_SCENES, config, tmp_path, make_vlm(2), progress=False)


def test_resume_with_another_vocabulary_is_refused(make_vlm, tmp_path):
    """Of as many words, as one that is made of texts which were mended meanwhile."""
    student, config = make_vlm(), SHORT.replace(steps=1)
    train(student, TRAIN_SCENES, config, tmp_path, progress=False)
    words = student.tokenizer.fast.to_str().replace('"circle"', '"cirkle"')
    other = VLM(make_vlm().med, Tokenizer(FastTokenizer.from_str(words)))
    assert len(other.tokenizer) == len(student.tokenizer)
    with pytest.raises(UserError, match="holds a run with another vocabulary"):
        train(other, TRAIN_SCENES, config, tmp_path, progress=False)


def test_resume_with_renamed_models_and_other_workers(make_vlm, tmp_path):
    """As from another working directory, as where a process that drew pictures was killed, and as an error advises."""

    def go(dataset, teacher, start, seed=1, workers=1):
        about, config = {"teacher": teacher, "init_from": [start]}, SHORT.replace(weights=HR, workers=workers)
        config = config.replace(nonfinite="skip" if workers else "stop")
        about["data"] = {"name": f"{teacher}/data", "split": "train-small"}
        return train(make_vlm(seed), dataset, config, tmp_path, make_vlm(2), about=about, progress=False)

    interrupted = InterruptedDataset(TRAIN_SCENES, 20)
    interrupted.fingerprint = TRAIN_SCENES.fingerprint
    with pytest.raises(KeyboardInterrupt):
        go(interrupted, "t", "s", workers=0)
    with pytest.raises(UserError, match="holds a run with another init_from; choose"):
        go(TRAIN_SCENES, "t", "../s", seed=4)
    run = go(TRAIN_SCENES, "../t", "../s")
    assert run.finished and (run.config()["train"]["workers"], run.config()["train"]["nonfinite"]) == (0, "stop")
    assert [row["step"] for row in run.rows()] == list(range(1, 7))


@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {"log_every": 3}, {"save_every": 3}], ids=str)
def test_resume_with_options_that_change_no_weight(option, make_vlm, tmp_path):
    whole, resumed = make_vlm(1), make_vlm(1)
    train(whole, TRAIN_SCENES, SHORT, tmp_path / "whole", progress=False)
    interrupted = InterruptedDataset(TRAIN_SCENES, 20)
    interrupted.fingerprint = TRAIN_SCENES.fingerprint
    with pytest.raises(KeyboardInterrupt):
        train(make_vlm(1), interrupted, SHORT, tmp_path / "run", progress=False)
    run = train(resumed, TRAIN_SCENES, SHORT.replace(**option), tmp_path / "run", progress=False)
    assert run.finished and run.config()["train"]["save_every"] == SHORT.save_every
    for (name, one), other in zip(whole.med.named_parameters(), resumed.med.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0, msg=name)
    assert [row["step"] for row in run.rows()][-2:] == ([4, 6] if "log_every" in option else [5, 6])


@pytest.mark.parametrize("what", ["data", "threads", "torch", "releases", "instructions", "code"])
def test_changed_environment_gives_a_warning(what, make_vlm, tmp_path, recwarn):
    config, path = SHORT.replace(steps=1, warmup=1), tmp_path / "run.json"
    train(make_vlm(), TRAIN_SCENES, config, tmp_path, progress=False)
    run = json.loads(path.read_text())
    path.write_text(json.dumps(run | {"inputs": run["inputs"] | {what: "other"}}))
    with pytest.warns(UserWarning, match=rf"the .*{what}\b.* changed since the run in"):
        train(make_vlm(), TRAIN_SCENES, config, tmp_path, progress=False)
    del run["inputs"][what]  # as an older version began it
    path.write_text(json.dumps(run))
    recwarn.clear()
    train(make_vlm(), TRAIN_SCENES, config, tmp_path, progress=False)
    assert not recwarn.list


def test_killed_worker_is_explained(make_vlm, tmp_path):
    class Deadly(Scenes):
        def __getitem__(self, i: int):
            if get_worker_info():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(i)

    with pytest.raises(UserError, match="a data worker was killed, .*; use fewer --workers"):
        train(make_vlm(), Deadly("val", size=24), SHORT.replace(workers=1), tmp_path, progress=False)


def test_leftover_temporaries_are_deleted(make_vlm, tmp_path):
    for name in (".env.template", ".run.json.0123abcd", ".checkpoint-00000001.safetensors.89abcdef", ".a.0123abcd"):
        (tmp_path / name).write_text("x")
    train(make_vlm(), TRAIN_SCENES, SHORT.replace(steps=1), tmp_path, progress=False)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".a.0123abcd", ".env.template", ".lock"]


def test_fp16_without_a_gpu_is_refused(make_vlm, tmp_path):
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        train(make_vlm(), TRAIN_SCENES, SHORT.replace(precision="fp16"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_folder_of_another_run_is_refused(make_vlm, tmp_path):
    train(make_vlm(), TRAIN_SCENES, SHORT.replace(steps=1), tmp_path, about={"data": "scenes"}, progress=False)
    before = (tmp_path / "run.json").read_text()
    others = [
        (make_vlm(), SHORT.replace(steps=2), {"data": "scenes"}, "another train.steps; choose"),
        (
            make_vlm(),
            SHORT.replace(steps=2, start_term_at={"itm": 1, "lm": 1}),
            {"data": "scenes"},
            "train.start_term_at, train.steps; ",
        ),
        (make_vlm(embed_dim=8), SHORT.replace(steps=1), {"data": "scenes"}, "another model.embed_dim; choose"),
        (make_vlm(), SHORT.replace(steps=1), {"data": "photos"}, "another data"),
        (make_vlm(), SHORT.replace(steps=1), {}, "another data"),
    ]
    for student, config, about, says in others:
        with pytest.raises(UserError, match=says):
            train(student, TRAIN_SCENES, config, tmp_path, about=about, progress=False)
    assert (tmp_path / "run.json").read_text() == before
    (tmp_path / "run.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match="holds a run with another data, model"):
        train(make_vlm(), TRAIN_SCENES, SHORT.replace(steps=1), tmp_path, about={"data": "scenes"}, progress=False)


def test_models_of_a_failed_run_are_as_before(make_vlm, tmp_path):
    """A notebook may go on with them."""
    student, config = make_vlm(), SHORT.replace(gradient_checkpointing=True)
    with pytest.raises(KeyboardInterrupt):
        train(student, InterruptedDataset(TRAIN_SCENES, 20), config, tmp_path, progress=False)
    assert not student.med.training
    assert not any("forward" in vars(module) for module in student.med.modules())  # which would recompute a layer


def test_run_without_checkpoints_is_replaced(make_vlm, tmp_path):
    """As one does whose cache was refused, to the same without it."""
    (tmp_path / "log.jsonl").write_text('{"step": 1, "losses": {}}\n')
    (tmp_path / "run.json").write_text('{"model": {}, "train": {"cache": true}}')
    run = train(make_vlm(), TRAIN_SCENES, SHORT.replace(steps=1), tmp_path, progress=False)
    assert run.config()["train"]["steps"] == 1 and [row["step"] for row in run.rows()] == [1]


def cut(content: bytes) -> bytes:
    return content[:2000]


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.fixture(scope="module")
def finished(make_vlm, tmp_path_factory) -> Run:
    """A finished run; tests work on copies of it."""
    return train(make_vlm(), TRAIN_SCENES, SHORT, tmp_path_factory.mktemp("finished"), progress=False)


@pytest.fixture
def run(finished, tmp_path) -> Run:
    return Run(shutil.copytree(finished.folder, tmp_path / "run"))


@pytest.mark.filterwarnings("ignore:.*resumed without it")  # of all but the last
@pytest.mark.parametrize("spoil", [cut, flipped])
@pytest.mark.parametrize("which", ["the last", "all"])
def test_damaged_checkpoint_is_renamed_and_the_previous_one_used(spoil, which, finished, run, make_vlm):
    paths = sorted(run.folder.glob("checkpoint-*"))[-1 if which == "the last" else 0 :]
    for path in paths:
        path.write_bytes(spoil(path.read_bytes()))
    (run.folder / "config.json").unlink()  # it was killed before its end
    half = run.folder / ".checkpoint-00000006.safetensors.0123abcd"  # of a process that was killed
    half.touch()
    with pytest.warns(UserWarning, match=f"{paths[-1].name}.*; resumed without it"):
        again = train(make_vlm(), TRAIN_SCENES, SHORT, run.folder, progress=False)
    assert untimed_rows(again) == untimed_rows(finished) and not half.exists()
    assert (run.folder / "model.safetensors").read_bytes() == (finished.folder / "model.safetensors").read_bytes()
    assert sorted(path.name for path in run.folder.glob("damaged-*")) == [f"damaged-{path.name}" for path in paths]


@pytest.mark.parametrize("spoil", [cut, flipped])
def test_damaged_model_is_rebuilt_from_the_last_checkpoint(spoil, run, make_vlm):
    model = run.folder / "model.safetensors"
    full = model.read_bytes()
    model.write_bytes(spoil(full))
    with pytest.warns(UserWarning, match="resumed without it, the file is now damaged-model.safetensors"):
        train(make_vlm(), TRAIN_SCENES, SHORT, run.folder, progress=False)
    assert model.read_bytes() == full and run.losses()["step"] == list(range(1, 7))


def test_half_written_log_row_is_dropped(make_vlm, tmp_path):
    run = train(make_vlm(), TRAIN_SCENES, SHORT.replace(steps=2), tmp_path, progress=False)
    rows, path = run.rows(), run.folder / "log.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "lo')
    assert run.rows() == rows


def changed(path: Path, change) -> None:
    """A checkpoint anew, with its checksum, after `change(tensors, about)`."""
    tensors, about = read_tensors(path)
    change(tensors, about)
    write_tensors(path, tensors, about)


CHANGES = {
    "another step": lambda tensors, about: about.update(step=1),
    "another run": lambda tensors, about: about.update(run="0" * 64),
}


@pytest.mark.parametrize("what", CHANGES)
def test_foreign_checkpoint_is_refused(what, run, make_vlm):
    (run.folder / "config.json").unlink()  # it was killed before its end
    last = sorted(run.folder.glob("checkpoint-*"))[-1]
    changed(last, CHANGES[what])
    with pytest.raises(UserError, match="belongs to another run or step; remove it"):
        train(make_vlm(), TRAIN_SCENES, SHORT, run.folder, progress=False)
    assert last.exists()


@pytest.mark.filterwarnings("ignore:.*resumed without it")
def test_checkpoint_without_checksum_is_damaged(run, make_vlm):
    last = sorted(run.folder.glob("checkpoint-*"))[-1]
    last.write_bytes(last.read_bytes().replace(b"sha256", b"sha255"))
    (run.folder / "config.json").unlink()  # it was killed before its end
    train(make_vlm(), TRAIN_SCENES, SHORT, run.folder, progress=False)
    assert (run.folder / f"damaged-{last.name}").exists()


def test_unsuitable_students_are_refused(make_vlm):
    vlm, config = make_vlm(), SHORT.replace(weights={"lm": 1.0, "hr.text": 1.0})
    several = VLM(Composite([make_vlm(1).med, make_vlm(2).med]), vlm.tokenizer)
    lowered = make_vlm(1)
    convert_precision(lowered.med, "bf16")
    for student, says in ((vlm, "are one model"), (several, "made of several"), (lowered, "is in bf16")):
        with pytest.raises(UserError, match=says):
            check_fit(student, vlm, TRAIN_SCENES, config)


def test_a_learning_rate_that_vanishes_gives_a_warning(make_vlm, recwarn, tmp_path):
    """25 epochs of 0.85 end at 2% of the peak, 30 at 0.9%."""
    config = SHORT.replace(schedule="epoch", decay=0.85, warmup=1)
    per_epoch = len(TRAIN_SCENES) // config.batch_size
    for long in (config.replace(steps=25 * per_epoch), config.replace(steps=30 * per_epoch, schedule="cosine")):
        check_fit(make_vlm(), None, TRAIN_SCENES, long)
    train(make_vlm(), TRAIN_SCENES, config.replace(steps=30 * per_epoch, epochs=1), tmp_path / "run", progress=False)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="ends during its warm-up of 10 steps, at 40% of the peak learning rate"):
        check_fit(make_vlm(), None, TRAIN_SCENES, config.replace(steps=4, warmup=10))
    check_fit(make_vlm(), None, TRAIN_SCENES, config.replace(steps=4, warmup=4))  # the last step has all of it
    assert len(recwarn.list) == 0
    with pytest.warns(UserWarning, match="the last step has 9e-03 of the peak learning rate"):
        check_fit(make_vlm(), None, TRAIN_SCENES, config.replace(steps=30 * per_epoch))
