"""Files are written whole or not at all, and a lock is held by one process at a time."""

import errno
import os
import shutil
import signal
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dlip.common.errors import UserError
from dlip.common.files import exclusive_lock, read_json, write_atomically, write_json, write_output


def write_half(path: Path, error: type[BaseException] = RuntimeError) -> None:
    path.write_text('{"a": ')
    raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_write_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(error):
        write_atomically(path, lambda temporary: write_half(temporary, error))
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2} and list(tmp_path.iterdir()) == [path]


def test_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, 1)

    def write(temporary):
        assert temporary.parent == tmp_path and temporary != path
        temporary.write_text("2")
        assert path.read_text() == "1\n"

    write_atomically(path, write)
    assert path.read_text() == "2"


def test_file_is_flushed_before_its_rename_and_the_folder_after(tmp_path, monkeypatch):
    """Otherwise a power failure could lose both the old and the new file."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(stat.S_ISDIR(os.fstat(file).st_mode)) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("renamed") or replace(*names))
    write_json(tmp_path / "value.json", {})
    assert done == [False, "renamed", True]


def test_full_disk_error_names_the_file(tmp_path):
    def write(temporary):
        with open("/dev/full", "w") as full:
            full.write("x")

    with pytest.raises(OSError) as refused:
        write_atomically(tmp_path / "value.json", write)
    assert (refused.value.errno, refused.value.filename) == (errno.ENOSPC, str(tmp_path / "value.json"))


# --- locks ------------------------------------------------------------------------------------------------------------


def test_lock_is_held_once_at_a_time(tmp_path):
    for _ in range(2):
        with exclusive_lock(tmp_path / "new" / "lock", "busy"):
            with pytest.raises(UserError, match="busy"), exclusive_lock(tmp_path / "new" / "lock", "busy"):
                pass


def test_waiting_for_a_lock_survives_the_removal_of_its_folder(tmp_path):
    path = tmp_path / "cache" / "lock"

    def wait() -> bool:
        with exclusive_lock(path):
            return path.exists()

    with ThreadPoolExecutor(1) as thread, exclusive_lock(path):
        waiting = thread.submit(wait)
        time.sleep(0.2)
        assert not waiting.done()
        shutil.rmtree(path.parent)
        assert waiting.result(10)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("precious"), Path.mkdir], ids=["link", "folder"])
def test_lock_does_not_follow_links(make, tmp_path):
    (tmp_path / "precious").write_text("kept")
    make(tmp_path / "lock")
    with pytest.raises(OSError), exclusive_lock(tmp_path / "lock", "busy"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_forked_child_does_not_inherit_the_lock(tmp_path):
    """Otherwise a DataLoader's worker would hold the lock of a run that was killed."""
    with exclusive_lock(tmp_path / "lock", "busy"):
        if not (child := os.fork()):
            signal.pause()
    try:
        with exclusive_lock(tmp_path / "lock", "busy"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- users' files -----------------------------------------------------------------------------------------------------


def test_output_replaces_a_file_and_is_written_into_a_link(tmp_path):
    kept, twin, link = (tmp_path / name for name in ("kept", "twin", "link"))
    kept.write_text("old")
    os.link(kept, twin)
    link.symlink_to("kept")
    write_output(link, lambda path: path.write_text("by the link"))
    assert link.is_symlink() and twin.read_text() == "by the link"
    write_output(kept, lambda path: path.write_text("new"))
    assert kept.read_text() == "new" and twin.read_text() == "by the link"
    with pytest.raises(RuntimeError):
        write_output(kept, write_half)
    assert kept.read_text() == "new" and len(list(tmp_path.iterdir())) == 3


def test_oversized_json_is_refused(tmp_path):
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 10**12)
    with pytest.raises(UserError, match="config.json has 1,000,000,000,000 bytes"):
        read_json(tmp_path / "config.json")
