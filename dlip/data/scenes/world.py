"""The world of the built-in data: what a scene is, and how it is generated from a number."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

SIDE = 64
"""Height and width of an image in pixels."""

SIZES = {"small": 10, "large": 16}
"""Width of an object's bounding square in pixels, by the name of its size."""
LATTICE = 8
"""Bounding squares start at multiples of this many pixels, so that a shape looks the same everywhere."""
TEXTURES = ("plain", "striped", "dotted")
COLORS = {
    "red": (220, 35, 40),
    "blue": (45, 75, 225),
    "yellow": (250, 225, 40),
    "green": (35, 165, 60),
    "orange": (250, 135, 20),
    "purple": (140, 45, 175),
    "cyan": (50, 210, 225),
    "pink": (250, 150, 200),
    "brown": (140, 75, 30),
    "lime": (150, 240, 60),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "heart", "ring", "arrow", "moon")
"""Colors and shapes, the most frequent first: the k-th is drawn 1 / k times as often as the first."""
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
    """In order of salience and of drawing."""


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


CELLS = SIDE // LATTICE
"""Cells along each side of the image, for tags."""
TAGS = [value for values in VALUES for value in values] + [
    (where, value) for where in OPPOSITE for value in (*COLORS, *SHAPES)
]
"""Attributes of an object, and colors and shapes of the objects in each direction from it."""
_TAG_INDEX = {tag: i for i, tag in enumerate(TAGS)}


def tags(scene: Scene) -> np.ndarray:
    """float32 [CELLS * CELLS, len(TAGS)], row by row: the tags of the object that covers each cell."""
    cells = np.zeros((CELLS, CELLS, len(TAGS)), np.float32)
    for o in scene.objects:
        near = {(relation(p, o), value) for p in scene.objects if p is not o for value in (p.color, p.shape)}
        own = [_TAG_INDEX[tag] for tag in (*o.kind, *near) if tag in _TAG_INDEX]
        covered = (o.width + LATTICE // 2) // LATTICE  # cells that are at least half covered along each axis
        row, column = o.y // LATTICE, o.x // LATTICE
        cells[row : row + covered, column : column + covered, own] = 1
    return cells.reshape(-1, len(TAGS))


def make_scene(image_id: int, residue: int, modulus: int) -> Scene:
    """The scene of a number: 3 to 5 objects, no two alike; each of the first three is related to the next.

    Scenes 2k and 2k + 1 are twins: the same objects in other places, so that only relations tell their captions apart.
    The sum of the objects' edges `x + y`, in steps of the lattice, is `residue` modulo `modulus`, so that scenes of
    different residues have different layouts, whatever their numbers.
    """
    rng = random.Random(image_id // 2 * 8 + 4)
    kinds = _kinds(rng, 3 + int(rng.random() * 3))
    rng = random.Random(image_id * 4)  # of odd scenes the kinds' seed again: see the caveats of docs/ablations.md
    background = pick(rng, BACKGROUNDS)
    tone = {"dark": 48, "pale": 222}.get(background, 128) + int(rng.random() * 25) - 12
    variant = int(rng.random() * 4)
    twin = make_scene(image_id - 1, residue, modulus) if image_id % 2 else None
    while True:
        objects = _place(rng, kinds, residue, modulus)
        if objects and all(chain_of(objects)) and not (twin and chain_of(objects) == chain_of(twin.objects)):
            return Scene(image_id, background, tone, variant, tuple(objects))


def chain_of(objects: Sequence[Object]) -> list[str | None]:
    """Relations of the first object to the second and of the second to the third."""
    return [relation(a, b) for a, b in pairwise(objects[:3])]


def _kinds(rng: random.Random, count: int) -> list[tuple[str, str, str, str]]:
    """`count` different (size, texture, color, shape) in order of salience; colors and shapes often recur."""
    kinds: list[tuple[str, str, str, str]] = []
    while len(kinds) < count:
        size = "large" if rng.random() < 0.45 else "small"
        draw = rng.random()
        texture = "plain" if draw < 0.6 else "striped" if draw < 0.8 else "dotted"
        color, shape = _pick_frequent(rng, tuple(COLORS)), _pick_frequent(rng, SHAPES)
        draw = rng.random()
        if kinds and draw < 0.15:
            color = pick(rng, kinds)[2]
        elif kinds and draw < 0.3:
            shape = pick(rng, kinds)[3]
        if (size, texture, color, shape) not in kinds:
            kinds.append((size, texture, color, shape))
    return sorted(kinds, key=_salience)


def _salience(kind: tuple[str, str, str, str]) -> tuple[int, ...]:
    """Large before small, then by color, shape and texture: never by place, which would give relations away."""
    size, texture, color, shape = kind
    return size == "small", tuple(COLORS).index(color), SHAPES.index(shape), TEXTURES.index(texture)


def _pick_frequent(rng: random.Random, options: Sequence):
    """One of `options`, the k-th in proportion to 1 / k."""
    draw = rng.random() * sum(1 / k for k in range(1, len(options) + 1))
    for k, option in enumerate(options, 1):
        draw -= 1 / k
        if draw < 0:
            return option
    return options[-1]


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
    return placed


def _apart(x: int, y: int, width: int, color: str, o: Object) -> bool:
    shared = -1 if color == o.color else 1
    across = min(x + width, o.x + o.width) - max(x, o.x)
    return across <= shared or min(y + width, o.y + o.width) - max(y, o.y) <= shared
