"""Images that visitors upload, and the examples on the page."""

from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, ImageDraw

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
"""Photographs that the app ships; docs/licenses.md names their authors."""
GRADIO_PHOTOGRAPHS = Path(find_spec("gradio").origin).parent / "media_assets" / "images"
"""Photographs that gradio ships."""


@dataclass(frozen=True)
class Example:
    """An image with a question, and captions to rank of which the first one is right."""

    image: Image.Image
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
        with _decoding:
            return _decoded(str(path), Path(path).stat().st_mtime_ns)
    except UserError as error:
        if "above the limit" in str(error):
            raise Unreadable(f"this image is above the limit of {MAX_PIXELS:,} pixels; scale it down") from None
        raise Unreadable("this file cannot be read as an image; choose another, as PNG, JPEG or WebP") from None


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


def is_drawing(image: Image.Image) -> bool:
    """Whether 32 colors cover most of the image, as in drawings, charts and pages of text, but not in photographs."""
    small = as_pil(image).resize((128, 128), Image.Resampling.NEAREST)
    counts = sorted(count for count, _ in small.getcolors(128 * 128))
    return sum(counts[-32:]) > 0.9 * sum(counts)


def examples() -> list[Example]:
    """Photographs, a drawing and scenes; those that the models of the opening page know come first."""
    every = [*photographs(), DRAWING, *_scenes()]
    return sorted(every, key=lambda example: bool(models.out_of_domain(kind(example.image), models.defaults())))


@cache
def photographs() -> list[Example]:
    """The photographs that the app and gradio ship, as far as they are there."""
    return [
        Example(read_image(file), f"Photograph: {name}", question, captions)
        for file, name, question, captions in PHOTOGRAPH_CAPTIONS if file.is_file()
    ]  # fmt: skip


@cache
def _scenes() -> list[Example]:
    scenes, examples = Scenes("test"), []
    for i in EXAMPLE_SCENES:
        item, others = scenes[i], [scenes[i + 100 * k] for k in (1, 2, 3)]
        captions = [min(one.captions, key=len) for one in (item, *others)]
        image = Image.fromarray(item.image)
        examples.append(Example(image, f"Scene: {item.captions[0]}", item.questions[2].text, captions))
    return examples


PHOTOGRAPH_CAPTIONS = (
    (OWN_PHOTOGRAPHS / "bicycle_jump.jpg", "a bicycle in the air", "is the bicycle in the air?",
     ["a man jumps with a bicycle", "a man rides a horse", "a dog runs on the grass", "a man stands in the snow"]),
    (OWN_PHOTOGRAPHS / "mountain_top.jpg", "a man on a mountain", "what is the man standing on?",
     ["a man on top of a mountain", "a man in a red coat", "a dog in the water", "two children on a beach"]),
    (OWN_PHOTOGRAPHS / "hiker.jpg", "a hiker at dusk", "is the man wearing a backpack?",
     ["a man with a backpack at dusk", "a man on a bicycle", "a woman in a pool", "a dog runs on the grass"]),
    (OWN_PHOTOGRAPHS / "snow.jpg", "a person in the snow", "what is covered in snow?",
     ["a person on a snowy mountain", "a man on a beach", "a dog runs on the grass", "a crowd in a street"]),
    (OWN_PHOTOGRAPHS / "orange_jacket.jpg", "a wreck on a black beach", "what color is the jacket?",
     ["a man in an orange jacket", "a man in the snow", "a bicycle in the air", "two dogs play"]),
    (OWN_PHOTOGRAPHS / "man_with_camera.jpg", "a man with a camera", "is the man outside?",
     ["a man with a camera", "a man rides a horse", "a dog runs on the grass", "a tower at night"]),
    (GRADIO_PHOTOGRAPHS / "lion.jpg", "a lion", "what is lying on the rock?",
     ["a lion rests on a rock", "a cheetah runs", "a tower at night", "a woman in a uniform"]),
)  # fmt: skip
"""File, what it shows, a question in the words of COCO-QA, and captions to rank."""


OWN_IMAGE = {
    "photos": ("are there any people in the picture?",
               ["a dog runs on the grass", "a group of people", "a street with cars", "a plate of food"]),
    "scenes": ("how many things are there?",
               ["a red circle", "a large blue square", "a small green star", "a yellow cross"]),
}  # fmt: skip
"""Kind of an image of the visitor's own -> a question and captions to rank, in place of an example's."""


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


DRAWING = Example(
    drawing(), "Drawing: a house beside a tree", "what is beside the house?",
    ["a red house beside a green tree under the sun", "a red square", "a green circle above a brown square", "a boat"],
)  # fmt: skip
