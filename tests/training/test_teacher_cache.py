"""The teacher's outputs on disk: as computed live, filled once, safe against a kill, never stale."""

import copy
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.normalizers import BertNormalizer

from dlip.checkpoints.tensors import read_tensors, write_tensors
from dlip.common.errors import UserError
from dlip.common.files import own_file
from dlip.data import FirstN
from dlip.data.collate import Collate
from dlip.data.loader import ResumableBatchSampler, train_loader
from dlip.data.scenes.dataset import Scenes
from dlip.data.tokenizer import Tokenizer
from dlip.models.features import hard_negatives
from dlip.models.med import Med
from dlip.training.config import TrainConfig
from dlip.training.distillation import Distiller, Teacher
from dlip.training.loop import train
from dlip.training.teacher_cache import TeacherCache, locked, make_room
from dlip.training.terms import AT, HR, KD, VLP
from dlip.vlm import VLM

LAYERS = {"image": ((0, 0),), "fusion": ((0, 0), (1, 1)), "decoder": ((0, 1),)}


@pytest.fixture(scope="module")
def pictures() -> Scenes:
    return Scenes("train-small", size=40)


@pytest.fixture
def teacher(tiny) -> VLM:
    torch.manual_seed(3)
    med = Med(replace(tiny.med.config, fusion_layers=(0, 1), prompt_ids=(9, 10)))
    for parameter in med.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return VLM(med, tiny.tokenizer, "teacher")


def collate_for(vlm: VLM) -> Collate:
    return Collate(vlm.tokenizer, 48, train=True, max_text=40)


def batches(vlm: VLM, pictures, count: int = 3):
    return train_loader(pictures, ResumableBatchSampler(len(pictures), 8, count, seed=0), collate_for(vlm))


@pytest.mark.parametrize(
    ("layers", "precision"), [({}, "fp32"), (LAYERS, "fp32"), ({}, "bf16")], ids=["last layers", "chosen", "bf16"]
)
def test_reads_what_the_teacher_says(layers, precision, teacher, pictures, tmp_path):
    bits = {"rtol": 1e-2, "atol": 0.05} if precision == "fp32" else {"rtol": 0.1, "atol": 0.2}
    if precision == "bf16":
        teacher.med.bfloat16()
    live = Teacher(teacher.med)
    cached = TeacherCache(tmp_path, live, pictures, collate_for(teacher), layers)
    distiller = Distiller(teacher.med.config, teacher.med.config, {**HR, **AT, **KD}, layers)
    want = distiller.want("teacher")
    for batch in batches(teacher, pictures):
        pairs = hard_negatives(torch.randn(8, 8), batch.image_id)
        ours, theirs = cached(batch, want, pairs), live(batch, want, pairs)
        assert ours.logits.keys() == theirs.logits.keys() == {"itc", "itm", "lm", "vqa"}
        for task, logits in theirs.logits.items():
            real = {"lm": theirs.labels["lm"] >= 0}.get(task, ...)
            assert torch.allclose(ours.logits[task][real].float(), logits[real].float(), **bits), task
        for (source, kind), asked in want.layers.items():
            for layer in asked:
                if kind == "states":
                    kept, true = ours.states(source, layer), theirs.states(source, layer)
                else:
                    kept, true = ours.maps(source, kind, layer), theirs.maps(source, kind, layer).mean(1, True)
                rows = ... if source == "image" else theirs.text_mask(source)
                kept, true = (kept, true) if kind == "states" else (kept[:, 0], true[:, 0])
                close = 2e-3 if precision == "fp32" else 2e-2
                assert torch.allclose(kept[rows], true[rows].float(), rtol=close, atol=close), (source, kind, layer)


