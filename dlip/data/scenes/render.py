"""Drawing of scenes: antialiased sprites, cached, on a background."""

import random
from functools import cache

import numpy as np

from dlip.data.scenes.world import SIDE, Scene

_SAMPLES = 8  # per pixel along each axis, for antialiasing
_INK = np.float32(0.3)  # brightness of stripes and dots, as a fraction of the color's
# Five corners at radius 1 and five at 0.52, clockwise from the top.
_STAR_X = [0.0, 0.3057, 0.9511, 0.4945, 0.5878, 0.0, -0.5878, -0.4945, -0.9511, -0.3057]
_STAR_Y = [-1.0, -0.4207, -0.309, 0.1607, 0.809, 0.52, 0.809, 0.1607, -0.309, -0.4207]
_STAR = list(zip(_STAR_X, _STAR_Y, strict=True))


def render(scene: Scene) -> np.ndarray:
    """The image of a scene: uint8 [64, 64, 3]."""
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = _background(scene)[..., None]
    for o in scene.objects:
        alpha, shade = _sprite(o.shape, o.texture, o.width)  # [w, w, 1] each
        patch = image[o.y : o.y + o.width, o.x : o.x + o.width]
        patch += alpha * (shade * np.array(o.rgb, np.float32) - patch)
    return image.astype(np.uint8)


def masks(scene: Scene) -> np.ndarray:
    """Visible pixels of each object: bool [objects, 64, 64]; the last object that covers half a pixel has it."""
    visible = np.zeros((len(scene.objects), SIDE, SIDE), bool)
    for i, o in enumerate(scene.objects):
        rows, columns = slice(o.y, o.y + o.width), slice(o.x, o.x + o.width)
        solid = _sprite(o.shape, o.texture, o.width)[0][..., 0] >= 0.5
        visible[:i, rows, columns] &= ~solid
        visible[i, rows, columns] = solid
    return visible


def _background(scene: Scene) -> np.ndarray:
    """Gray values, float32 [64, 64] or a shape that broadcasts to it."""
    tone = np.float32(scene.tone)
    if scene.background == "shaded":
        ramp = tone + np.linspace(-80, 80, SIDE, dtype=np.float32)[:: 1 if scene.variant < 2 else -1]
        return ramp[None, :] if scene.variant % 2 else ramp[:, None]
    if scene.background == "checkered":
        row, column = np.ogrid[scene.variant : scene.variant + SIDE, scene.variant : scene.variant + SIDE]
        return tone - 28 + 56 * ((row // 6 + column // 6) % 2).astype(np.float32)
    if scene.background == "noisy":
        noise = random.Random(scene.image_id * 4 + 3).randbytes(SIDE * SIDE)
        return tone - 64 + np.frombuffer(noise, np.uint8).reshape(SIDE, SIDE).astype(np.float32) / 2
    return np.full((1, 1), tone)


@cache
def _sprite(shape: str, texture: str, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of each pixel, 0 to 1, and its brightness as a fraction of the color's: float32 [w, w, 1] each."""
    points = (np.arange(width * _SAMPLES) + 0.5) / (width * _SAMPLES) * 2 - 1  # -1 to 1
    inside = _inside(shape, points[None, :], points[:, None])
    alpha = inside.reshape(width, _SAMPLES, width, _SAMPLES).mean((1, 3), dtype=np.float32)
    thickness = 1 if width < 13 else 2  # of stripes and dots; gaps between them are 2 pixels wide
    offset = np.arange(width) - width // 2  # one stripe or dot is in the middle
    dark = offset % (thickness + 2) < thickness
    rows, columns = dark[:, None], dark[None, :]
    ink = {"plain": rows & False, "striped": rows | (columns & False), "dotted": rows & columns}[texture]
    return alpha[..., None], np.where(ink, _INK, np.float32(1))[..., None]


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether the shape covers each point of the square from -1 to 1 (y downwards): bool [N, N]."""
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return (abs(x) <= 0.9) & (abs(y) <= 0.9)
    if shape == "triangle":
        return (2 * abs(x) - 1 <= y) & (y <= 0.9)
    if shape == "cross":
        return ((abs(x) <= 0.34) & (abs(y) <= 1)) | ((abs(y) <= 0.34) & (abs(x) <= 1))
    if shape == "diamond":
        return abs(x) + abs(y) <= 1
    if shape == "ring":
        return (x * x + y * y <= 1) & (x * x + y * y >= 0.3)
    if shape == "moon":
        return (x * x + y * y <= 1) & ((x - 0.6) ** 2 + y * y >= 0.6)
    if shape == "arrow":
        return ((abs(x) <= 0.3) & (abs(y) <= 1)) | ((abs(x) <= y + 1) & (y <= 0))
    if shape == "heart":
        u, v = 1.2 * x, 0.25 - 1.2 * y
        return (u * u + v * v - 1) ** 3 <= u * u * v**3
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), bool)  # star: even-odd rule, edge by edge
    for (x0, y0), (x1, y1) in zip(_STAR, _STAR[1:] + _STAR[:1], strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return inside
