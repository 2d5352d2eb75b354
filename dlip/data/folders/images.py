"""Where the images of a folder are, and how annotations name them."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.transforms import SUFFIXES

FOLDERS = ("images", "flickr30k-images", "flickr30k_images")
_COCO_FOLDER = re.compile(r"(train|val|test)20\d\d")


def image_files(root: Path) -> list[str]:
    """Paths below a folder of all files that are images by their suffix, sorted; hidden ones are ignored."""
    paths = [path for path in map(Path, _files(root)) if path.suffix.lower().removeprefix(".") in SUFFIXES]
    hidden = (".", "__MACOSX")
    return sorted(path.as_posix() for path in paths if not any(part.startswith(hidden) for part in path.parts))


def _files(root: Path) -> Iterator[str]:
    """Paths below a folder of all its files. Linked folders are entered, each folder once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (place := os.path.realpath(folder)) in seen:
            folders.clear()
            continue
        seen.add(place)
        yield from ((Path(folder) / name).relative_to(root).as_posix() for name in files)


class ImageFiles:
    """The image files of a folder: in `images/`, in Flickr30k's folder, or in COCO's (`train2014/`, ...)."""

    def __init__(self, path: Path):
        """Raise UserError if there is no folder of images."""
        roots = [path / name for name in FOLDERS if (path / name).is_dir()]
        if not roots and any(_COCO_FOLDER.fullmatch(entry.name) for entry in path.iterdir() if entry.is_dir()):
            roots = [path]
        if not roots:
            raise UserError(f"{path} has no folder images; put the images there")
        self.root = roots[0]

    @cached_property
    def _paths(self) -> dict[str, list[str]]:
        """Path below the root -> itself; file name -> the paths of all files of this name."""
        paths = defaultdict(list)
        for path in sorted(_files(self.root)):
            paths[path.rpartition("/")[2]].append(path)
        return paths | {path: [path] for found in [*paths.values()] for path in found if "/" in path}

    def find(self, *names: str) -> str | None:
        """Path below the root of the first of these file names or paths that exists; None if none does.

        Raises UserError for a name that several files in subfolders have.
        """
        found = next((name for name in names if name in self._paths), None)
        paths = self._paths[found] if found else [None]
        if len(paths) > 1 and found not in paths:
            raise UserError(f"the image {found} is both {paths[0]} and {paths[1]} in {self.root}; name it by its path")
        return found if found in paths else paths[0]