def test_layers_without_cross_attention_can_be_named(tiny, pictures, tmp_path):
    """Where only the second layer fuses, states of the first are kept, and no map of it is asked for."""
    layers = {"fusion": ((0, 0),)}
    live = Teacher(copy.deepcopy(tiny.med))  # a teacher's weights learn no more, and others use `tiny`
    cached = TeacherCache(tmp_path, live, pictures, collate_for(tiny), layers)
    want = Distiller(tiny.med.config, tiny.med.config, HR, layers).want("teacher")
    assert cached(next(iter(batches(tiny, pictures))), want).states("fusion", 0).shape[-1] == tiny.med.config.text_width


def test_a_system_without_fallocate_has_a_cache_too(teacher, pictures, tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    cached = TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher))
    assert all(path.stat().st_size for path in cached.folder.glob("*.f16"))


def test_a_student_equal_to_its_teacher_loses_nothing(teacher, pictures, tmp_path):
    cached = TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher))
    distiller = Distiller(teacher.med.config, teacher.med.config, {**HR, **AT, **KD})
    for batch in batches(teacher, pictures):
        with torch.no_grad():
            mine = teacher.med(batch, distiller.want("student"))
            losses = distiller(mine, cached(batch, distiller.want("teacher"), mine.pairs))
        assert all(loss.abs() < 1e-3 for loss in losses.values()), losses


def test_is_filled_once(teacher, pictures, tmp_path, monkeypatch):
    first = TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher))
    monkeypatch.setattr(TeacherCache, "_fill_rows", lambda *_: pytest.fail("filled again"))
    again = TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher))
    assert again.folder == first.folder


def test_another_teacher_data_or_text_length_has_another_cache(teacher, pictures, tmp_path):
    live, collate = Teacher(teacher.med), collate_for(teacher)
    folders = [TeacherCache(tmp_path, live, pictures, collate).folder]
    folders.append(TeacherCache(tmp_path, live, FirstN(pictures, 20), collate).folder)
    folders.append(TeacherCache(tmp_path, live, Scenes("train-small", seed=1, size=40), collate).folder)
    folders.append(TeacherCache(tmp_path, live, pictures, replace(collate, max_text=12)).folder)
    folders.append(TeacherCache(tmp_path, live, pictures, collate, LAYERS).folder)
    cased = Tokenizer(FastTokenizer.from_str(collate.tokenizer.fast.to_str()))
    cased.fast.normalizer = BertNormalizer(lowercase=False)  # the same words, read otherwise
    folders.append(TeacherCache(tmp_path, live, pictures, replace(collate, tokenizer=cased)).folder)
    with torch.no_grad():
        teacher.med.vision_proj.bias[0] += 1e-3
    folders.append(TeacherCache(tmp_path, live, pictures, collate).folder)
    assert len(set(folders)) == len(folders)


def test_numbers_that_the_cache_cannot_hold_are_told(teacher, pictures, tmp_path):
    with torch.no_grad():
        teacher.med.vision_model.post_layernorm.bias[0] = 1e5
    with pytest.raises(UserError, match=r"the teacher's image\S+ has numbers up to 1e\+05, .* train without the cache"):
        TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher))


def test_a_folder_that_is_removed_while_it_is_waited_for_is_made_anew(tmp_path):
    folder, entered = tmp_path / "cache", threading.Event()

    def wait():
        with locked(folder):
            assert (folder / "lock").is_file()
            entered.set()

    with locked(folder):
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not entered.wait(0.5)
        shutil.rmtree(folder)
    waiting.join(30)
    assert entered.is_set()


def test_too_large_a_cache_is_refused(teacher, pictures, tmp_path):
    with pytest.raises(UserError, match=r"would take 0\.0 GB, more than the 1e-05 GB allowed"):
        TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher), max_gb=1e-5)


@pytest.mark.parametrize("gb", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_limit_that_is_none_removes_nothing(teacher, pictures, tmp_path, gb):
    with pytest.raises(UserError, match="give a finite number above 0"):
        TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher), max_gb=gb)


