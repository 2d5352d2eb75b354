"""What img2dataset writes with `output_format=files`: numbered folders of pictures, texts and JSON of one name."""

import re
from collections.abc import Iterator
from pathlib import Path

from dlip.common.errors import UserError
from dlip.data.folders.annotations import Record, load, need

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_NUMBERED = re.compile(r"\d{5,}")


def folders(path: Path) -> list[Path]:
    """The numbered folders in `path`, in order."""
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and _NUMBERED.fullmatch(entry.name))


def read_files(path: Path) -> Iterator[Record]:
    """A Record for each picture, with the caption that its JSON or, where there is none, its text file gives.

    All of it is the split train. Raises UserError where a file cannot be read.
    """
    for folder in folders(path):
        for picture in sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in PICTURES):
            name = f"{folder.name}/{picture.name}"
            caption = _caption(picture)
            record = Record(name, "train", [caption] if caption else [])
            if not caption:
                record.faults.append(f"{name} has {'no caption' if caption is None else 'an empty caption'}")
            yield record


def _caption(picture: Path) -> str | None:
    about, text = picture.with_suffix(".json"), picture.with_suffix(".txt")
    if about.is_file() and isinstance(known := load(about), dict) and known.get("caption") is not None:
        return need(known, "caption", str, str(about)).strip()
    try:
        return text.read_text("utf-8").strip() if text.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{text} cannot be read ({error}); mend or remove it") from error
