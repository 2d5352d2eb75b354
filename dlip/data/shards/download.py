"""Shards on the web: each is downloaded once, as a whole, when one of its samples is first read, and kept in a cache.

`fsspec` moves the bytes. The cache is our own, since `fsspec`'s has no size limit, is not safe among processes, and
takes a half-written file of a killed process for a complete one.
"""

import contextlib
import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO

from dlip.common.errors import UserError
from dlip.common.files import exclusive_lock, leftover_temporaries, write_atomically

ATTEMPTS = 3
TIMEOUT = 60
"""Seconds without a byte after which an attempt fails."""
NOT_THERE = (403, 404, 410)
"""HTTP statuses of a file that does not exist: object stores answer 403 where files cannot be listed."""
TOO_MANY_REQUESTS = 429
"""HTTP status that is tried again, as those from 500 on are."""


def cache_folder() -> Path:
    """Folder of downloaded shards and indexes: DLIP_CACHE, by default `~/.cache/dlip`."""
    if folder := os.environ.get("DLIP_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlip"


def cache_bytes() -> int:
    """Size limit of the downloaded shards: DLIP_CACHE_GB, by default 50. Raises UserError if it is not a number."""
    value = os.environ.get("DLIP_CACHE_GB", "50")
    try:
        return int(float(value) * 1e9)
    except (ValueError, OverflowError):
        raise UserError(f"DLIP_CACHE_GB is {value!r}, not a number of gigabytes; set it to one, such as 50") from None


def is_url(name: str) -> bool:
    """Whether shards of this name have to be downloaded."""
    return name.startswith(("http://", "https://"))


def open_shard(source: str, size: int | None = None) -> BinaryIO:
    """Open a shard, downloaded first if `source` is a URL; other processes wait for the one that downloads it.

    size: bytes that it has by its index; a download of another size is repeated. The file closes with its last
    reference. Raises UserError if the shard cannot be read or downloaded.
    """
    if not is_url(source):
        try:
            return open(source, "rb", buffering=0)
        except OSError as error:
            raise UserError(f"{source} cannot be read ({error.strerror}); check its name and permissions") from error
    folder, limit = cache_folder() / "shards", cache_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:16]}-{source.partition('?')[0].rpartition('/')[2]}"
    with exclusive_lock(path.with_suffix(".lock")):
        if not path.exists() or size not in (None, path.stat().st_size):
            for leftover in leftover_temporaries(folder, path.name):  # of a killed process: this one has the lock
                leftover.unlink(missing_ok=True)
            download(source, path)
        if size not in (None, downloaded := path.stat().st_size):
            raise UserError(f"{source} has {downloaded:,} bytes, but its index says {size:,}; pack the shards again")
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # the last use, for `make_room`
        file = open(path, "rb", buffering=0)
    make_room(folder, limit, path)
    return file


def download(url: str, path: Path) -> None:
    """Download `url` to `path`, which is either complete or absent. Raises UserError after `ATTEMPTS` failures."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            write_atomically(path, lambda temporary: _http().get_file(url, temporary))
            return
        except Exception as error:  # of aiohttp, asyncio and the system
            if attempt == ATTEMPTS or (_status(error) < 500 and _status(error) != TOO_MANY_REQUESTS):
                raise UserError(
                    f"{url} cannot be downloaded ({_reason(error)}); check the address and the network, then try again"
                ) from error
            time.sleep(2**attempt)


def read_url(url: str) -> bytes | None:
    """The content of a small file, None if there is no such file. Raises UserError if it cannot be downloaded."""
    try:
        return _http().cat_file(url)
    except Exception as error:  # of aiohttp, asyncio and the system
        if _status(error) in NOT_THERE:
            return None
        raise UserError(f"{url} cannot be downloaded ({_reason(error)}); check the address and the network") from error


def make_room(folder: Path, limit: int, keep: Path) -> None:
    """Delete the least recently used shards until the others take at most `limit` bytes; `keep` stays."""
    shards = []
    for path in folder.glob("*.tar"):
        with contextlib.suppress(FileNotFoundError):  # another process deletes too
            shards.append((path.stat().st_atime, path.stat().st_size, path))
    total = sum(size for _, size, _ in shards)
    for _, size, path in sorted(shards):
        if total > limit and path != keep:
            with contextlib.suppress(UserError), exclusive_lock(path.with_suffix(".lock"), "another process opens it"):
                path.unlink(missing_ok=True)  # a process that has it open reads on
                total -= size


def _http():
    """fsspec's HTTP file system, with no limit on the time of a whole download."""
    import aiohttp
    import fsspec

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    return fsspec.filesystem("http", client_kwargs={"timeout": timeout}, encoded=True)


def _status(error: Exception) -> int:
    """The HTTP status that an error stands for; 500, try again, for faults of the network."""
    return 404 if isinstance(error, FileNotFoundError) else getattr(error, "status", 500)


def _reason(error: Exception) -> str:
    return "404 not found" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