def test_caches_opened_longest_ago_give_way(teacher, pictures, tmp_path):
    live = Teacher(teacher.med)

    def opened(max_text: int, gb: float = 1.0) -> Path:
        return TeacherCache(
            tmp_path, live, pictures, replace(collate_for(teacher), max_text=max_text), max_gb=gb
        ).folder

    first, second = opened(40), opened(12)
    for folder, seconds in ((first, 2), (second, 1)):
        os.utime(folder / "lock", (0, seconds))
    assert opened(40) == first and (first / "lock").stat().st_mtime > 2  # opened again, it is the last
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lock").touch()  # not a cache's
    each = sum(file.stat().st_size for file in first.glob("*.f16")) / 1e9
    third = opened(20, 2.5 * each)
    assert {folder.name for folder in tmp_path.iterdir()} == {"other", first.name, third.name}
    with open(first / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process fills it
        fourth = opened(16, 1.1 * each)
    assert {folder.name for folder in tmp_path.iterdir()} == {"other", first.name, fourth.name}


def test_processes_that_make_room_at_once_do_not_stumble(tmp_path, monkeypatch):
    """Over what the other has removed: before it was looked at, or before it could be locked."""
    gone, going, left = (tmp_path / (digit * 24) for digit in "abc")
    for folder in (gone, going, left):
        folder.mkdir()
        (folder / "text.embed.f16").write_bytes(bytes(1000))
    (gone / "lock").symlink_to("nothing")
    for seconds, folder in enumerate((going, left)):
        (folder / "lock").touch()
        os.utime(folder / "lock", (0, seconds))
    monkeypatch.setattr(
        "dlip.training.teacher_cache.own_file", lambda lock: shutil.rmtree(lock.parent) or own_file(lock)
    )
    make_room(tmp_path / "mine", 1500 / 1e9)
    assert left.exists() and not going.exists()


def test_pictures_without_captions_are_refused(teacher, pictures, tmp_path):
    class Silent(FirstN):
        def __getitem__(self, i):
            item = super().__getitem__(i)
            return replace(item, captions=[]) if i == 3 else item

    with pytest.raises(UserError, match="scenes has 1 picture without a caption"):
        TeacherCache(tmp_path, Teacher(teacher.med), Silent(pictures, 8), collate_for(teacher))


FILL = """
import sys, torch
sys.path.insert(0, {tests!r})
from dlip.training.teacher_cache import TeacherCache
from dlip.data.collate import Collate
from dlip.data.scenes.dataset import Scenes
from dlip.training.distillation import Teacher
from dlip.vlm import VLM
import dlip.training.teacher_cache
dlip.training.teacher_cache.FLUSH = 16
vlm = VLM.load({model!r})
TeacherCache({root!r}, Teacher(vlm.med), Scenes("train-small", size=200), Collate(vlm.tokenizer, 48, max_text=40))
"""


def test_killed_while_filling_it_goes_on_to_the_same_bytes(teacher, tmp_path, monkeypatch):
    teacher.save(tmp_path / "model")
    teacher.med.eval()
    root = tmp_path / "killed"
    code = FILL.format(tests="", model=str(tmp_path / "model"), root=str(root))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(root.glob("*/cache.json")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (state,) = root.glob("*/cache.json")
    assert 0 < (filled := json.loads(state.read_text())["filled"]) < 200
    monkeypatch.setattr("dlip.training.teacher_cache.FLUSH", 16)
    rows, fill = [], TeacherCache._fill_rows
    monkeypatch.setattr(TeacherCache, "_fill_rows", lambda *given: rows.extend(given[1]) or fill(*given))
    pictures = Scenes("train-small", size=200)
    goes_on = TeacherCache(root, Teacher(teacher.med), pictures, collate_for(teacher))
    assert rows == list(range(filled, 200))
    whole = TeacherCache(tmp_path / "whole", Teacher(teacher.med), pictures, collate_for(teacher))
    assert goes_on.folder.name == whole.folder.name
    for column, values in whole.columns.items():
        assert (values == goes_on.columns[column]).all(), column


def test_training_resumes_to_the_same_weights(teacher, tiny, pictures, tmp_path):
    config = TrainConfig(
        steps=6, batch_size=8, warmup=2, log_every=1, save_every=2, weights={**VLP, **HR, **AT, **KD}, cache=True
    )

    def run(folder, data=pictures):
        torch.manual_seed(5)
        student = VLM(Med(replace(tiny.med.config, prompt_ids=(9, 10))), tiny.tokenizer, "student")
        return train(student, data, config, folder, teacher, progress=False, cache=tmp_path / "cache")

    whole = run(tmp_path / "whole")

    class Stops(FirstN):
        """Stops the run in its fourth step."""

        left = 30

        def __getitem__(self, i):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return super().__getitem__(i)

        def fingerprint(self):
            return self.dataset.fingerprint()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", Stops(pictures, len(pictures)))
    resumed = run(tmp_path / "stopped")
    weights = [read_tensors(r.folder / "model.safetensors")[0] for r in (whole, resumed)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_varied_pictures_cannot_be_cached():
    with pytest.raises(UserError, match="unvaried"):
        TrainConfig(cache=True, augment=True)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("column", ["image.embed", "text.embed", "fusion.cross.-1", "decoder.self.-1"])
@pytest.mark.parametrize("at", [0, -1])
def test_what_is_damaged_is_made_anew(column, at, teacher, pictures, tmp_path, monkeypatch):
    """The pictures that it is of alone."""
    monkeypatch.setattr("dlip.training.teacher_cache.FLUSH", 16)
    rows, fill = [], TeacherCache._fill_rows
    monkeypatch.setattr(TeacherCache, "_fill_rows", lambda *given: rows.append(given[1]) or fill(*given))
    path = TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher)).folder / f"{column}.f16"
    before = path.read_bytes()
    flip(path, at)
    rows.clear()
    with pytest.warns(UserWarning, match=r"outputs of (16|8) pictures in .* were damaged, and were made anew"):
        TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher))
    assert path.read_bytes() == before and rows == ([range(16)] if at == 0 else [range(32, 40)])
    TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher))
    assert len(rows) == 1


