"""Where the images of a folder are, and how annotations name them."""

import os
import re
from functools import cached_property
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.transforms import SUFFIXES

FOLDERS = ("images", "flickr30k-images", "flickr30k_images")
_COCO_FOLDER = re.compile(r"(train|val|test)20\d\d")


def image_files(root: Path) -> list[str]:
    """Paths below a folder of all files that are images by their suffix, sorted."""
    found = (file for file in root.rglob("*") if file.suffix.lower().removeprefix(".") in SUFFIXES and file.is_file())
    return sorted(file.relative_to(root).as_posix() for file in found)


class ImageFiles:
    """The image files of a folder: in `images/`, in Flickr30k's folder, or in COCO's (`train2014/`, ...)."""

    def __init__(self, path: Path):
        """Raises UserError if there is no folder of images."""
        roots = [path / name for name in FOLDERS if (path / name).is_dir()]
        if not roots and any(_COCO_FOLDER.fullmatch(entry.name) for entry in path.iterdir() if entry.is_dir()):
            roots = [path]
        if not roots:
            raise UserError(f"{path} has no folder images; put the images there")
        self.root = roots[0]

    @cached_property
    def _paths(self) -> dict[str, str]:
        """File name -> path below the root."""
        paths = {}
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            below = Path(folder).relative_to(self.root)
            for name in files:
                paths.setdefault(name, (below / name).as_posix())
        return paths

    def find(self, *names: str) -> str:
        """Path below the root of the first of these files that exists; the first name if none does."""
        return next((self._paths[name] for name in names if name in self._paths), names[0])
