"""Shards on the web, from a local server that records its requests."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dlip import data
from dlip.common.errors import UserError
from dlip.common.files import exclusive_lock
from dlip.data import audit
from dlip.data.collate import Collate
from dlip.data.loader import ResumableBatchSampler, train_loader
from dlip.data.scenes.dataset import Scenes
from dlip.data.shards import download
from dlip.data.shards.write import write_shards
from tests.data.shards.helpers import jpeg, write_tar
from tests.helpers import differences


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)


class Server:
    """Serves a folder; `requests` are the paths in order, `fails` how many times a path breaks off in the middle,
    `busy` how many times it answers that there are too many requests."""

    def __init__(self, folder: Path):
        self.requests: list[str] = []
        self.fails: dict[str, int] = {}
        self.busy: dict[str, int] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.lstrip("/")
                outer.requests.append(name)
                if not (folder / name).is_file():
                    self.send_error(404)
                    return
                if outer.busy.get(name, 0) > 0:
                    outer.busy[name] -= 1
                    self.send_error(429)
                    return
                content = (folder / name).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if outer.fails.get(name, 0) > 0:
                    outer.fails[name] -= 1
                    content = content[: len(content) // 2]
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(tmp_path):
    started = Server(tmp_path)
    yield started
    started.http.shutdown()
    started.http.server_close()


@pytest.mark.parametrize("name", ["", "/train-{00000..00004}.tar"])
def test_batches_equal_those_from_disk_with_one_download_each(server, tmp_path, tiny, name):
    """Two workers that resume in the middle of an epoch give the batches of one process that reads from disk."""
    write_shards(tmp_path, {"train": Scenes("train-small", size=23)}, 5)
    here, there = data.open(tmp_path, "train"), data.open(server.address + name, "train")
    there.verify()
    assert server.requests == ["index.json"] and there.counts() == here.counts() and there.remote
    assert there.order(3, 1) == here.order(3, 1)
    collate = Collate(tiny.tokenizer, 48, max_text=40)
    whole = list(train_loader(here, ResumableBatchSampler(23, 4, 9, 1, order=here.order), collate))
    late = list(train_loader(there, ResumableBatchSampler(23, 4, 9, 1, start=2, order=there.order), collate, workers=2))
    for actual, expected in zip(late, whole[2:], strict=True):
        assert differences(actual, expected) == []
    assert sorted(server.requests) == ["index.json", *(f"train-0000{i}.tar" for i in range(5))]


def test_shards_without_index_are_downloaded_on_opening(server, tmp_path):
    for i in range(2):
        write_tar(tmp_path / f"{i}.tar", {"1.jpg": jpeg(i), "1.txt": f"text {i}"})
    dataset = data.open(server.address + "/{0..1}.tar", "train")
    assert server.requests == ["index.json", "0.tar", "1.tar"]
    assert [item.captions for item in dataset] == [["text 0"], ["text 1"]] and len(server.requests) == 3
    with pytest.raises(UserError, match=r"has no index\.json that lists its shards"):
        data.open(server.address, "train")


def test_shards_of_several_folders_on_the_web(server, tmp_path):
    """Equal file names are told apart, by their folder too which split they belong to."""
    for split in ("train", "val"):
        write_tar(tmp_path / f"a/{split}/0.tar", {"1.jpg": jpeg(1), "1.txt": split})
    both = {split: data.open(server.address + "/a/{train,val}/0.tar", split) for split in ("train", "val")}
    assert {split: [item.captions for item in dataset] for split, dataset in both.items()} == {
        "train": [["train"]], "val": [["val"]]
    }  # fmt: skip
    assert both["train"][0].image_id != both["val"][0].image_id
    alone = data.open(server.address + "/a/train/0.tar", "train")
    write_tar(tmp_path / "b/train/0.tar", {"1.jpg": jpeg(2), "1.txt": "other"})
    assert alone.fingerprint() != data.open(server.address + "/b/train/0.tar", "train").fingerprint()


def test_shard_that_changed_is_downloaded_again(server, tmp_path):
    for count in (4, 6):
        for old in tmp_path.glob("*.*"):
            old.unlink()
        write_shards(tmp_path, {"train": Scenes("train-small", size=count)})
        dataset = data.open(server.address, "train")
        assert len([item.captions for item in dataset]) == count
        dataset[0]
    assert server.requests == ["index.json", "train-00000.tar"] * 2


def test_interrupted_download_is_retried_and_never_half(server, tmp_path, monkeypatch):
    write_shards(tmp_path, {"train": Scenes("train-small", size=4)})
    dataset = data.open(server.address, "train")
    server.fails["train-00000.tar"] = 3
    with pytest.raises(UserError, match=r"train-00000\.tar cannot be downloaded \(.*not completed"):
        dataset[0]
    assert not list(download.cache_folder().rglob("*.tar"))
    server.fails["train-00000.tar"] = server.busy["train-00000.tar"] = 1
    assert dataset[0].image_id == Scenes("train-small")[0].image_id
    (tmp_path / "train-00000.tar").unlink()
    server.requests.clear()
    monkeypatch.setenv("DLIP_CACHE", str(tmp_path / "other"))
    with pytest.raises(UserError, match="404"):
        data.open(server.address, "train")[0]
    assert server.requests == ["index.json", "train-00000.tar"]  # a missing file is not retried


def test_leftovers_of_a_killed_process_are_deleted(server, tmp_path):
    write_shards(tmp_path, {"train": Scenes("train-small", size=4)})
    dataset = data.open(server.address, "train")
    dataset[0]
    (kept,) = download.cache_folder().rglob("*.tar")
    left, other = kept.with_name(f".{kept.name}.0123abcd"), kept.with_name(".other.tar.0123abcd")
    kept.rename(left)
    other.write_bytes(b"another process is at it")
    data.open(server.address, "train")[0]
    assert kept.is_file() and not left.exists() and other.exists()


def test_cache_stays_within_its_limit(server, tmp_path, monkeypatch):
    write_shards(tmp_path, {"train": Scenes("train-small", size=4)}, 1)
    size = max(row["bytes"] for row in json.loads((tmp_path / "index.json").read_text())["shards"])
    monkeypatch.setenv("DLIP_CACHE_GB", str(2.5 * size / 1e9))
    monkeypatch.setattr("dlip.data.shards.dataset.MAX_OPEN", 1)
    dataset = data.open(server.address, "train")
    for i in (0, 1, 0, 2, 3, 0):
        assert dataset[i].image_id == Scenes("train-small")[i].image_id
    assert len(list(download.cache_folder().rglob("*.tar"))) == 2
    assert server.requests.count("train-00001.tar") == 1 and server.requests.count("train-00000.tar") == 2
    for wrong in ("much", "inf"):
        monkeypatch.setenv("DLIP_CACHE_GB", wrong)
        with pytest.raises(UserError, match=f"DLIP_CACHE_GB is '{wrong}'"):
            data.open(server.address, "train")[0]


def test_a_shard_that_another_process_opens_is_not_deleted(tmp_path):
    used, old, new = (tmp_path / f"{name}.tar" for name in ("used", "old", "new"))
    for path in (used, old, new):
        path.write_bytes(b"x" * 10)
    with exclusive_lock(used.with_suffix(".lock")):
        download.make_room(tmp_path, 10, new)
    assert used.exists() and new.exists() and not old.exists()


def test_broken_image_on_the_web(server, tmp_path, caplog):
    """Fatal, or replaced by the next good sample for every reader."""
    write_tar(tmp_path / "0.tar", {f"{i}.{s}": d for i in range(3) for s, d in (
        ("jpg", jpeg(i) if i != 1 else b"no image"), ("txt", f"text {i}"))})  # fmt: skip
    rows = [{"file": "0.tar", "split": "train", "images": 3, "captions": 3, "questions": 0}]
    rows[0]["bytes"] = (tmp_path / "0.tar").stat().st_size
    (tmp_path / "index.json").write_text(json.dumps({"shards": rows}))
    with pytest.raises(UserError, match=r"the image 0\.tar/1 cannot be read"):
        data.open(server.address, "train")[1]
    dataset = data.open(server.address, "train", on_error="skip")
    with caplog.at_level(logging.WARNING):
        assert [item.captions for item in dataset] == [["text 0"], ["text 2"], ["text 2"]]
        stored = [dataset.encoded_item(i) for i in range(3)]
        assert [(item.captions, item.data) for item in stored] == [([f"text {i}"], jpeg(i)) for i in (0, 2, 2)]
    assert "skipped: the image 0.tar/1 cannot be read" in caplog.text
    (fault,) = audit.check(server.address)["faults"]["corrupt images or shards"]
    assert "0.tar/1" in fault


def test_index_that_lists_too_many_images(server, tmp_path):
    write_shards(tmp_path, {"train": Scenes("train-small", size=3)})
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0]["images"] = 5
    (tmp_path / "index.json").write_text(json.dumps(index))
    dataset = data.open(server.address, "train", on_error="skip")
    assert (
        dataset[4].image_id == dataset[0].image_id == dataset.encoded_item(4).image_id
        and dataset.counts()["captions"] == 15
    )


def test_no_server(tmp_path):
    with pytest.raises(UserError, match="http://127.0.0.1:1/index.json cannot be downloaded"):
        data.open("http://127.0.0.1:1/", "train")


def test_signed_url_keeps_the_shards_name(monkeypatch):
    """The query may have slashes of its own."""
    monkeypatch.setattr(download, "download", lambda url, path: path.write_bytes(b"tar"))
    opened = download.open_shard(f"https://host/train-00000.tar?Credential=KEY/2024/{'x' * 300}")
    assert opened.name.endswith("-train-00000.tar")
