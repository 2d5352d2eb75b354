"""HTML of figures: templates with autoescape, images embedded in the page, texts with marked differences."""

import base64
import difflib
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from dlip.data.transforms import as_pil

MAX_SIDE, PIXEL_ART_SIDE = 320, 128
"""px: longest side of an embedded image, and up to which an image keeps its pixels (PNG, scaled without smoothing)."""


def environment(folder: Path) -> Environment:
    """Templates of a folder. Values are escaped, and the functions of this module are available."""
    env = Environment(loader=FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    env.policies["json.dumps_kwargs"] = {}  # keeps the order of keys
    env.globals |= {"image_tag": image_tag, "mark_differences": mark_differences}
    return env


def mark_differences(text: str, reference: str | None) -> Markup:
    """The text with the words marked that differ from the reference; a marked gap names missing words in its title."""
    if reference is None:
        return Markup.escape(text)
    old, new = reference.split(), text.split()
    parts = []
    for change, was, until, start, end in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        words, missing = " ".join(new[start:end]), " ".join(old[was:until])
        mark = (
            Markup("<mark>{}</mark>").format(words) if words else Markup('<mark title="{}">\xa0</mark>').format(missing)
        )
        parts.append(words if change == "equal" else mark)
    return Markup(" ").join(parts)


def image_tag(image: Image.Image | np.ndarray, alt: str = "", width: int | None = None) -> Markup:
    """An <img> with the image inside: a small one as it is, a larger one as JPEG of at most `MAX_SIDE` px.

    width: px at which a table column may not shrink it.
    """
    pixels = as_pil(image).convert("RGB")
    kind = "png" if max(pixels.size) <= PIXEL_ART_SIDE else "jpeg"
    pixels.thumbnail((MAX_SIDE, MAX_SIDE))
    size = Markup(' width="{0}" style="max-width: none; min-width: {0}px"').format(width) if width else ""
    return Markup('<img class="{}" src="{}" alt="{}"{}>').format(kind, data_uri(pixels, kind), alt, size)


def data_uri(image: Image.Image, kind: str = "png") -> str:
    """An image as a `data:` URI."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
