"""Images of any kind to the RGB squares, uint8 [S, S, 3], that batches are made of."""

import math
import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from stat import S_ISREG

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dlip.common.errors import UserError

ImageInput = Image.Image | np.ndarray | str | Path
"""An image, its pixels (uint8 [H, W, 3]), or its file."""
MAX_PIXELS = 80_000_000
"""Larger images are refused: a small file can decode into more memory than there is."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are read; Pillow passes some others (EPS) to external programs."""
SUFFIXES = ("jpg", "jpeg", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "jp2", "avif")
"""What their files' names end in."""

warnings.filterwarnings("ignore", module=r"PIL\.")  # decompression bombs are refused by to_rgb, other faults harmless


def read_image(path: str | Path, data: bytes | None = None) -> Image.Image:
    """The image in a file, or in `data` under that name: RGB and upright.

    Raises UserError, naming the file, if it cannot be read.
    """
    try:
        if data is None and not S_ISREG(os.stat(path).st_mode):
            raise OSError("it is not a file")  # reading a pipe would block forever
        with Image.open(path if data is None else BytesIO(data), formats=FORMATS) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"there is no image {path}; check its name") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        if isinstance(error, UnidentifiedImageError):
            error = ValueError("it is not an image of a known format")
        if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit, checked before to_rgb
            error = ValueError(f"it is above the limit of {MAX_PIXELS:,} pixels")
        raise UserError(f"the image {path} cannot be read ({error}); replace or remove it") from error


def as_pil(image: Image.Image | np.ndarray) -> Image.Image:
    """An image, or one of pixels, uint8 [H, W, 3]."""
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def as_list(values: Iterable, noun: str) -> list:
    """Images or texts as a list. Raises UserError for a single one, and for a text that is not a string."""
    if isinstance(values, str | Path | Image.Image) or (isinstance(values, np.ndarray) and values.ndim < 4):
        raise UserError(f"expected a list of {noun}s, got a single one; put it in brackets: [{noun}]")
    values = list(values)
    if noun != "image" and (wrong := [value for value in values if not isinstance(value, str)]):
        raise UserError(f"the {noun} {wrong[0]!r} is not a string; write it as one, or leave it out")
    return values


def load_image(image: ImageInput) -> Image.Image | np.ndarray:
    """An image (RGB and upright), the path of one, or pixels, uint8 [H, W, 3] (unchanged).

    Raises UserError for other pixels, such as those between 0 and 1, and for an empty image.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"pixels have to be uint8 [H, W, 3], not {pixels.dtype} {list(pixels.shape)}; convert them")
    _check_not_empty(pixels.shape[1], pixels.shape[0])
    return pixels


def _check_not_empty(width: int, height: int) -> None:
    if not width * height:
        raise UserError(f"an image of {width} x {height} has no pixels; crop less of it")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB: turned by its EXIF orientation, transparency over white, first frame.

    16-bit gray keeps its upper 8 bits. Raises UserError above `MAX_PIXELS`, before anything is decoded, and without
    pixels.
    """
    _check_not_empty(image.width, image.height)
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"an image of {image.width} x {image.height} is above the limit of {MAX_PIXELS:,} pixels; scale it down"
        )
    image.seek(0)
    image.load()
    has_16_bits = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
    with suppress(Exception):  # Pillow raises nearly anything on broken EXIF
        image = ImageOps.exif_transpose(image)
    if has_16_bits:
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_square(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """An RGB image, or its pixels [H, W, 3], as uint8 [size, size, 3]: bicubic, aspect not kept, as BLIP does.

    Pixels of that size already are returned, not copied.
    """
    if isinstance(image, np.ndarray):
        if image.shape == (size, size, 3):
            return image
        image = Image.fromarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def augment(image: Image.Image, size: int, rng: np.random.Generator, flip: bool = False) -> np.ndarray:
    """An RGB photo as uint8 [size, size, 3]: a random crop, mirrored with probability 1/2 if `flip`.

    The crop has 0.5 to 1 of the area, as in BLIP's training, and 3/4 to 4/3 of the photo's aspect ratio. It depends on
    the state of `rng` alone, not on `flip`.
    """
    area = rng.uniform(0.5, 1)
    aspect = math.exp(rng.uniform(-1, 1) * math.log(4 / 3))
    width = image.width * min(1, math.sqrt(area * aspect))
    height = image.height * min(1, math.sqrt(area / aspect))
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    mirrored = rng.random() < 0.5
    box = (left, top, min(left + width, image.width), min(top + height, image.height))
    crop = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    if flip and mirrored:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)
