"""Files are written whole or not at all, what is no file is written into, and one process holds them at a time."""

import errno
import os
import stat
from pathlib import Path

import pytest

from dlip.common.errors import UserError
from dlip.common.files import held, read_json, write_atomically, write_json, write_out


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def half(temporary):
        temporary.write_text('{"a": ')
        raise error

    with pytest.raises(error):
        write_atomically(path, half)
    assert read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2} and list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, 1)

    def look(temporary):
        assert temporary.parent == tmp_path and temporary != path
        temporary.write_text("2")
        assert path.read_text() == "1\n"

    write_atomically(path, look)
    assert path.read_text() == "2"


def test_a_file_is_on_the_disk_before_it_takes_its_name_and_the_name_then(tmp_path, monkeypatch):
    """Else a machine that loses its power may keep what was removed meanwhile alone."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(stat.S_ISDIR(os.fstat(file).st_mode)) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("named") or replace(*names))
    write_json(tmp_path / "value.json", {})
    assert done == [False, "named", True]


def test_a_full_disk_is_told_with_the_file(tmp_path):
    def write(temporary):
        with open("/dev/full", "w") as full:
            full.write("x")

    with pytest.raises(OSError) as refused:
        write_atomically(tmp_path / "value.json", write)
    assert (refused.value.errno, refused.value.filename) == (errno.ENOSPC, str(tmp_path / "value.json"))


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_is_a_file_of_its_own(kind, tmp_path):
    """By a link in somebody's folder a file elsewhere would be meant, and a pipe would be waited for."""
    (tmp_path / "precious").write_text("kept")
    {"link": lambda path: path.symlink_to("precious"), "pipe": os.mkfifo, "folder": Path.mkdir}[kind](tmp_path / "lock")
    with pytest.raises(OSError), held(tmp_path / "lock", "busy"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"
    for _ in range(2):
        with held(tmp_path / "own", "busy"), pytest.raises(UserError, match="busy"), held(tmp_path / "own", "busy"):
            pass


def test_a_users_file_is_replaced_whole_and_a_pipe_or_link_written_into(tmp_path):
    (tmp_path / "kept").write_text("old")
    os.link(tmp_path / "kept", tmp_path / "twin")
    (tmp_path / "link").symlink_to("kept")
    write_out(tmp_path / "link", lambda path: path.write_text("by the link"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "twin").read_text() == "by the link"
    write_out(tmp_path / "kept", lambda path: path.write_text("new"))
    assert (tmp_path / "kept").read_text() == "new" and (tmp_path / "twin").read_text() == "by the link"
    with pytest.raises(RuntimeError):
        write_out(tmp_path / "kept", fails)
    assert (tmp_path / "kept").read_text() == "new" and len(list(tmp_path.iterdir())) == 3


def test_a_file_too_large_to_be_json_is_not_read(tmp_path):
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 10**12)
    with pytest.raises(UserError, match="config.json has 1,000,000,000,000 bytes, of 67,108,864 at most; take another"):
        read_json(tmp_path / "config.json")


def fails(path: Path) -> None:
    path.write_text("half")
    raise RuntimeError
