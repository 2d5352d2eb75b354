"""Room for visitors' files: what counts, what is deleted, and how often it is looked after."""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from app import room

OLD = time.time() - room.KEPT_S - 60


@pytest.fixture
def folder(tmp_path):
    """A picture in its folder, an empty one in another, an upload that goes on, and one that broke off long ago."""
    for name, size in (("large/picture.png", 3 * room.LEAST), ("small/empty.png", 0), ("arriving", 5), ("broken", 5)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    os.utime(tmp_path / "broken", (OLD, OLD))
    return tmp_path


def test_small_files_and_folders_count_too_and_what_broke_off_is_deleted(folder):
    assert room.swept(folder) == (3 + 1 + 1 + 1 + 1) * room.LEAST
    assert sorted(path.name for path in folder.iterdir()) == ["arriving", "large", "small"]


def test_folders_go_an_hour_after_their_files_and_files_in_folders_are_gradio_s(folder):
    (folder / "small" / "empty.png").unlink()
    for name in ("large/picture.png", "large"):
        os.utime(folder / name, (OLD, OLD))
    room.swept(folder)
    assert (folder / "small").is_dir()  # a file may be about to come
    os.utime(folder / "small", (OLD, OLD))
    room.swept(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["arriving", "large"]
    assert (folder / "large" / "picture.png").is_file()


def test_files_are_counted_once_in_a_while_and_hold_nobody_up(folder, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    monkeypatch.setattr(room, "STORED", 10)
    counts = []

    def swept(folder) -> int:
        counts.append(folder)
        time.sleep(0.2)
        return 10

    monkeypatch.setattr(room, "swept", swept)

    async def visit():
        ours = room.Room()
        first = asyncio.create_task(ours.full())
        await asyncio.sleep(0.05)
        assert counts == [folder] and not first.done()
        assert not await ours.full() and not await first
        ours.taken += 1
        assert await ours.full() and counts == [folder]
        ours.until = 0
        assert not await ours.full() and counts == [folder] * 2

    with ThreadPoolExecutor(1) as thread:  # this one may have a loop that runs
        thread.submit(asyncio.run, visit()).result()
