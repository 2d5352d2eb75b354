"""Shards from the web, kept on disk while they are read: each is fetched whole, once, as it is reached."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from dlip.common.errors import UserError
from dlip.common.files import leftover_temporaries, own_file, write_atomically

TRIES = 3
TIMEOUT = 60
"""Seconds without a byte after which a try is given up."""
MOST_TEXT, MOST_SHARD = 64 * 2**20, 50 * 10**9
"""Bytes of a small file and of a shard: what goes on beyond them is none."""


def cache_folder() -> Path:
    """Where fetched shards and indexes are kept: DLIP_CACHE, else dlip in the user's folder of caches.

    Raises UserError where there is neither.
    """
    if own := os.environ.get("DLIP_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlip"
    except RuntimeError:  # a user without a home
        raise UserError("this user has no folder for fetched shards; name one in DLIP_CACHE") from None


def cache_bytes() -> int:
    """How much of fetched shards is kept: DLIP_CACHE_GB, else 50 GB. Raises UserError where that is no number."""
    value = os.environ.get("DLIP_CACHE_GB", "50")
    try:
        if (limit := int(float(value) * 1e9)) >= 0:
            return limit
    except (ValueError, OverflowError):
        pass
    raise UserError(f"DLIP_CACHE_GB is {value!r}, which is no number of gigabytes; mend it")


def is_url(name: str) -> bool:
    return name.startswith(("http://", "https://"))


class Handle:
    """An open shard, closed when nobody refers to it any more."""

    def __init__(self, path: Path):
        self.path = path
        self.file = os.open(path, os.O_RDONLY)

    def __del__(self, close=os.close):  # bound here: `os` may be gone when the interpreter ends
        if hasattr(self, "file"):
            close(self.file)


def open_shard(source: str) -> Handle:
    """A shard, open; one from the web is fetched to this disk first, by one process while others wait.

    What was read longest ago makes room for it. Raises UserError where it cannot be had.
    """
    if not is_url(source):
        try:
            return Handle(Path(source))
        except OSError as error:
            raise UserError(f"cannot read {source} ({error.strerror}); copy it again") from error
    folder, limit = cache_folder() / "shards", cache_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}-{source.partition('?')[0].rpartition('/')[2]}"
    with own_file(path.with_suffix(".lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return Handle(path)
        except FileNotFoundError:
            for left in leftover_temporaries(folder, path.name):  # of a killed process: this one has the lock
                left.unlink(missing_ok=True)
            fetch(source, path)
            handle = Handle(path)
    make_room(folder, limit, path)
    return handle


def fetch(url: str, path: Path) -> None:
    """Writes what `url` gives to `path`, whole or not at all, in up to `TRIES` tries.

    Raises UserError after those, or where it goes on beyond `MOST_SHARD`.
    """
    for attempt in range(TRIES):
        try:
            write_atomically(path, lambda temporary: _download(url, temporary))
            return
        except (OSError, http.client.HTTPException, ValueError) as error:
            gone = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if gone or attempt == TRIES - 1:
                raise UserError(
                    f"cannot fetch {url} ({error}); check the address and the network, and give the same command again"
                ) from error
            time.sleep(2**attempt)


def make_room(folder: Path, limit: int, keep: Path) -> None:
    """Deletes the shards read longest ago until those that are left fit `limit` bytes, `keep` among them."""
    found = []
    for path in folder.glob("*.tar"):
        with contextlib.suppress(FileNotFoundError):  # another process deletes too
            found.append((path.stat().st_atime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > limit and path != keep:
            path.unlink(missing_ok=True)  # who has it open reads on
            total -= size


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, open(path, "wb") as file:
        promised = answer.headers.get("Content-Length")
        while part := answer.read(2**20):
            file.write(part)
            if file.tell() > MOST_SHARD:
                raise UserError(f"{url} is more than {MOST_SHARD:,} bytes, so it is no shard; check the address")
        if promised is not None and file.tell() != int(promised):
            raise OSError(f"it broke off after {file.tell():,} of {int(promised):,} bytes")


def read_url(url: str) -> bytes | None:
    """What a small file on the web says, None where there is none. Raises UserError where it cannot be had."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            text = answer.read(MOST_TEXT + 1)
    except urllib.error.HTTPError as error:
        if error.code in (403, 404, 410):
            return None
        raise UserError(f"cannot fetch {url} ({error}); check the address") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"cannot fetch {url} ({error}); check the address and the network") from error
    if len(text) > MOST_TEXT:
        raise UserError(f"{url} is more than {MOST_TEXT:,} bytes, so it is no list of shards; check the address")
    return text
