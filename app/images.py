"""Pictures that visitors bring, and the examples that the page offers."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gradio
import numpy as np
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder
from PIL import Image, ImageDraw

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.data.transforms import MAX_PIXELS, read_image

GALLERY = Scenes("test", size=200)
"""Of which Search finds some."""
SCENES = (0, 1, 6, 7, 23, 18, 22, 31)
"""Those of its pictures that are examples."""
PHOTOGRAPHS = Path(gradio.__file__).parent / "media_assets" / "images"
"""Gradio ships a few."""


@dataclass(frozen=True)
class Example:
    """A picture with something to ask of it, and captions to rank, the first of which fits."""

    image: np.ndarray | Image.Image
    name: str
    question: str
    captions: list[str]


class Unreadable(UserError):
    """A visitor's file is no picture, or too large a one."""


def brought(payload: ImageData | None) -> str | None:
    """The file of the page's picture, for `read`. Raises gr.Error for one that nobody brought and that the page never
    showed: gradio refuses it only where a request itself marks it as a file."""
    if payload is None or payload.path is None:
        return None
    if not Path(payload.path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        said = "This picture was not brought here; send its file first, as gradio_client's handle_file does."
        raise gradio.Error(said, title="", print_exception=False)
    return payload.path


def read(path: str | Path | None) -> Image.Image:
    """A visitor's picture, RGB and upright. Raises UserError where there is none, or no longer, and Unreadable."""
    if not path:
        raise UserError("there is no picture yet; drop one in, or choose an example")
    if not Path(path).exists():
        raise UserError("this picture was kept for an hour, which is over; bring it, or choose it, again")
    try:
        return read_image(path)
    except UserError as error:
        if "above the limit" in str(error):
            raise Unreadable(f"this picture is above the limit of {MAX_PIXELS:,} pixels; scale it down") from None
        raise Unreadable("this file cannot be read as a picture; choose another, as PNG, JPEG or WebP") from None


@cache
def examples() -> list[Example]:
    """Scenes, a drawing, and those of Gradio's photographs that are installed."""
    data = Scenes("test")
    found = []
    for i in SCENES:
        item, others = data[i], [data[i + 100 * k] for k in (1, 2, 3)]
        captions = [min(one.captions, key=len) for one in (item, *others)]
        found.append(Example(item.image, f"Scene: {item.captions[0]}", item.questions[2].text, captions))
    found.append(Example(drawing(), "Drawing: a house beside a tree", "what is beside the house?", DRAWN))
    for file, name, captions in SHIPPED:
        if (PHOTOGRAPHS / file).is_file():
            found.append(Example(read_image(PHOTOGRAPHS / file), f"Photograph: {name}", "what is this?", captions))
    return found


DRAWN = [
    "a red house beside a green tree under the sun",
    "a red square",
    "a green circle above a brown square",
    "a boat",
]
SHIPPED = (
    ("cheetah.jpg", "a cheetah", ["a cheetah in the grass", "a lion resting", "a tall tower", "a red circle"]),
    ("lion.jpg", "a lion", ["a lion with its mane", "a cheetah running", "a tall tower", "a red circle"]),
    ("tower.jpg", "the Eiffel Tower", ["a tall iron tower", "a cheetah in the grass", "a lion", "a red circle"]),
)  # fmt: skip
"""File of `PHOTOGRAPHS`, what it shows, and captions to rank."""


def drawing(side: int = 240) -> Image.Image:
    """A house, a tree and the sun."""
    image = Image.new("RGB", (side, side), "#bfe3f5")
    pen, u = ImageDraw.Draw(image), side / 24
    pen.rectangle((0, 17 * u, side, side), fill="#7cb56b")
    pen.ellipse((17 * u, 2 * u, 21.5 * u, 6.5 * u), fill="#f7d038")
    pen.rectangle((4 * u, 10 * u, 13 * u, 19 * u), fill="#c8503c")
    pen.polygon([(3 * u, 10 * u), (8.5 * u, 4.5 * u), (14 * u, 10 * u)], fill="#6b3a2e")
    pen.rectangle((7.3 * u, 14 * u, 9.8 * u, 19 * u), fill="#f3e3c3")
    pen.rectangle((17.4 * u, 14 * u, 18.8 * u, 20 * u), fill="#7a5230")
    pen.ellipse((14.6 * u, 8 * u, 21.6 * u, 15.5 * u), fill="#2f7d3b")
    return image
