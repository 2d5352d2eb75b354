"""Files written whole or not at all, locked by one process, and read as JSON."""

import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dlip.common.errors import UserError

MAX_JSON_BYTES = 64 * 2**20


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary path)` in the same folder, then rename; a crash leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with system_errors(path):
            write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def leftover_temporaries(folder: Path, name: str) -> list[Path]:
    """Temporary files that killed processes left of `write_atomically` for a file name or pattern."""
    return list(folder.glob(f".{name}.{'[0-9a-f]' * 8}"))


def fsync_dir(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename survives a power failure."""
    with suppress(OSError):  # some file systems do not support it, and a folder may be writable but not readable
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Raise failures of the system, such as a full disk, as an OSError that names the file, also those that libraries
    written in Rust report by their text alone."""
    try:
        yield
    except OSError as error:
        if error.errno and not error.filename:  # as of a write
            error.filename = str(path)
        raise
    except Exception as error:
        if code := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise


@contextmanager
def exclusive_lock(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold a lock file, created where missing, for this process alone; the kernel frees it when the process dies.

    Waits while another process holds it or, given `busy`, raises UserError(busy).
    """
    lock = FileLock(path, blocking=busy is None)
    while not lock.is_locked:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(busy) from None
        except FileNotFoundError:  # another process removed the folder at this moment
            continue
    try:
        yield
    finally:
        lock.release()


def check_file(path: Path) -> None:
    """Raise UserError unless `path` is a regular file; reading a pipe would block forever."""
    if not path.is_file():
        wrong = "is not a file" if path.exists() else "is missing"
        raise UserError(f"{path} {wrong}; name a folder that dlip has written")


def write_json(path: Path, value) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n"))


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises UserError if the file is missing, too large, or not a JSON object."""
    check_file(path)
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise UserError(f"{path} has {size:,} bytes, more than the {MAX_JSON_BYTES:,} allowed; use another file")
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); write it again or use another folder") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; write it again or use another folder")
    return value


def is_replaceable(path: Path) -> bool:
    """Whether a new file may take this path: it is free or a regular file, not a link, pipe or device."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def write_output(path: Path, write: Callable[[Path], None]) -> None:
    """Write to a path that a user named: atomically, or directly into a link, pipe or device."""
    write_atomically(path, write) if is_replaceable(path) else write(path)
