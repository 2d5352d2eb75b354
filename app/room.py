"""Room for what visitors bring: how much of it they take, and an end of what gradio forgets."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

from gradio.utils import get_upload_folder

STORED = 2 << 30
"""Bytes of all visitors' files together."""
KEPT_S = 3600
"""Seconds after which they are deleted."""
LEAST = 64 << 10
"""Bytes that a file counts at least, and its folder: many small ones, too, are slow to go through."""
COUNTED_S = 10
"""Seconds that a count holds."""


class Room:
    """taken: bytes that visitors' files took when they were last counted, and what came since."""

    def __init__(self):
        self.taken, self.until = 0, 0.0

    async def full(self) -> bool:
        if time.monotonic() > self.until:
            self.until = time.monotonic() + COUNTED_S
            self.taken = await asyncio.to_thread(swept, Path(get_upload_folder()))
        return self.taken > STORED


def swept(folder: Path) -> int:
    """Bytes of the files in its folders, and of those that just arrive, directly in it.

    Deletes uploads that broke off, and folders of which gradio has deleted the files, `KEPT_S` after the last change.
    """
    total, old = 0, time.time() - KEPT_S
    for path in folder.iterdir():
        with suppress(OSError):  # deleted meanwhile, or filled
            files = list(path.iterdir()) if path.is_dir() else []
            if files or path.stat().st_mtime > old:
                total += sum(max(LEAST, each.stat().st_size) for each in (path, *files))
            elif path.is_dir():
                path.rmdir()
            else:
                path.unlink()
    return total
