"""Images that visitors upload, and the examples on the page."""

import json
import os
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Annotated

import gradio as gr
import numpy as np
from PIL import Image
from pydantic import PlainValidator

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.world import SIDE
from dlip.data.transforms import MAX_PIXELS, as_pil, read_image

from . import models

SCENES = Scenes("test", size=200)
"""Scenes that the page shows, in its gallery and among the examples."""
MAX_COLORS = 1024
"""Colors of a scene at most. Of 3,000 scenes none has more than 467; photographs of their size have thousands."""
EXAMPLE_SCENES = (0, 1, 6, 23)
"""Indices in `SCENES` of those among the examples."""
OWN_PHOTOGRAPHS = Path(__file__).parent / "photographs"
"""Photographs that the app ships, with their questions and captions; docs/licenses.md names their authors."""
GRADIO_PHOTOGRAPHS = Path(find_spec("gradio").origin).parent / "media_assets" / "images"
"""Photographs that gradio ships."""


@dataclass(frozen=True)
class Example:
    """An image with a question, and captions to rank of which the first one is right."""

    image: Image.Image
    name: str
    question: str
    captions: list[str]


def uploaded(file: object) -> str | None:
    """Path of the file of a request. Raises UserError for one that was not uploaded here."""
    path = file.get("path") if isinstance(file, dict) else getattr(file, "path", file)
    if path is None:
        return None
    folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    if not isinstance(path, str) or not Path(path).resolve().is_relative_to(folder):
        raise UserError("this image was not uploaded here; upload its file first, as gradio_client's handle_file does")
    return path


def read(path: str | Path | Image.Image | None) -> Image.Image:
    """An uploaded image, RGB and upright; one that was read before is returned as it is.

    Raises UserError if there is none, it has expired, is not an image or too large.
    """
    if isinstance(path, Image.Image):
        return path
    if not path:
        raise UserError("there is no image yet; upload one, or choose an example")
    if not Path(path).exists():
        raise UserError("this image has expired after an hour; upload it, or choose it, again")
    try:
        with _decoding:
            return _decoded(str(path), Path(path).stat().st_mtime_ns)
    except UserError as error:
        if "above the limit" in str(error):
            raise UserError(f"this image is above the limit of {MAX_PIXELS:,} pixels; scale it down") from None
        raise UserError("this file cannot be read as an image; choose another, as PNG, JPEG or WebP") from None


Upload = Annotated[gr.FileData, PlainValidator(read)]
"""Annotation of a parameter: a path, which the function gets as the image that is read from it."""

_decoding = Lock()
"""Held by the one upload that is decoded: many large ones at once would need more memory than there is."""


@lru_cache(maxsize=2)  # every tab reads the chosen image
def _decoded(path: str, mtime_ns: int) -> Image.Image:
    return read_image(path)


def kind(image: Image.Image | np.ndarray) -> str:
    """Which of the shipped models know such an image: "scenes" if it has their size and few colors, else "photos".

    Scenes have colors, so an image of grays is a photograph.
    """
    image = as_pil(image)
    colors = image.convert("RGB").getcolors(MAX_COLORS) if image.size == (SIDE, SIDE) else None
    return "scenes" if colors and any(len({*color}) > 1 for _, color in colors) else "photos"


def examples() -> list[Example]:
    """Photographs and scenes; those that the models of the opening page know come first."""
    every = [*photographs(), *_scenes()]
    return sorted(every, key=lambda example: bool(models.out_of_domain(kind(example.image), models.defaults())))


@cache
def photographs() -> list[Example]:
    """The photographs that the app and gradio ship, as far as they are there."""
    found = []
    for row in json.loads((OWN_PHOTOGRAPHS / "captions.json").read_text()):
        file = next(filter(Path.is_file, (OWN_PHOTOGRAPHS / row["file"], GRADIO_PHOTOGRAPHS / row["file"])), None)
        if file:
            found.append(Example(read_image(file), f"Photograph: {row['name']}", row["question"], row["captions"]))
    return found


@cache
def _scenes() -> list[Example]:
    scenes, examples = Scenes("test"), []
    for i in EXAMPLE_SCENES:
        item, others = scenes[i], [scenes[i + 100 * k] for k in (1, 2, 3)]
        captions = [min(one.captions, key=len) for one in (item, *others)]
        image = Image.fromarray(item.image)
        examples.append(Example(image, f"Scene: {item.captions[0]}", item.questions[2].text, captions))
    return examples
