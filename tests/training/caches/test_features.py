"""Cached features of image backbones: equal to live ones, shared by seeds, the same views for student and teacher."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from dlip.common.errors import UserError
from dlip.data.batch import Batch
from dlip.data.collate import Collate
from dlip.data.dataset import FirstN
from dlip.data.loader import ResumableBatchSampler, train_loader
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.run import new_student
from dlip.training.caches.features import FeatureCache
from dlip.training.config import TrainConfig
from dlip.training.loop import train
from dlip.vlm import VLM
from tests.helpers import TINY_BACKBONE

LOSSES = {"itc": 1.0, "itm": 1.0, "lm": 1.0, "vqa": 1.0, "hr.image": 1.0, "at.cross": 1.0}
CONFIG = TrainConfig(
    steps=4, batch_size=4, warmup=1, lr=1e-4, weights=LOSSES, augment=True, cache_features=2, save_every=2, log_every=1,
    learn_teacher_projection=False,
)  # fmt: skip


class Counted(Scenes):
    """Scenes that count how often each image is drawn."""

    def __init__(self, size: int):
        super().__init__("train-small", size=size)
        self.drawn = [0] * size

    def __getitem__(self, i: int):
        self.drawn[i] += 1
        return super().__getitem__(i)

    def fingerprint(self) -> str:
        return "counted"


@pytest.fixture
def student() -> VLM:
    return new_student(TINY_BACKBONE, VLM.load("scenes/teacher"), seed=0)


@pytest.mark.parametrize(("stages", "tolerance"), [(0, 1e-3), (2, 5e-3)])
def test_features_equal_live_ones_of_the_same_view(stages, tolerance, student, tmp_path):
    """They are kept in float16, whose rounding the trained stages pass on."""
    images, backbone = Scenes("train-small", size=12), student.med.vision_model.embeddings.backbone
    if stages:
        backbone.train_last(stages)
    collate = Collate(student.tokenizer, 72, augment=True, views=2)
    cache = FeatureCache(tmp_path, student.med, images, collate, nullcontext, "fp32")
    batches = list(train_loader(images, ResumableBatchSampler(12, 4, 9, seed=0), collate))
    assert [int(batch.views[0]) for batch in batches] == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    for batch in batches:
        with torch.no_grad():
            live, cached = backbone(student.med.normalize(batch.images)), backbone(cache(batch))
        torch.testing.assert_close(cached, live, rtol=1e-3, atol=tolerance)
    assert not (cache.columns[0] == cache.columns[1]).all()


def test_a_cache_is_shared_by_seeds_but_not_by_weights(student, tmp_path):
    images = Scenes("train-small", size=4)

    def folder(dataset=images, augment=True, precision="fp32", **options):
        collate = Collate(student.tokenizer, 72, augment=augment, **options)
        return FeatureCache(tmp_path, student.med, dataset, collate, nullcontext, precision).folder

    first = folder(views=2)
    assert folder(views=2, seed=5) == first
    others = [
        folder(views=1), folder(Scenes("val", size=4), views=2), folder(augment=False, views=2),
        folder(flip=True, views=2), folder(precision="bf16", views=2),
    ]  # fmt: skip
    assert len({first, *others}) == 6
    next(student.med.vision_model.embeddings.backbone.parameters()).data += 0.1
    assert folder(views=2) != first


def test_the_caches_of_a_run_do_not_delete_each_other(student, tmp_path):
    images = Scenes("train-small", size=4)

    def cache(views: int, max_gb: float, keep=()):
        collate = Collate(student.tokenizer, 72, augment=True, views=views)
        return FeatureCache(tmp_path, student.med, images, collate, nullcontext, "fp32", max_gb, keep).folder

    gb = 4 * 9 * 1280 * 2 / 1e9
    first = cache(views=1, max_gb=1.5 * gb)
    with pytest.raises(UserError, match="image features would take"):
        cache(views=2, max_gb=2.5 * gb, keep=[first])
    cache(views=2, max_gb=3.5 * gb, keep=[first])
    assert cache(views=1, max_gb=1.5 * gb, keep=[first]) == first  # counted once
    assert (first / "view.0.f16").is_file()
    cache(views=3, max_gb=3.5 * gb)
    assert not first.exists()


def test_key_depends_on_the_size_and_normalization_of_images(student, tmp_path):
    images = Scenes("train-small", size=2)

    def folder(size: int = 72):
        collate = Collate(student.tokenizer, size, views=1)
        return FeatureCache(tmp_path, student.med, images, collate, nullcontext, "fp32").folder

    folders = [folder(), folder(96)]
    student.med.config = replace(student.med.config, image_mean=(0.1, 0.2, 0.3))
    assert len({*folders, folder()}) == 3


def test_features_are_read_in_the_precision_of_the_model(student):
    batch = Batch(torch.empty(2, 0), torch.arange(2), *student.tokenize(["a", "b"]), features=torch.rand(2, 9, 1280))
    assert student.med.bfloat16().encode_image(student.med.pixels_of(batch)).dtype == torch.bfloat16


def test_images_are_read_to_fill_the_cache_and_once_for_their_texts(student, tmp_path):
    images = Counted(4)
    config = CONFIG.replace(weights={"itc": 1.0})
    train(student, images, config, tmp_path / "run", progress=False, cache=tmp_path / "cache")
    assert images.drawn[1:] == [2, 2, 2]


def test_a_student_equal_to_its_teacher_loses_nothing(student, tmp_path):
    """Both see the same view of each image."""
    teacher = VLM(copy.deepcopy(student.med), student.tokenizer, "teacher")
    run = train(student, Scenes("train-small", size=8), CONFIG, tmp_path / "run", teacher, progress=False,
                cache=tmp_path / "cache")  # fmt: skip
    first = run.rows()[0]["losses"]
    assert abs(first["hr.image"]) < 1e-5 and abs(first["at.cross"]) < 1e-5


@pytest.mark.parametrize("trained", [{}, {"backbone_lr": 1e-4, "backbone_stages": 2}])
def test_a_resumed_run_equals_an_uninterrupted_one(trained, student, tmp_path):
    images, teacher = Scenes("train-small", size=8), VLM.load("scenes/teacher")

    def run(folder: str, model: VLM, on_row=None):
        config = CONFIG.replace(**trained)
        return train(model, images, config, tmp_path / folder, teacher, progress=False, cache=tmp_path / "cache",
                     on_row=on_row)  # fmt: skip

    def stop(row: dict) -> None:
        if row["step"] == 3:
            raise KeyboardInterrupt

    whole = run("whole", copy.deepcopy(student)).model()
    with pytest.raises(KeyboardInterrupt):
        run("stopped", copy.deepcopy(student), stop)
    other = copy.deepcopy(student)  # as where the folder of --init-from was trained again meanwhile
    for parameter in other.med.vision_model.embeddings.backbone.parameters():
        parameter.data *= 1.1
    with pytest.warns(UserWarning, match="the student's initial weights changed"):
        resumed = run("stopped", other).model()
    for (name, tensor), other in zip(whole.med.state_dict().items(), resumed.med.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_without_a_frozen_backbone_it_is_refused(student, tiny, tmp_path):
    images = FirstN(Scenes("train-small"), 8)
    for model, config in ((tiny, CONFIG), (student, CONFIG.replace(backbone_lr=1e-4))):
        with pytest.raises(UserError, match="no model has a frozen image backbone"):
            train(model, images, config.replace(weights={"itc": 1.0}), tmp_path / "run")
    with pytest.raises(UserError, match="without augmentation all views of an image are equal"):
        CONFIG.replace(augment=False)
    with pytest.raises(UserError, match="the student has no image backbone"):
        train(tiny, images, TrainConfig(weights={"itc": 1.0}, batch_size=4, backbone_lr=1e-4), tmp_path / "run")


def test_cached_teacher_outputs_and_features_go_together(student, tmp_path):
    """With one view, unaugmented: the losses of a run without caches."""
    teacher = VLM(copy.deepcopy(student.med), student.tokenizer, "teacher")
    student.med.vision_proj.weight.data += 0.1
    rows, start = [], copy.deepcopy(student.med.state_dict())
    config = CONFIG.replace(augment=False, weights={"itc": 1.0, "hr.image": 1.0, "hr.fusion": 1.0}, cache_features=1)
    for cached in (True, False):
        student.med.load_state_dict(start)
        changes = {"cache": True} if cached else {"cache_features": 0}
        run = train(student, Scenes("train-small", size=8), config.replace(**changes), tmp_path / f"{cached}", teacher,
                    progress=False, cache=tmp_path / "cache")  # fmt: skip
        rows.append(run.rows()[0]["losses"])
    assert rows[0] == pytest.approx(rows[1], abs=2e-3)
