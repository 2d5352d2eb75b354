"""Images of any mode, format and orientation as RGB squares; damaged and huge ones are refused."""

import numpy as np
import pytest
import transformers
from PIL import Image

from dlip.common.errors import UserError
from dlip.data.transforms import MAX_PIXELS, as_list, augment, load_image, read_image, resize_square, to_rgb
from tests.helpers import png_claiming


@pytest.fixture
def photo() -> Image.Image:
    """A smooth image that is not square; each corner has another color."""
    corners = np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [240, 240, 10]]], np.uint8)
    return Image.fromarray(corners).resize((80, 50), Image.Resampling.BILINEAR)


def quadrants(image: Image.Image) -> str:
    """The fixture's color in each corner: top left, top right, bottom left, bottom right."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow"}
    w, h = image.width - 1, image.height - 1
    return " ".join(names[tuple(v > 128 for v in image.getpixel(at))] for at in ((0, 0), (w, 0), (0, h), (w, h)))


ORIENTATIONS = {  # expected corners, worked out by hand from the EXIF standard
    1: "red green blue yellow",
    2: "green red yellow blue",
    3: "yellow blue green red",
    4: "blue yellow red green",
    5: "red blue green yellow",
    6: "blue red yellow green",
    7: "yellow green blue red",
    8: "green yellow red blue",
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_turns_the_image(photo, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert quadrants(image) == ORIENTATIONS[orientation]
    assert image.size == ((50, 80) if orientation > 4 else (80, 50))
    assert quadrants(load_image(image)) == quadrants(image)  # not turned once more


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("P", "png"), ("RGBA", "png")])
def test_colors_survive_the_mode(photo, tmp_path, mode, suffix):
    photo.convert(mode).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert (image.mode, image.size, quadrants(image)) == ("RGB", (80, 50), "red green blue yellow")


@pytest.mark.parametrize("suffix", ["tif", "png", "pgm"])
def test_deep_gray_keeps_its_shades(tmp_path, suffix):
    levels = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    assert np.asarray(read_image(tmp_path / f"a.{suffix}"))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_white(mode):
    image = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 1))
    assert np.asarray(to_rgb(image.convert(mode)))[0].tolist() == [[0] * 3] * 2 + [[255] * 3] * 2


@pytest.mark.parametrize("fault", ["truncated", "text", "empty", "folder", "gone", "png without pixels", "program"])
@pytest.mark.filterwarnings("error")
def test_unreadable_files_are_named(photo, tmp_path, fault):
    """Also a format that Pillow would pass to an external program."""
    file = tmp_path / "bad.jpg"
    contents = {"text": b"not an image", "empty": b"", "png without pixels": png_claiming(9, 9)}
    if fault in contents:
        file.write_bytes(contents[fault])
    elif fault == "folder":
        file.mkdir()
    elif fault != "gone":
        photo.save(file, "EPS" if fault == "program" else "JPEG")
        file.write_bytes(file.read_bytes()[: -200 if fault == "truncated" else None])
    with pytest.raises(UserError, match=r"bad\.jpg"):
        read_image(file)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest forgets our own filter
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])  # above our limit, Pillow's warning and Pillow's error
def test_decompression_bombs_are_refused(tmp_path, side):
    assert side * side > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(png_claiming(side, side))
    with pytest.raises(UserError, match=r"bomb\.png.*limit"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("size", [(211, 37), (101, 333), (641, 480), (96, 96), (1, 1)])
def test_resize_square_equals_blips_processor(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    square = {"height": 96, "width": 96}
    stock = transformers.BlipImageProcessorPil(size=square, resample=3, do_normalize=False, do_rescale=False)
    expected = stock(Image.fromarray(noise), return_tensors="np")["pixel_values"][0]
    resized = resize_square(Image.fromarray(noise), 96)
    assert resized.dtype == np.uint8 and np.array_equal(resized, expected.transpose(1, 2, 0))
    assert np.array_equal(resize_square(noise, 96), resized)


def test_augment_depends_on_the_generator_alone(photo):
    def crop(seed, **kwargs):
        return augment(photo, 32, np.random.default_rng(seed), **kwargs)

    assert np.array_equal(crop(1), crop(1)) and not np.array_equal(crop(1), crop(2))
    same = [np.array_equal(crop(seed, flip=True), crop(seed)) for seed in range(400)]
    mirrored = [np.array_equal(crop(seed, flip=True), crop(seed)[:, ::-1]) for seed in range(400)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 150 < sum(mirrored) < 250


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), Image.new("RGB", (4, 0))]
)
def test_other_pixels_are_refused(pixels):
    with pytest.raises(UserError, match="pixels"):
        load_image(pixels)
    with pytest.raises(UserError, match="list"):
        as_list(pixels, "image")
