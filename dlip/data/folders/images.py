"""Where a folder's pictures lie, and what they are called there."""

import os
import re
from functools import cached_property
from pathlib import Path

from dlip.common.errors import UserError

FOLDERS = ("images", "flickr30k-images", "flickr30k_images")
_COCO = re.compile(r"(train|val|test)20\d\d")


class Pictures:
    """The pictures of a folder: in `images/`, in Flickr30k's own folder, or in COCO's (`train2014`, ...)."""

    def __init__(self, path: Path):
        """Raises UserError where there is no such folder of pictures."""
        roots = [path / name for name in FOLDERS if (path / name).is_dir()]
        if not roots and any(_COCO.fullmatch(entry.name) for entry in path.iterdir() if entry.is_dir()):
            roots = [path]
        if not roots:
            raise UserError(f"{path} has no folder images; put the pictures there")
        self.root = roots[0]

    @cached_property
    def _places(self) -> dict[str, str]:
        """File name -> its path below the root."""
        found = {}
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            below = Path(folder).relative_to(self.root)
            for name in files:
                found.setdefault(name, (below / name).as_posix())
        return found

    def find(self, *names: str) -> str:
        """Where below the root the first of these files lies that is there at all; the first name where none is."""
        return next((self._places[name] for name in names if name in self._places), names[0])