@pytest.mark.parametrize(
    "damage", ["gone", "short", "no lengths", "other lengths", "flipped lengths", "no count", "half a count"]
)
def test_what_is_missing_is_filled_again(damage, teacher, pictures, tmp_path):
    def kept() -> tuple[dict[str, bytes], Path]:
        cache = TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher))
        return {path.name: path.read_bytes() for path in cache.folder.glob("*.f16")}, cache.folder

    before, folder = kept()
    column = folder / "image.embed.f16"
    if damage == "no lengths":
        (folder / "lengths.safetensors").write_bytes(b"")
    elif damage == "no count":
        (folder / "cache.json").write_text('{"filled": "all"}')
    elif damage == "other lengths":
        write_tensors(folder / "lengths.safetensors", {"lengths": torch.zeros(3, dtype=torch.int64)})
    elif damage == "flipped lengths":
        flip(folder / "lengths.safetensors", -1)
    elif damage == "half a count":
        (folder / "cache.json").write_text('{"fil')
    elif damage == "gone":
        column.unlink()
    else:
        column.write_bytes(column.read_bytes()[:100])
    assert kept()[0] == before and any(before["image.embed.f16"])


def test_a_link_in_a_cache_reaches_no_file_elsewhere(teacher, pictures, tmp_path):
    """In a folder of somebody else's, called as a column."""
    column = TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher)).folder / "text.embed.f16"
    (tmp_path / "precious").write_text("kept")
    column.unlink()
    column.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="text.embed.f16"):
        TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher))
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_teacher_in_bf16_has_a_cache_of_its_own(teacher, pictures, tmp_path):
    first = TeacherCache(tmp_path, Teacher(teacher.med), pictures, collate_for(teacher)).folder
    assert TeacherCache(tmp_path, Teacher(teacher.med.bfloat16()), pictures, collate_for(teacher)).folder != first
