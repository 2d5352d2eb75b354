"""Files that are written whole or not at all, held by one process, and read as JSON."""

import errno
import fcntl
import json
import os
import re
import stat
import uuid
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

from dlip.common.errors import UserError

MOST_JSON = 64 * 2**20
"""Bytes of a configuration, or anything as short."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`write(temporary path)` in the same folder, then one rename; a crash leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with system_errors(path):
            write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        settle(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def settle(folder: Path) -> None:
    """Which files are in a folder, and under which names, is on the disk when this returns."""
    with suppress(OSError):  # some file systems cannot say, and some folders may be written and not read
        place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(place)
        finally:
            os.close(place)


def half_written(folder: Path, name: str) -> list[Path]:
    """What a process that was killed has left of files of this name, or pattern, in `write_atomically`."""
    return list(folder.glob(f".{name}.{'[0-9a-f]' * 8}"))


@contextmanager
def system_errors(path: Path):
    """What the system refuses, a full disk for one, is an OSError that names the file, where a library in Rust meets it
    too."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:  # as of a write
            error.filename = str(path)
        raise
    except Exception as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise


def own_file(path: Path):
    """A file that only this program writes, such as a lock, open, made where it is missing and new to look at. Raises
    OSError where it is a link, by which another file could be meant, or no file at all."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    os.utime(file)
    return os.fdopen(file, "r+")


@contextmanager
def held(path: Path, busy: str):
    """The file, made where it is missing, is this process's meanwhile. Yields the lock. Raises UserError(busy) where it
    is another's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with own_file(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
        except BlockingIOError:
            raise UserError(busy) from None
        os.register_at_fork(after_in_child=lock.close)  # else a worker would hold it when this process is killed
        yield lock


def in_place(lock, path: Path) -> bool:
    """Whether a lock is the file of that name still, which may have been taken away, or made anew."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(path))
    return False


def write_json(path: Path, value) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n"))


def check_file(path: Path) -> None:
    """Raises UserError where there is none, or something else of its name: a pipe would be waited for without end."""
    if not path.exists():
        raise UserError(f"{path} is missing; name a folder that dlip has written")
    if not path.is_file():
        raise UserError(f"{path} is no file; name a folder that dlip has written")


def check_size(path: Path, most: int) -> None:
    """Raises UserError where a file has more than so many bytes, as it would be read into memory as a whole."""
    if (size := path.stat().st_size) > most:
        raise UserError(f"{path} has {size:,} bytes, of {most:,} at most; take another file")


def read_json(path: Path) -> dict:
    """Raises UserError where the file is missing, is too large, or holds no table in JSON."""
    check_file(path)
    check_size(path, MOST_JSON)
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); write it again or take another folder") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no table of names and values; write it again or take another folder")
    return value


def write_out(path: Path, write: Callable[[Path], None]) -> None:
    """What a user names: atomically, but for what is there and is no file of its own, which is written into."""
    write(path) if kept_open(path) else write_atomically(path, write)


def kept_open(path: Path) -> bool:
    """Whether what is written goes into what is there, a pipe or where a link leads, as no file may take its place."""
    return path.is_symlink() or (path.exists() and not path.is_file())
