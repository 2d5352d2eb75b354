"""Pictures of any kind to the RGB squares, uint8 [S, S, 3], that batches are made of."""

import math
import os
import warnings
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from stat import S_ISREG

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from dlip.common.errors import UserError

MAX_PIXELS = 80_000_000
"""Larger pictures are refused: a small file can claim to unpack into more memory than there is."""

warnings.filterwarnings("ignore", module=r"PIL\.")  # of bombs, which to_rgb refuses itself, and of what does no harm

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""That are read. Others are no photographs, or are handed to programs outside (EPS)."""


def read_image(path: str | Path, data: bytes | None = None) -> Image.Image:
    """The picture in a file, or in `data` under that name, RGB and upright.

    Raises UserError, naming the file, where that cannot be had.
    """
    try:
        if data is not None and data.startswith(b"\xff\xd8\xff"):
            return to_rgb(JpegImageFile(BytesIO(data)))  # without a search for the format, a twentieth of the time
        if data is None and not S_ISREG(os.stat(path).st_mode):
            raise OSError("it is no file")  # a pipe would be waited for
        with Image.open(path if data is None else BytesIO(data), formats=FORMATS) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"there is no picture {path}; check its name") from error
    except Exception as error:  # on a broken file Pillow's decoders raise nearly anything
        if isinstance(error, UnidentifiedImageError):  # which does not say it in words for users
            error = ValueError("it is no picture of a known kind")
        if isinstance(error, Image.DecompressionBombError):  # Pillow's own limit, before to_rgb sees the picture
            error = ValueError(f"it is above the limit of {MAX_PIXELS:,} pixels")
        raise UserError(f"cannot read the picture {path} ({error}); mend or remove it") from error


def as_list(values: Iterable, noun: str) -> list:
    """Pictures or texts as a list. Raises UserError for a single one, whose letters would be taken for several."""
    if isinstance(values, str | Path | Image.Image):
        raise UserError(f"{noun}s come in a list, and here is one alone; put it in brackets, [{noun}]")
    return list(values)


def load_image(image: str | Path | Image.Image | np.ndarray) -> Image.Image | np.ndarray:
    """A picture, a path or pixels, ready to be resized."""
    if isinstance(image, str | Path):
        return read_image(image)
    return to_rgb(image) if isinstance(image, Image.Image) else image


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, turned as its EXIF says, transparency over white, an animation's first frame.

    16-bit grey keeps its upper 8 bits, float grey is stretched from its least to its greatest value.
    Raises UserError above `MAX_PIXELS`, before anything is unpacked.
    """
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"a picture of {image.width} x {image.height} is above the limit of {MAX_PIXELS:,} pixels; scale it down"
        )
    if getattr(image, "is_animated", False):
        image.seek(0)
    image.load()
    orientation = _orientation(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(_stretch(np.asarray(image)))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image if image.mode == "RGB" else image.convert("RGB")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int | None:
    """As the EXIF says, if it can be read; `exif_transpose` would also rewrite it, and may fail."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # on a broken one Pillow raises nearly anything
        return None


def resize_square(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """RGB picture, or its pixels [H, W, 3], to uint8 [size, size, 3]: bicubic, the sides squeezed as BLIP does.

    Pixels that have the size already are returned as they are, not copied.
    """
    if isinstance(image, np.ndarray):
        if image.shape == (size, size, 3):
            return image
        image = Image.fromarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def augment(image: Image.Image, size: int, rng: np.random.Generator, flip: bool = False) -> np.ndarray:
    """RGB photo to uint8 [size, size, 3]: a random crop, by half the chance mirrored where `flip` allows it.

    The crop has 0.5 to 1 of the area, as in BLIP's training, and 3/4 to 4/3 of the photo's own aspect. It depends on
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


def _stretch(values: np.ndarray) -> np.ndarray:
    low, high = np.nanmin(values), np.nanmax(values)
    return np.nan_to_num((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
