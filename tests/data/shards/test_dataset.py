"""Shards in WebDataset's layout: contents, order of an epoch, broken and malicious files."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from dlip import data
from dlip.common.errors import UserError
from dlip.data.batch import Question
from dlip.data.collate import Collate
from dlip.data.folders.write import write_folder
from dlip.data.loader import ResumableBatchSampler, train_loader
from dlip.data.scenes.dataset import Scenes
from dlip.data.shards import tar_index
from dlip.data.shards.dataset import Shards
from dlip.data.shards.download import cache_folder
from dlip.data.shards.naming import expand_braces, shards
from dlip.data.shards.write import write_shards
from tests.data.shards.helpers import jpeg, write_tar
from tests.helpers import differences


def captions(dataset) -> list[list[str]]:
    return [item.captions for item in dataset]


def test_webdataset_layout(tmp_path):
    write_tar(tmp_path / "0.tar", {
        "./a/1.jpg": jpeg(1), "./a/1.txt": "a cat\na tabby\n", "b.PNG": jpeg(2), "b.json": {"caption": "a dog"},
        "c.seg.png": jpeg(3), "c.jpeg": jpeg(4), "c.cls": "7", "c.txt": "a cow",
        "d.jpg": jpeg(5), "d.json": {"captions": ["x", "y"], "image_id": 77, "questions": [
            {"question": "what?", "answers": ["z", " ", 2], "question_type": "kind"}]},
    })  # fmt: skip
    dataset = Shards(tmp_path, "train")
    assert captions(dataset) == [["a cat", "a tabby"], ["a dog"], ["a cow"], ["x", "y"]]
    assert dataset[3].image_id == 77 and dataset[3].questions == [Question("what?", ["z", "2"], "kind")]
    assert dataset[2].image.getpixel((0, 0))[0] == Image.open(io.BytesIO(jpeg(4))).getpixel((0, 0))[0]
    assert dataset.counts() == {"images": 4, "captions": 6, "questions": 1}
    assert len({item.image_id for item in dataset}) == 4
    with pytest.raises(IndexError):
        dataset[4]


def test_samples_of_one_image(tmp_path):
    """By its number or its name."""
    about = [{"caption": f"text {i}", "image_id": number} for i, number in enumerate((17, 17, "17", "17", "x"))]
    write_tar(tmp_path / "0.tar", {f"{i}.{end}": value for i, row in enumerate(about) for end, value in
                                   (("jpg", jpeg(1)), ("json", row))})  # fmt: skip
    ids = [item.image_id for item in Shards(tmp_path, "train")]
    assert ids[0] == ids[1] == 17 and ids[2] == ids[3] and len(set(ids)) == 3


def test_img2dataset_output(tmp_path):
    for shard in range(2):
        members = {}
        for i in range(3):
            key = f"{shard:05}{i:04}"
            about = {"caption": f"text {key}", "url": "x", "key": key, "status": "success", "width": 8, "sha256": "y"}
            members |= {f"{key}.jpg": jpeg(i), f"{key}.txt": f"text {key}", f"{key}.json": about}
        write_tar(tmp_path / f"{shard:05}.tar", members)
        (tmp_path / f"{shard:05}_stats.json").write_text("{}")
    dataset = data.open(tmp_path, "train")
    dataset.verify()
    assert captions(dataset) == [[f"text {shard:05}{i:04}"] for shard in range(2) for i in range(3)]


def test_shard_names_and_splits(tmp_path):
    assert expand_braces("x-{08..11}.tar") == ["x-08.tar", "x-09.tar", "x-10.tar", "x-11.tar"]
    assert expand_braces("{train,val}-{0..1}") == ["train-0", "train-1", "val-0", "val-1"]
    for wrong in ("{041..000}", "{0..999999999}"):
        with pytest.raises(UserError, match="is not a range of 1 to 1,000,000 shards"):
            expand_braces(f"x-{wrong}.tar")
    files = ("cc3m-train-0000.tar", "cc3m-validation-0000.tar", "laion-7.tar", "extra/1.tar", "validation/2.tar",
             "val-00001-of-00002.tar", "x-dev-0.tar", "valid_3.tar", "val2014-1.tar")  # fmt: skip
    for i, name in enumerate(files):
        write_tar(tmp_path / name, {"1.jpg": jpeg(i), "1.txt": str(i)})
    assert data.splits(tmp_path) == ["extra", "train", "val"]
    assert captions(data.open(tmp_path, "train")) == [["0"], ["2"]]
    assert sorted(captions(data.open(tmp_path, "val"))) == [["1"], ["4"], ["5"], ["6"], ["7"], ["8"]]
    assert captions(data.open(tmp_path / "{laion,laion}-7.tar", "train")) == [["2"]] * 2
    assert captions(data.open(tmp_path / "cc3m-*.tar", "val")) == [["1"]]
    for pattern in ("{extra,validation}/*.tar", "*/*.tar"):  # extra is no split's name
        found = [(shard.label, shard.split) for shard in shards(tmp_path / pattern)]
        assert found == [("extra/1.tar", "train"), ("validation/2.tar", "val")]
    for name, message in (("none-*.tar", "there are no shards"), ("none-{1..2}.tar", r"no shard .*none-1\.tar")):
        with pytest.raises(UserError, match=message):
            data.open(tmp_path / name, "train")
    with pytest.raises(UserError, match=r"no split 'test'; .* extra \(1 shard\), train \(2 shards\), val"):
        data.open(tmp_path, "test")
    (tmp_path / "photos [1].tar").touch()  # a name with wildcards that is a file
    assert [shard.label for shard in shards(tmp_path / "photos [1].tar")] == ["photos [1].tar"]


@pytest.mark.parametrize("images_per_shard", [3, 100])
def test_packed_folder_reads_back_equal(tmp_path, images_per_shard):
    write_folder(tmp_path / "plain", {"train": Scenes("train-small", size=7), "train-more": Scenes("val", size=2)})
    splits = {split: data.open(tmp_path / "plain", split) for split in ("train", "train-more")}
    written = write_shards(tmp_path / "shards", splits, images_per_shard)
    assert sum(row["images"] for row in written["shards"]) == 9
    assert data.splits(tmp_path / "shards") == ["train", "train-more"]
    for split, plain in splits.items():
        packed = data.open(tmp_path / "shards", split)
        packed.verify()
        assert len(packed) == len(plain) and packed.counts() == plain.counts()
        for actual, expected in zip(packed, plain, strict=True):
            assert np.array_equal(np.asarray(actual.image), np.asarray(expected.image))
            assert actual.captions == expected.captions and actual.questions == expected.questions
            assert actual.image_id == expected.image_id
    first = {file.name: file.read_bytes() for file in (tmp_path / "shards").glob("*.tar")}
    write_shards(tmp_path / "again", splits, images_per_shard)
    assert first == {file.name: file.read_bytes() for file in (tmp_path / "again").glob("*.tar")}
    with pytest.raises(UserError, match="holds shards already"):
        write_shards(tmp_path / "shards", splits)
    (tmp_path / "index.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="index.json would be replaced"):
        write_shards(tmp_path, splits)


def test_order_is_a_permutation_local_to_shards(tmp_path, monkeypatch):
    for shard in range(6):
        write_tar(
            tmp_path / f"{shard}.tar", {f"{i}.{s}": d for i in range(4) for s, d in (("jpg", jpeg(i)), ("txt", "x"))}
        )
    dataset = Shards(tmp_path, "train")
    monkeypatch.setattr("dlip.data.shards.dataset.SHUFFLE_WINDOW", 8)
    orders = [dataset.order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(24)) for order in orders) and len(set(map(tuple, orders))) == 4
    assert orders[0] == Shards(tmp_path, "train").order(0, 0)
    for order in orders:  # two shards a window, no more
        assert [len({i // 4 for i in order[at : at + 8]}) for at in (0, 8, 16)] == [2, 2, 2]
        assert [i % 4 for i in order[:8]] != [0, 1, 2, 3, 0, 1, 2, 3]
    first = dataset.first(10)
    assert first.order(0, 0) == [i for i in orders[0] if i < 10]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_epoch_is_bit_exact(tmp_path, tiny, workers):
    write_shards(tmp_path, {"train": Scenes("train-small", size=23)}, 5)
    dataset = Shards(tmp_path, "train")
    collate = Collate(tiny.tokenizer, 48, max_text=40, seed=1, augment=True)
    whole = list(train_loader(dataset, ResumableBatchSampler(23, 4, 8, 1, order=dataset.order), collate))
    sampler = ResumableBatchSampler(23, 4, 8, 1, start=3, order=dataset.order)
    late = list(train_loader(Shards(tmp_path, "train"), sampler, collate, workers))
    assert len(whole) == 8 and len(late) == 5
    for actual, expected in zip(late, whole[3:], strict=True):
        assert differences(actual, expected) == []
    assert len(set(torch.cat([batch.image_id for batch in whole[:5]]).tolist())) == 20


def test_malicious_names_reach_no_file(tmp_path):
    """Nothing is unpacked: neither names that point elsewhere nor links create a file."""
    shard = tmp_path / "a" / "b" / "0.tar"
    shard.parent.mkdir(parents=True)
    with tarfile.open(shard, "w") as tar:
        for name in ("../../evil.jpg", "../../evil.txt", f"{tmp_path}/evil.jpg", f"{tmp_path}/evil.txt"):
            content = jpeg(1) if name.endswith("jpg") else b"a text"
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    dataset = Shards(shard.parent, "train")
    assert captions(dataset) == [["a text"]] * 2
    assert sorted(tmp_path.rglob("*")) == before


def test_faults_of_members(tmp_path):
    write_tar(tmp_path / "0.tar", {
        "good.jpg": jpeg(1), "good.txt": "fine", "text.txt": "alone", "bare.jpg": jpeg(1), "broken.jpg": jpeg(1)[:90],
        "broken.txt": "cut", "blank.jpg": jpeg(1), "blank.txt": " \n", "odd.jpg": jpeg(1), "odd.json": "{",
        "latin.jpg": jpeg(1), "latin.txt": "un café".encode("latin-1"),
        "photo 10.15.jpg": jpeg(1), "photo 10.15.txt": "at a quarter past ten",
    })  # fmt: skip
    with pytest.raises(UserError, match=r"has 6 faults: "):
        Shards(tmp_path, "train")
    dataset = Shards(tmp_path, "train", "skip")
    assert sorted(problem.split(" (")[0].split(":")[0] for problem in dataset.faults) == [
        "0.tar/bare has no caption", "0.tar/blank has an empty caption", "0.tar/latin has text that is not UTF-8",
        "0.tar/odd has JSON that cannot be read", "0.tar/photo 10 is skipped",
        "0.tar/text is missing",
    ]  # fmt: skip
    dataset.verify()
    assert dataset.faults[-1].startswith("0.tar/broken cannot be read (") and captions(dataset) == [["fine"]]


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def test_other_files_of_a_sample_are_not_read(tmp_path, monkeypatch):
    """A sparse file of 600 MB between a JSON and its image."""
    shard, about = tmp_path / "0.tar", json.dumps({"caption": "one"}).encode()
    with open(shard, "wb") as file:
        file.write(header("1.json", len(about)) + about.ljust(512, b"\0") + header("1.big", 600 * 10**6))
        file.seek(600 * 10**6, os.SEEK_CUR)
        file.write(header("1.jpg", len(jpeg(1))) + jpeg(1).ljust(2048, b"\0"))
    pread = os.pread
    monkeypatch.setattr(
        "os.pread", lambda file, size, at: pread(file, size, at) if size < 10**6 else pytest.fail("read")
    )
    assert captions(Shards(shard, "train")) == [["one"]]


@pytest.mark.parametrize("size", [-512, -600])
def test_header_of_negative_size_ends_its_shard(tmp_path, size):
    shard = write_tar(tmp_path / "0.tar", {"0.jpg": jpeg(0), "0.txt": "x", "1.jpg": jpeg(1), "1.txt": "y"})
    members, _ = tar_index._members(shard, "0.tar")
    header, start = bytearray(shard.read_bytes()), members[2][2] - 512
    header[start + 124 : start + 136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    total = sum(header[start : start + 148]) + 256 + sum(header[start + 156 : start + 512])
    header[start + 148 : start + 156] = b"%06o\0 " % total
    shard.write_bytes(header)
    fault = "0.tar cannot be read beyond its first 2 files (a header has a negative size)"
    assert tar_index._members(shard, "0.tar") == (members[:2], [fault])


@pytest.mark.parametrize("left", [0, 700, 5000])
def test_truncated_shard_keeps_complete_samples(tmp_path, left):
    members = {f"{i}.{s}": d for i in range(4) for s, d in (("jpg", jpeg(i)), ("txt", "x"))}
    shard = write_tar(tmp_path / "0.tar", members)
    write_tar(tmp_path / "1.tar", {"1.jpg": jpeg(1), "1.txt": "y"})
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(UserError, match=r"0\.tar cannot be read beyond its first \d files?"):
        Shards(tmp_path, "train")
    dataset = Shards(tmp_path, "train", "skip")
    dataset.verify()
    assert captions(dataset) == [["x"]] * (0 if left < 5000 else 2) + [["y"]]


def test_changed_shard_is_indexed_again(tmp_path):
    write_tar(tmp_path / "0.tar", {"1.jpg": jpeg(1), "1.txt": "one"})
    first = Shards(tmp_path, "train")
    assert Shards(tmp_path, "train").fingerprint() == first.fingerprint()
    write_tar(tmp_path / "0.tar", {"1.jpg": jpeg(1), "1.txt": "one", "2.jpg": jpeg(2), "2.txt": "two"})
    again = Shards(tmp_path, "train")
    assert captions(again) == [["one"], ["two"]] and again.fingerprint() != first.fingerprint()


@pytest.mark.parametrize("left", [0, 50, 600])
def test_damaged_index_is_made_again(tmp_path, left):
    write_tar(tmp_path / "0.tar", {"1.jpg": jpeg(1), "1.txt": "one"})
    Shards(tmp_path, "train")
    (index,) = (cache_folder() / "indexes").iterdir()
    whole = index.read_bytes()
    index.write_bytes(whole[:left])
    assert captions(Shards(tmp_path, "train")) == [["one"]] and len(index.read_bytes()) == len(whole)


def test_unfinished_or_incomplete_shards_are_refused(tmp_path):
    """Packing was interrupted, or a shard was not copied."""

    class Stops(Scenes):
        def __getitem__(self, i: int):
            if i == 5:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path / "stopped", {"train": Stops("train-small", size=9)}, 3)
    with pytest.raises(UserError, match="index.json belongs to unfinished shards"):
        data.splits(tmp_path / "stopped")
    write_shards(tmp_path, {"train": Scenes("train-small", size=9), "val": Scenes("val", size=2)}, 3)
    (tmp_path / "train-00001.tar").unlink()
    assert len(data.open(tmp_path, "val")) == 2
    with pytest.raises(UserError, match=r"train-00001.tar cannot be read \(No such file or directory\)"):
        data.open(tmp_path, "train")


def test_split_names_stay_inside_the_folder(tmp_path):
    with pytest.raises(UserError, match="the split name '../out' is invalid"):
        write_shards(tmp_path / "shards", {"../out": Scenes("test", size=2)})
    assert not (tmp_path / "shards").exists() and not list(tmp_path.glob("out*"))
    (tmp_path / "web").mkdir()
    row = {"file": "a.tar", "split": "te\x1b[31mst", "images": 1, "captions": 1, "questions": 0, "bytes": 1}
    (tmp_path / "web" / "index.json").write_text(json.dumps({"version": 1, "shards": [row]}))
    (tmp_path / "web" / "a.tar").write_bytes(b"")
    with pytest.raises(UserError, match="the split name"):
        shards(tmp_path / "web")


@pytest.mark.parametrize("content", ["{", "[]", '{"shards": [{"file": "0.tar"}]}'])
def test_broken_index_is_reported(tmp_path, content):
    write_tar(tmp_path / "0.tar", {"1.jpg": jpeg(1), "1.txt": "one"})
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match="is not an index of shards"):
        data.splits(tmp_path)


def test_writers_of_captions_are_kept(tmp_path):
    about = {"captions": ["a cat", "a tabby "], "writers": {"a tabby ": "org/writer", "gone": "m", "a cat": 3}}
    write_tar(tmp_path / "source" / "0.tar", {"a.jpg": jpeg(1), "a.json": about, "b.jpg": jpeg(2), "b.txt": "a dog"})
    source = Shards(tmp_path / "source", "train")
    write_shards(tmp_path / "copy", {"train": source})
    for dataset in (source, Shards(tmp_path / "copy", "train")):
        assert [item.writers for item in dataset] == [{"a tabby": "org/writer"}, {}]
