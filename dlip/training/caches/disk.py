"""Outputs of frozen models on disk, computed once for all images and shared by runs.

A cache is a folder named by a hash of all that its values depend on, so that a stale one is never read. It has columns,
float16 arrays in files of their own. `cache.json` holds the checksums of each column in each filled block of images.
"""

import json
import math
import os
import re
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
from torch import Tensor, nn
from tqdm import tqdm

from dlip.checkpoints.tensors import checksum
from dlip.common.errors import UserError
from dlip.common.files import exclusive_lock, read_json, write_json
from dlip.common.text import plural

BATCH_IMAGES = 16
"""Images that are computed at once."""
BLOCK_IMAGES = 512
"""Images per block. A filled block is flushed to disk and its checksums are recorded."""
KEY_PATTERN = "[0-9a-f]{24}"


def cache_key(about: dict, model: nn.Module) -> str:
    """Hash of `about` and of a model's weights."""
    stored = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return sha256((json.dumps(about, sort_keys=True) + checksum(stored)).encode()).hexdigest()[:24]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a cache's lock; the folder exists then and counts as just opened."""
    with exclusive_lock(lock_path(folder)):
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        yield


def open_columns(
    folder: Path, shapes: dict[str, tuple[int, ...]], max_gb: float, noun: str, keep: Sequence[Path] = ()
) -> dict[str, np.memmap]:
    """Map every column's file into memory, created at its full size where it is missing or of another size.

    The least recently opened caches beside `folder` are deleted where all would take more than `max_gb` GB, but none of
    `keep`, the run's others. Raises UserError where this one and those would take more, or where the disk is full.
    """
    if not 0 < max_gb < math.inf:
        raise UserError(f"the caches' limit is {max_gb} GB; use a finite number above 0")
    own = sum(2 * math.prod(shape) for shape in shapes.values())
    needed_gb = (own + sum(map(stored_bytes, {*keep} - {folder}))) / 1e9
    if needed_gb > max_gb:
        raise UserError(
            f"{noun} would take {needed_gb:.1f} GB, more than the {max_gb:g} GB allowed; raise --cache-gb, use fewer "
            f"images or views, or train without the cache"
        )
    delete_old_caches(folder, max_gb - needed_gb, keep)
    columns = {}
    for column, shape in shapes.items():
        path, size = folder / f"{column}.f16", 2 * math.prod(shape)
        if not path.is_file() or path.stat().st_size != size:
            (folder / "cache.json").unlink(missing_ok=True)  # the blocks it lists are no longer all there
        with open(path, "a+b") as file:
            try:
                file.truncate(size)
                if hasattr(os, "posix_fallocate"):  # else a disk that fills up later would kill the process
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise UserError(
                    f"{noun} need {needed_gb:.1f} GB in {folder} ({error.strerror}); free some space, or train without "
                    f"the cache"
                ) from None
        columns[column] = np.memmap(path, np.float16, "r+", shape=shape)
    return columns


def fill(
    folder: Path,
    columns: dict[str, np.memmap],
    images: int,
    compute: Callable[[range], None],
    noun: str,
    span: Callable[[str, range], slice] = lambda column, rows: slice(rows.start, rows.stop),
) -> None:
    """Compute the blocks that are missing, or, with a warning, whose checksums differ.

    compute: writes the values of some consecutive images. span: rows of a column that belong to some images.
    """
    path, sums, damaged = folder / "cache.json", [], 0
    with suppress(UserError):  # missing or damaged
        sums = read_json(path)["crc32"]
    checks = os.environ.get("LOCAL_RANK", "0") == "0"  # one process of a machine is enough

    def checksums(block: range) -> list[int]:
        return [zlib.crc32(values[span(column, block)]) for column, values in columns.items()]

    with tqdm(total=images, desc=noun, unit="image", disable=None) as bar:
        for i, first in enumerate(range(0, images, BLOCK_IMAGES)):
            block = range(first, min(first + BLOCK_IMAGES, images))
            filled = i < len(sums)
            if filled and not (checks and checksums(block) != sums[i]):
                bar.update(len(block))
                continue
            damaged += filled * len(block)
            for rows in (block[start : start + BATCH_IMAGES] for start in range(0, len(block), BATCH_IMAGES)):
                compute(rows)
                bar.update(len(rows))
            for column in columns.values():
                column.flush()
            sums[i : i + 1] = [checksums(block)]
            write_json(path, {"crc32": sums})
    if damaged:
        warnings.warn(f"{noun} of {plural(damaged, 'image')} in {folder} were damaged and computed again", stacklevel=3)


def to_float16(values: Tensor, name: str) -> np.ndarray:
    """Raise UserError where a value is beyond float16's range."""
    halves = values.half()
    if not halves.isfinite().all():
        raise UserError(
            f"{name} has values up to {values.abs().max().item():.2g}, beyond the cache's limit of 65,504; train "
            f"without the cache"
        )
    return halves.cpu().numpy()


def lock_path(folder: Path) -> Path:
    """The lock of a cache's folder lies beside it, so that it stays when the folder is deleted."""
    return folder.with_name(f"{folder.name}.lock")


def stored_bytes(folder: Path) -> int:
    """Size of a cache on disk."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def delete_old_caches(folder: Path, max_gb: float, keep: Sequence[Path] = ()) -> None:
    """Delete other caches beside `folder`, the least recently opened first, until they take at most `max_gb` GB.

    Those of `keep` do not count. A cache that another process is opening or filling stays. A run that reads a deleted
    cache keeps its files open.
    """
    with exclusive_lock(folder.with_name("deleting.lock")):
        caches = [path for path in folder.parent.iterdir() if re.fullmatch(KEY_PATTERN, path.name)]
        others = [path for path in caches if path not in (folder, *keep)]
        sizes = {path: stored_bytes(path) for path in others}
        for path in sorted(others, key=lambda path: path.stat().st_mtime):
            if sum(sizes.values()) <= max_gb * 1e9:
                break
            with suppress(UserError), exclusive_lock(lock_path(path), "in use"):
                shutil.rmtree(path)
                del sizes[path]
