"""Teachers that tokenize for themselves: CLIP, SigLIP, SigLIP 2, and BLIPs of another vocabulary than the student's."""

import re

import pytest
import torch
import torch.nn.functional as F

import dlip
from dlip import data as data_sets
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.data.collate import Collate
from dlip.data.tokenizer import Tokenizer
from dlip.experiments.config import DataConfig, ExperimentConfig
from dlip.experiments.run import prepare, train_tokenizer
from dlip.models.grid_resize import to_grid
from dlip.training.config import TrainConfig
from dlip.training.fit import check_teacher
from dlip.training.loop import train
from dlip.training.teacher import Teacher
from dlip.training.weights import weights
from dlip.vlm import VLM
from tests.checkpoints.dual_helpers import FAMILIES, dual_folder
from tests.helpers import randomize_weights
from tests.losses.helpers import Pair
from tests.training.helpers import SHORT, TRAIN_SCENES, Sparse

AT, HR, KD = weights("at"), weights("hr"), weights("kd")

TERMS = {"kd.itc": 1.0, "hr.image": 1.0, "hr.text": 1.0}
STUDENT = "scenes-student:image_width=16,text_width=16,text_layers=1,image_layers=1"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> its checkpoint's folder."""
    root = tmp_path_factory.mktemp("dual")
    return {family: str(dual_folder(root / family, family)) for family in FAMILIES}


@pytest.fixture
def foreign(make_vlm):
    """A BLIP with another vocabulary than the students of `make_vlm`."""
    teacher = make_vlm(0)
    words = [f"word{i}" for i in range(100)] + TRAIN_SCENES[0].captions
    return VLM(teacher.med, Tokenizer.train(words, teacher.med.config.vocab_size))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_distilled_from_it_alone(family, folders, tmp_path):
    config = TrainConfig(steps=3, batch_size=8, warmup=1, log_every=1, lr=1e-3, weights={"itc": 1.0, **TERMS})
    run = dlip.distill(folders[family], STUDENT, TRAIN_SCENES, folder=tmp_path, **config.to_dict())
    assert (run.log[[*TERMS]] > 0).all(axis=None)
    assert isinstance(run.student.tokenizer, Tokenizer)


def test_losses_are_those_computed_by_hand(folders):
    """From the teacher's own embeddings and states, of images at its own size and texts in its own tokens."""
    teacher, dataset = dlip.load(folders["siglip"]), TRAIN_SCENES
    student = dlip.load("scenes/student")
    batch = Collate(student.tokenizer, 64)([dataset[i] for i in range(6)])
    vocabulary = student.tokenizer.vocabulary
    distiller = Pair(student.med.config, teacher.med, TERMS, vocabulary=vocabulary, learn_teacher_projection=False)
    with torch.no_grad():
        features = student.med(batch, distiller.want("student"))
        losses = distiller(features, Teacher(teacher.med)(batch, distiller.want("teacher")))
        states = teacher.med.encode_image(teacher.med.normalize(batch.images))
        texts = teacher.med.encode_text(*teacher.tokenize(batch.captions))
        z_t = teacher.med.project_image(states) @ teacher.embed_texts(batch.captions).T / teacher.med.temp
        kl = [F.kl_div(s.log_softmax(1), t.log_softmax(1), log_target=True, reduction="batchmean")
              for s, t in ((features.logits["itc"], z_t), (features.logits["itc"].T, z_t.T))]  # fmt: skip
        torch.testing.assert_close(losses["kd.itc"], sum(kl) / 2)
        project = {name: term.student[0] for name, term in distiller.by_name.items() if name.startswith("hr.")}
        h_s, h_t = project["hr.image"](features.states("image")), to_grid(states, student.med.config.grid)
        torch.testing.assert_close(losses["hr.image"], 1 - F.cosine_similarity(h_s, h_t, dim=-1).mean())
        h_s = project["hr.text"](features.states("text")[:, 0])
        torch.testing.assert_close(losses["hr.text"], 1 - F.cosine_similarity(h_s, texts[:, 0], dim=-1).mean())


@pytest.mark.parametrize("order", ["{dual}+{blip}", "{blip}+{dual}"])
def test_a_composite_with_a_blip(order, folders, make_vlm, tmp_path):
    """The BLIP, whose vocabulary is the student's, teaches what compares tokens; ITC comes from the first."""
    blip = make_vlm(0)
    blip.save(tmp_path / "blip")
    teacher = dlip.load(order.format(dual=folders["clip"], blip=tmp_path / "blip"))
    weights = {**TERMS, "kd.itm": 1.0, "kd.lm": 1.0, "hr.fusion": 1.0, "at.cross": 1.0}
    run = train(make_vlm(), TRAIN_SCENES, SHORT.replace(weights=weights), tmp_path / "run", teacher, progress=False)
    assert set(weights) <= set(run.losses())
    first = teacher.med.members[0]
    assert teacher.med.model_for("itc") is first is teacher.med.model_for_states("image")
    assert teacher.tokenizer.fast.get_vocab() == blip.tokenizer.fast.get_vocab()


