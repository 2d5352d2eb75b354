"""The teacher's outputs on disk: equal to live ones, filled once, safe against a kill, never stale."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.normalizers import BertNormalizer

from dlip.checkpoints.tensors import read_tensors
from dlip.common.errors import UserError
from dlip.common.files import exclusive_lock
from dlip.data.collate import Collate
from dlip.data.dataset import FirstN
from dlip.data.loader import ResumableBatchSampler, train_loader
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.models.features import hard_negatives
from dlip.models.med import Med
from dlip.training.caches import disk
from dlip.training.caches.disk import lock_path
from dlip.training.caches.teacher import TeacherCache, cached_outputs
from dlip.training.config import TrainConfig
from dlip.training.loop import train
from dlip.training.teacher import Teacher
from dlip.training.weights import weights
from dlip.vlm import VLM
from tests.helpers import shaken
from tests.losses.helpers import Pair
from tests.training.helpers import InterruptedDataset

AT, HR, KD, VLP = weights("at"), weights("hr"), weights("kd"), weights("vlp")

LAYERS = {"image": ((0, 0),), "fusion": ((0, 0), (1, 1)), "decoder": ((0, 1),)}


@pytest.fixture(scope="module")
def images() -> Scenes:
    return Scenes("train-small", size=40)


@pytest.fixture
def teacher(tiny) -> VLM:
    torch.manual_seed(3)
    med = Med(replace(tiny.med.config, fusion_layers=(0, 1), prompt_ids=(9, 10)))
    shaken(med, 0.1)
    return VLM(med, tiny.tokenizer, "teacher")


class SomeSilent(FirstN):
    """Every third image, and all from the 32nd on, have no caption: some batches of filling have none at all."""

    def __getitem__(self, i):
        item = super().__getitem__(i)
        return replace(item, captions=[]) if i % 3 == 1 or i >= 32 else item

    def without_image(self, i):
        return replace(self[i], image=None)


def collate_for(vlm: VLM) -> Collate:
    return Collate(vlm.tokenizer, 48, max_text=40)


def batches(vlm: VLM, images, count: int = 3):
    return train_loader(images, ResumableBatchSampler(len(images), 8, count, seed=0), collate_for(vlm))


@pytest.mark.parametrize(
    ("layers", "precision", "captioned"),
    [({}, "fp32", "all"), (LAYERS, "fp32", "all"), (LAYERS, "fp32", "some"), ({}, "bf16", "all")],
    ids=["last layers", "chosen layers", "some images without captions", "bf16"],
)
def test_cached_outputs_equal_live_ones(layers, precision, captioned, teacher, images, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "BATCH_IMAGES", 8)
    images = SomeSilent(images, 40) if captioned == "some" else images
    bits = {"rtol": 1e-2, "atol": 0.05} if precision == "fp32" else {"rtol": 0.1, "atol": 0.2}
    if precision == "bf16":
        teacher.med.bfloat16()
    live = Teacher(teacher.med)
    cached = TeacherCache(tmp_path, live, images, collate_for(teacher), layers)
    distiller = Pair(teacher.med.config, teacher.med, {**HR, **AT, **KD}, layers)
    want = distiller.want("teacher")
    for batch in batches(teacher, images):
        pairs = hard_negatives(torch.randn(8, 8), batch.image_id)
        actual, expected = cached(batch, want, pairs), live(batch, want, pairs)
        assert actual.logits.keys() == expected.logits.keys() == {"itc", "itm", "lm", "vqa"}
        for task, logits in expected.logits.items():
            real = {"lm": expected.labels["lm"] >= 0}.get(task, ...)
            assert torch.allclose(actual.logits[task][real].float(), logits[real].float(), **bits), task
        for (source, kind), asked in want.layers.items():
            for layer in asked:
                if kind == "states":
                    kept, true = actual.states(source, layer), expected.states(source, layer)
                else:
                    kept, true = actual.maps(source, kind, layer), expected.maps(source, kind, layer).mean(1, True)
                rows = ... if source == "image" else expected.text_mask(source)
                kept, true = (kept, true) if kind == "states" else (kept[:, 0], true[:, 0])
                close = 2e-3 if precision == "fp32" else 2e-2 if kind == "states" else 4e-3
                assert torch.allclose(kept[rows], true[rows].float(), rtol=close, atol=close), (source, kind, layer)


def test_layers_without_cross_attention_are_cached(tiny, images, tmp_path):
    """Only the second layer has cross-attention: of the first, states are cached but no map."""
    layers = {"fusion": ((0, 0),)}
    live = Teacher(copy.deepcopy(tiny.med))  # Teacher freezes its model, and other tests train `tiny`
    cached = TeacherCache(tmp_path, live, images, collate_for(tiny), layers)
    want = Pair(tiny.med.config, tiny.med, HR, layers).want("teacher")
    batch = next(iter(batches(tiny, images)))
    kept, true = (model(batch, want).states("fusion", 0)[batch.mask] for model in (cached, live))
    torch.testing.assert_close(kept, true, atol=2e-3, rtol=2e-3)


def test_works_without_fallocate(teacher, images, tmp_path, monkeypatch):
    def stored(root: str) -> dict[str, bytes]:
        cache = TeacherCache(tmp_path / root, Teacher(teacher.med), images, collate_for(teacher))
        return {path.name: path.read_bytes() for path in cache.folder.glob("*.f16")}

    expected = stored("with")
    monkeypatch.delattr(os, "posix_fallocate")
    assert stored("without") == expected


def test_loss_of_equal_models_is_zero(teacher, images, tmp_path):
    cached = TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher))
    distiller = Pair(teacher.med.config, teacher.med, {**HR, **AT, **KD})
    for batch in batches(teacher, images):
        with torch.no_grad():
            mine = teacher.med(batch, distiller.want("student"))
            losses = distiller(mine, cached(batch, distiller.want("teacher"), mine.pairs))
        for term, loss in losses.items():
            assert loss.abs() < (1e-5 if term.startswith("at.") else 1e-3), term


def test_filled_once(teacher, images, tmp_path, monkeypatch):
    first = TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher))
    monkeypatch.setattr(TeacherCache, "_fill_rows", lambda *_: pytest.fail("filled again"))
    again = TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher))
    assert again.folder == first.folder


def test_key_depends_on_teacher_data_and_tokenizer(teacher, images, tmp_path):
    live, collate = Teacher(teacher.med), collate_for(teacher)
    folders = [TeacherCache(tmp_path, live, images, collate).folder]
    folders.append(TeacherCache(tmp_path, live, FirstN(images, 20), collate).folder)
    folders.append(TeacherCache(tmp_path, live, Scenes("train-small", seed=1, size=40), collate).folder)
    folders.append(TeacherCache(tmp_path, live, images, replace(collate, max_text=12)).folder)
    folders.append(TeacherCache(tmp_path, live, images, replace(collate, image_size=64)).folder)
    folders.append(TeacherCache(tmp_path, live, images, collate, LAYERS).folder)
    cased = Tokenizer(FastTokenizer.from_str(collate.tokenizer.fast.to_str()))
    cased.fast.normalizer = BertNormalizer(lowercase=False)  # the same vocabulary, another normalization
    folders.append(TeacherCache(tmp_path, live, images, replace(collate, tokenizer=cased)).folder)
    with torch.no_grad():
        teacher.med.vision_proj.bias[0] += 1e-3
    folders.append(TeacherCache(tmp_path, live, images, collate).folder)
    assert len(set(folders)) == len(folders)


def test_values_beyond_float16_are_refused(teacher, images, tmp_path):
    with torch.no_grad():
        teacher.med.vision_model.post_layernorm.bias[0] = 1e5
    with pytest.raises(UserError, match=r"the teacher's image\S+ has values up to 1e\+05, .* train without the cache"):
        TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher))


def test_cache_beyond_the_limit_is_refused(teacher, images, tmp_path):
    with pytest.raises(UserError, match=r"would take 0\.0 GB, more than the 1e-05 GB allowed"):
        TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher), max_gb=1e-5)


@pytest.mark.parametrize("gb", [float("nan"), float("inf"), 0.0, -1.0])
def test_invalid_limit_is_refused(teacher, images, tmp_path, gb):
    with pytest.raises(UserError, match="use a finite number above 0"):
        TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher), max_gb=gb)


def test_least_recently_opened_caches_are_deleted(teacher, images, tmp_path):
    live = Teacher(teacher.med)

    def opened(max_text: int, gb: float = 1.0) -> Path:
        return TeacherCache(tmp_path, live, images, replace(collate_for(teacher), max_text=max_text), max_gb=gb).folder

    first, second = opened(40), opened(39)
    for folder, seconds in ((first, 2), (second, 1)):
        os.utime(folder, (0, seconds))
    assert opened(40) == first and first.stat().st_mtime > 2  # opened again, it is the latest
    (tmp_path / "other").mkdir()
    size_gb = sum(file.stat().st_size for file in first.glob("*.f16")) / 1e9
    third = opened(38, 2.5 * size_gb)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"other", first.name, third.name}
    with exclusive_lock(lock_path(first)):  # as while it is filled
        fourth = opened(37, 1.1 * size_gb)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"other", first.name, fourth.name}


def test_data_without_captions_are_refused(teacher, images, tmp_path):
    class Silent(FirstN):
        def __getitem__(self, i):
            return replace(super().__getitem__(i), captions=[])

        def without_image(self, i):
            return replace(self[i], image=None)

    with pytest.raises(UserError, match="scenes has no captions"):
        TeacherCache(tmp_path, Teacher(teacher.med), Silent(images, 8), collate_for(teacher))


FILL = """
from dlip.training.caches.teacher import TeacherCache
from dlip.data.collate import Collate
from dlip.data.scenes.dataset import Scenes
from dlip.training.teacher import Teacher
from dlip.vlm import VLM
import dlip.training.caches.disk
dlip.training.caches.disk.BLOCK_IMAGES = 16
vlm = VLM.load({model!r})
TeacherCache({root!r}, Teacher(vlm.med), Scenes("train-small", size=200), Collate(vlm.tokenizer, 48, max_text=40))
"""


def test_killed_filling_resumes_to_the_same_bytes(teacher, tmp_path, monkeypatch):
    teacher.save(tmp_path / "model")
    teacher.med.eval()
    root = tmp_path / "killed"
    code = FILL.format(model=str(tmp_path / "model"), root=str(root))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(root.glob("*/cache.json")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (state,) = root.glob("*/cache.json")
    assert 0 < (filled := 16 * len(json.loads(state.read_text())["crc32"])) < 200
    monkeypatch.setattr("dlip.training.caches.disk.BLOCK_IMAGES", 16)
    rows, fill = [], TeacherCache._fill_rows
    monkeypatch.setattr(TeacherCache, "_fill_rows", lambda *given: rows.extend(given[1]) or fill(*given))
    images = Scenes("train-small", size=200)
    resumed = TeacherCache(root, Teacher(teacher.med), images, collate_for(teacher))
    assert rows == list(range(filled, 200))
    full = TeacherCache(tmp_path / "whole", Teacher(teacher.med), images, collate_for(teacher))
    assert resumed.folder.name == full.folder.name
    for column, values in full.columns.items():
        assert (values == resumed.columns[column]).all(), column


def test_training_with_a_cache_resumes_bit_exactly(teacher, tiny, images, tmp_path):
    config = TrainConfig(
        steps=6, batch_size=8, warmup=2, log_every=1, save_every=2, weights={**VLP, **HR, **AT, **KD}, cache=True,
        layers={"image": ((0, 0),)},
    )  # fmt: skip

    def run(folder, data=images):
        torch.manual_seed(5)
        student = VLM(Med(replace(tiny.med.config, prompt_ids=(9, 10))), tiny.tokenizer, "student")
        return train(student, data, config, folder, teacher, progress=False, cache=tmp_path / "cache")

    full, interrupted = run(tmp_path / "whole"), InterruptedDataset(images, 30)  # in the fourth step
    interrupted.fingerprint = images.fingerprint
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", interrupted)
    resumed = run(tmp_path / "stopped")
    weights = [read_tensors(r.folder / "model.safetensors")[0] for r in (full, resumed)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_augmented_images_cannot_be_cached():
    with pytest.raises(UserError, match="unaugmented"):
        TrainConfig(cache=True, augment=True)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("column", ["image.embed", "text.embed", "fusion.cross.-1", "decoder.self.-1"])
@pytest.mark.parametrize("at", [0, -1])
def test_damaged_blocks_are_computed_again(column, at, teacher, images, tmp_path, monkeypatch):
    monkeypatch.setattr("dlip.training.caches.disk.BLOCK_IMAGES", 16)
    rows, fill = [], TeacherCache._fill_rows
    monkeypatch.setattr(TeacherCache, "_fill_rows", lambda *given: rows.append(given[1]) or fill(*given))
    path = TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher)).folder / f"{column}.f16"
    before = path.read_bytes()
    flip(path, at)
    rows.clear()
    with pytest.warns(UserWarning, match=r"outputs of (16|8) images in .* were damaged and computed again"):
        TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher))
    assert path.read_bytes() == before and rows == ([range(16)] if at == 0 else [range(32, 40)])
    TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher))
    assert len(rows) == 1


@pytest.mark.parametrize("damage", ["no column", "short column", "no lengths", "damaged lengths", "damaged checksums"])
def test_missing_files_are_filled_again(damage, teacher, images, tmp_path):
    def kept() -> tuple[dict[str, bytes], Path]:
        cache = TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher))
        return {path.name: path.read_bytes() for path in cache.folder.glob("*.f16")}, cache.folder

    before, folder = kept()
    column = folder / "image.embed.f16"
    if damage == "no column":
        column.unlink()
    elif damage == "short column":
        column.write_bytes(column.read_bytes()[:100])
    elif damage == "no lengths":
        (folder / "lengths.safetensors").unlink()
    elif damage == "damaged lengths":
        flip(folder / "lengths.safetensors", -1)
    else:
        (folder / "cache.json").write_text('{"crc')
    assert kept()[0] == before and any(before["image.embed.f16"])


def test_bf16_teacher_has_its_own_cache(teacher, images, tmp_path):
    first = TeacherCache(tmp_path, Teacher(teacher.med), images, collate_for(teacher)).folder
    assert TeacherCache(tmp_path, Teacher(teacher.med.bfloat16()), images, collate_for(teacher)).folder != first


def test_negative_layers_without_cross_attention_have_no_cross_map():
    layers = cached_outputs({"fusion": ((-2, -1),)}, (1,)).layers
    assert layers["fusion", "self"] == (-2, -1) and layers["fusion", "cross"] == (-1,)
