"""Caches on disk, whatever they hold."""

import os

from dlip.training.caches.disk import delete_old_caches


def test_kept_caches_are_not_deleted(tmp_path):
    kept, other, own = folders = [tmp_path / (letter * 24) for letter in "abc"]  # the oldest first
    for i, folder in enumerate(folders):
        folder.mkdir()
        (folder / "column.f16").write_bytes(bytes(1000))
        os.utime(folder, (0, i))
    delete_old_caches(own, 500 / 1e9, keep=[kept])
    assert own.exists() and kept.exists() and not other.exists()