def test_terms_that_compare_tokens_are_refused_by_name(folders, make_vlm, foreign, tmp_path):
    by_token = {term: 1.0 for term in {**HR, **AT, **KD} if term not in {*TERMS, "kd.itm"}}
    for teacher in (dlip.load(folders["siglip2"]), foreign):
        for terms in ({**TERMS, **by_token}, *({term: 1.0} for term in by_token)):
            with pytest.raises(UserError, match="not trained for|compare token by token") as refused:
                train(make_vlm(), TRAIN_SCENES, SHORT.replace(weights=terms), tmp_path / "run", teacher, progress=False)
            named = {*re.findall(r"\w+\.\w+", str(refused.value).partition("; leave")[0])}
            assert named == set(terms) - set(TERMS)
    with pytest.raises(UserError, match="not trained for kd.itm; leave these terms out$"):
        weights = {"kd.itm": 1.0}
        train(make_vlm(), TRAIN_SCENES, SHORT.replace(weights=weights), tmp_path / "run", dlip.load(folders["clip"]))
    assert not (tmp_path / "run").exists()


def test_a_blip_of_another_vocabulary_teaches_by_the_text(make_vlm, foreign, tmp_path):
    """It reads the captions in its own tokens: its logits are those of its own tokenizer's batch."""
    weights, student = {**TERMS, "kd.itm": 1.0}, make_vlm()
    items = [TRAIN_SCENES[i] for i in range(6)]
    batch, own = (Collate(vlm.tokenizer, 16, foreign.med.config.max_text)(items) for vlm in (student, foreign))
    distiller = Pair(student.med.config, foreign.med, weights, vocabulary=student.tokenizer.vocabulary)
    pairs = torch.arange(6), torch.arange(6).roll(1)
    got = Teacher(foreign.med)(batch, distiller.want("teacher"), pairs)
    expected = Teacher(foreign.med)(own, distiller.want("teacher"), pairs)
    for ability in ("itc", "itm"):
        torch.testing.assert_close(got.logits[ability], expected.logits[ability])
    run = train(student, TRAIN_SCENES, SHORT.replace(weights=weights), tmp_path / "run", foreign, progress=False)
    assert set(weights) <= set(run.losses())


def test_the_students_tokenizer(folders, foreign, tmp_path):
    """That of the first BLIP of its teacher, or of another model by name; else it is trained on the data."""
    foreign.save(tmp_path / "blip")
    data, words = DataConfig(limit=8), {}
    for name, changes in {
        "clip": dict(teacher=folders["clip"]),
        "both": dict(teacher=f"{folders['clip']}+{tmp_path / 'blip'}"),
        "named": dict(teacher=str(tmp_path / "blip"), tokenizer="scenes/student"),
    }.items():
        config = TrainConfig(weights={"itc": 1.0, **TERMS}, batch_size=8)
        experiment = ExperimentConfig(STUDENT, role="distilled", data=data, train=config, **changes)
        ready = prepare(experiment, verify=False)
        words[name] = ready.student.tokenizer.fast.get_vocab()
        assert ready.compared is ready.teacher
        check_teacher(ready.student, ready.teacher, experiment.train.weights)
    trained = train_tokenizer(data_sets.open("scenes", "train-small", 8))
    assert words["clip"] == trained.fast.get_vocab()
    assert words["both"] == foreign.tokenizer.fast.get_vocab()
    assert words["named"] == dlip.load("scenes/student").tokenizer.fast.get_vocab()


def test_their_outputs_are_not_cached(folders, make_vlm, foreign, tmp_path):
    config = SHORT.replace(weights=TERMS, cache=True)
    for teacher in (dlip.load(folders["clip"]), foreign):
        with pytest.raises(UserError, match="another vocabulary, cannot be cached"):
            train(make_vlm(), TRAIN_SCENES, config, tmp_path / "run", teacher, progress=False, cache=tmp_path / "cache")


def test_the_command_refuses_in_one_line(folders, tmp_path, capsys):
    words = f"distill --teacher {folders['clip']} --size {STUDENT} --data scenes --limit 8 --steps 2 --batch-size 4"
    assert main([*words.split(), "--weights", "hr,at", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip()
    assert "hr.fusion, hr.decoder, at.self, at.cross" in error and len(error.splitlines()) == 1


def test_pooled_states_are_a_mean_over_captions(make_vlm, foreign, tmp_path):
    """Not over tokens, however the batch is cut."""
    config, losses = SHORT.replace(steps=1, warmup=0, weights={"hr.text": 1.0}, batch_size=24), []
    randomize_weights(foreign.med, 2)
    for accumulate in (1, 4, 12):
        student, cut = make_vlm(1), config.replace(accumulate=accumulate)
        randomize_weights(student.med, 1)
        run = train(student, Sparse("val", size=24), cut, tmp_path / f"{accumulate}", foreign, progress=False)
        losses += run.losses()["hr.text"]
    assert losses[1:] == pytest.approx([losses[0]] * 2, abs=1e-5)
