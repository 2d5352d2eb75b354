"""Images that visitors upload, and the examples on the page."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import gradio
import numpy as np
from PIL import Image, ImageDraw

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.data.transforms import MAX_PIXELS, read_image

GALLERY = Scenes("test", size=200)
"""The images that the Search tab searches."""
EXAMPLE_SCENES = (0, 1, 6, 7, 23, 18, 22, 31)
"""Indices in the gallery of the scenes among the examples."""
PHOTOGRAPHS = Path(gradio.__file__).parent / "media_assets" / "images"
"""Photographs that gradio ships."""


@dataclass(frozen=True)
class Example:
    """An image with a question, and captions to rank of which the first one is right."""

    image: np.ndarray | Image.Image
    name: str
    question: str
    captions: list[str]


class Unreadable(UserError):
    """The uploaded file is not an image, or too large."""


def read(path: str | Path | Image.Image | None) -> Image.Image:
    """An uploaded image, RGB and upright; one that was read before is returned as it is.

    Raises UserError if there is none or it has expired, and Unreadable.
    """
    if isinstance(path, Image.Image):
        return path
    if not path:
        raise UserError("there is no image yet; upload one, or choose an example")
    if not Path(path).exists():
        raise UserError("this image has expired after an hour; upload it, or choose it, again")
    try:
        return read_image(path)
    except UserError as error:
        if "above the limit" in str(error):
            raise Unreadable(f"this image is above the limit of {MAX_PIXELS:,} pixels; scale it down") from None
        raise Unreadable("this file cannot be read as an image; choose another, as PNG, JPEG or WebP") from None


@cache
def examples() -> list[Example]:
    """Scenes, a drawing, and the photographs that gradio ships."""
    scenes = Scenes("test")
    examples = []
    for i in EXAMPLE_SCENES:
        item, others = scenes[i], [scenes[i + 100 * k] for k in (1, 2, 3)]
        captions = [min(one.captions, key=len) for one in (item, *others)]
        examples.append(Example(item.image, f"Scene: {item.captions[0]}", item.questions[2].text, captions))
    examples.append(Example(drawing(), "Drawing: a house beside a tree", "what is beside the house?", DRAWING_CAPTIONS))
    for file, name, captions in PHOTOGRAPH_CAPTIONS:
        if (PHOTOGRAPHS / file).is_file():
            examples.append(Example(read_image(PHOTOGRAPHS / file), f"Photograph: {name}", "what is this?", captions))
    return examples


DRAWING_CAPTIONS = [
    "a red house beside a green tree under the sun",
    "a red square",
    "a green circle above a brown square",
    "a boat",
]
PHOTOGRAPH_CAPTIONS = (
    ("cheetah.jpg", "a cheetah", ["a cheetah in the grass", "a lion resting", "a tall tower", "a red circle"]),
    ("lion.jpg", "a lion", ["a lion with its mane", "a cheetah running", "a tall tower", "a red circle"]),
    ("tower.jpg", "the Eiffel Tower", ["a tall iron tower", "a cheetah in the grass", "a lion", "a red circle"]),
)  # fmt: skip
"""File in `PHOTOGRAPHS`, what it shows, and captions to rank."""


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
