"""Pieces of pages: pictures inside the page, and texts with their differences marked."""

import base64
import difflib
import io
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from dlip.common.errors import UserError

SIDE, SMALL = 320, 128
"""px: longest side of a picture in a page, and of one that is shown pixel by pixel."""


def marked(text: str, reference: str | None) -> str:
    """The text with the words marked that differ from the reference's, and "…" where it has none of the reference's."""
    if reference is None:
        return escape(text)
    words, theirs = text.split(), reference.split()
    parts = []
    for change, _, _, start, end in difflib.SequenceMatcher(None, theirs, words, autojunk=False).get_opcodes():
        some = escape(" ".join(words[start:end])) or "…"
        parts.append(some if change == "equal" else f"<mark>{some}</mark>")
    return " ".join(parts)


def image_tag(picture: Image.Image | np.ndarray | str | Path, alt: str = "") -> str:
    """A picture inside the page: a small one as it is, others as JPEG of at most `SIDE` px.

    Raises UserError where its file cannot be read.
    """
    try:
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        image = (image if isinstance(image, Image.Image) else Image.open(image)).convert("RGB")
    except OSError as error:
        raise UserError(f"the picture {picture} cannot be read: {error}; leave it out of the report") from error
    kind = "png" if max(image.size) <= SMALL else "jpeg"
    image.thumbnail((SIDE, SIDE))
    return f'<img class="{kind}" src="{data_uri(image, kind)}" alt="{escape(alt)}">'


def data_uri(image: Image.Image, kind: str = "png") -> str:
    """A picture as an address that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
