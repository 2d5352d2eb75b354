"""The world of the built-in data: what a scene is, and how it is generated from a number."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

SIDE = 48
"""Height and width of an image in pixels."""

SIZES = {"small": 10, "large": 16}
"""Width of an object's bounding square in pixels, by the name of its size."""
LATTICE = 8
"""Bounding squares start at multiples of so many pixels, so that a shape looks the same everywhere."""
TEXTURES = ("plain", "striped", "dotted")
COLORS = {
    "red": (220, 35, 40),
    "green": (35, 165, 60),
    "blue": (45, 75, 225),
    "yellow": (250, 225, 40),
    "purple": (140, 45, 175),
    "orange": (250, 135, 20),
    "cyan": (50, 210, 225),
    "pink": (250, 150, 200),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
BACKGROUNDS = ("gray", "dark", "pale", "shaded", "checkered", "noisy")
ATTRIBUTES = ("size", "texture", "color", "shape")
"""An object's attributes, in the order in which a phrase names them."""
VALUES = (tuple(SIZES), TEXTURES, tuple(COLORS), SHAPES)
"""Values of each attribute."""
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}

_MIN_GAP = 8  # pixels between two centers along an axis for a relation along it
_MIN_RATIO = 1.3  # of the gap along the axis of a relation to that along the other axis


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a scene."""

    size: str
    texture: str
    color: str
    shape: str
    x: int
    """Left edge of the bounding square in pixels."""
    y: int
    """Top edge of the bounding square in pixels."""
    width: int
    """Side of the bounding square in pixels."""
    rgb: tuple[int, int, int]
    """Color as drawn: the named one, a little brighter or darker."""

    @property
    def kind(self) -> tuple[str, str, str, str]:
        """(size, texture, color, shape)"""
        return self.size, self.texture, self.color, self.shape


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that is true of one image."""

    image_id: int
    """Also the seed of everything random in the image and its texts."""
    background: str
    tone: int
    """Mean brightness of the background, 0 to 255."""
    variant: int
    """0 to 3: direction of the shading, or shift of the checkerboard."""
    objects: tuple[Object, ...]
    """In order of salience and of drawing: large before small, then left to right."""


def pick(rng: random.Random, options: Sequence):
    """One of `options`, by `rng.random()` alone: its sequence is the same in all versions of Python."""
    return options[int(rng.random() * len(options))]


def gap(a: Object, b: Object) -> tuple[float, float]:
    """Pixels from the center of b to the center of a: (rightwards, downwards)."""
    return a.x - b.x + (a.width - b.width) / 2, a.y - b.y + (a.width - b.width) / 2


def relation(a: Object, b: Object) -> str | None:
    """Position of a relative to b ("left", "right", "above", "below"); None if neither axis clearly dominates."""
    dx, dy = gap(a, b)
    if abs(dx) >= max(_MIN_GAP, _MIN_RATIO * abs(dy)):
        return "left" if dx < 0 else "right"
    if abs(dy) >= max(_MIN_GAP, _MIN_RATIO * abs(dx)):
        return "above" if dy < 0 else "below"
    return None


KINDS = [
    (name, value, shape)
    for name, values in (("color", tuple(COLORS)), ("size", tuple(SIZES)), ("texture", TEXTURES))
    for value in values
    for shape in SHAPES
]
"""Kinds of objects, as (attribute, value, shape): "a red star", "a large cross", "a dotted circle"."""
RELATIONS = [
    (a, where, b) for values in (tuple(COLORS), SHAPES) for a in values for where in ("left", "above") for b in values
]
"""Relations of two colors or two shapes: ("red", "left", "blue"), ("star", "above", "circle")."""
TAGS = KINDS + RELATIONS


def tags(scene: Scene) -> np.ndarray:
    """float32 [len(TAGS)]: 1 for each kind of object and each relation in the scene."""
    present = {(name, getattr(o, name), o.shape) for o in scene.objects for name in ("color", "size", "texture")}
    for a, b in permutations(scene.objects, 2):
        where = relation(a, b)
        present |= {(a.color, where, b.color), (a.shape, where, b.shape)}
    return np.array([tag in present for tag in TAGS], np.float32)


def make_scene(image_id: int, residue: int, modulus: int) -> Scene:
    """The scene of a number: 2 to 4 objects, no two alike, with at least one related pair.

    The sum of the objects' edges `x + y`, in steps of the lattice, is `residue` modulo `modulus`, so that scenes of
    different residues have different layouts, whatever their numbers.
    """
    rng = random.Random(image_id * 4)
    background = pick(rng, BACKGROUNDS)
    tone = {"dark": 48, "pale": 222}.get(background, 128) + int(rng.random() * 25) - 12
    variant = int(rng.random() * 4)
    count = 2 + int(rng.random() * 3)
    while True:
        objects = _place(rng, _kinds(rng, count), residue, modulus)
        if objects and any(relation(a, b) for a in objects for b in objects):
            return Scene(image_id, background, tone, variant, tuple(objects))


def _kinds(rng: random.Random, count: int) -> list[tuple[str, str, str, str]]:
    """`count` different (size, texture, color, shape), large ones first; colors and shapes often recur."""
    kinds: list[tuple[str, str, str, str]] = []
    while len(kinds) < count:
        size = "large" if rng.random() < 0.45 else "small"
        draw = rng.random()
        texture = "plain" if draw < 0.6 else "striped" if draw < 0.8 else "dotted"
        color, shape = pick(rng, tuple(COLORS)), pick(rng, SHAPES)
        draw = rng.random()
        if kinds and draw < 0.15:
            color = pick(rng, kinds)[2]
        elif kinds and draw < 0.3:
            shape = pick(rng, kinds)[3]
        if (size, texture, color, shape) not in kinds:
            kinds.append((size, texture, color, shape))
    return sorted(kinds, key=lambda kind: kind[0])


def _place(rng: random.Random, kinds: list, residue: int, modulus: int) -> list[Object] | None:
    """Objects inside the image; None if there is no room.

    Bounding squares may share a row or column of pixels; those of one color stay a pixel apart.
    """
    placed: list[Object] = []
    for kind in kinds:
        width = SIZES[kind[0]]
        cells = (SIDE - width) // LATTICE + 1
        last = len(placed) == len(kinds) - 1
        for _ in range(40):
            column, row = int(rng.random() * cells), int(rng.random() * cells)
            if last:  # move down by 0 to modulus - 1 rows for the right sum
                row += (residue - sum(o.x + o.y for o in placed) // LATTICE - column - row) % modulus
            x, y = LATTICE * column, LATTICE * row
            if row < cells and all(_apart(x, y, width, kind[2], o) for o in placed):
                break
        else:
            return None
        brightness = 0.86 + 0.2 * rng.random()
        rgb = tuple(min(255, int(channel * brightness)) for channel in COLORS[kind[2]])
        placed.append(Object(*kind, x, y, width, rgb))
    return sorted(placed, key=lambda o: (o.size, o.x + o.width / 2, o.y))


def _apart(x: int, y: int, width: int, color: str, o: Object) -> bool:
    shared = -1 if color == o.color else 1
    across = min(x + width, o.x + o.width) - max(x, o.x)
    return across <= shared or min(y + width, o.y + o.width) - max(y, o.y) <= shared
