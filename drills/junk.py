"""Random malformed texts, JSON values and image files."""

import copy
import json
import os
import random
import string
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

TEXTS = (
    "", " ", "\n\t", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\ufeffmark", "\ud800", "a\udfffb", "👩\u200d👩\u200d👧🏳️",
    "مرحبا بالعالم", "שלום\u202eabc", "ﷺ" * 50, "Z\u0338\u0322" * 40, "a" * 100_000, "word " * 20_000,
    "[PAD] [CLS] [SEP]", "<|endoftext|>", "'; DROP TABLE x; --",
    "{{7*7}}", "%s%n%x", "../../etc/passwd", "NaN", "1e999", "-0", "\r\n\r\n", "\u2028", "ß" * 300,
)  # fmt: skip
NAMES = (
    "../out.png", "../../../../etc/passwd", "/etc/passwd", "C:\\windows\\x.png", "\\\\host\\x.png", "a/../../b.png",
    "..", ".", "", "~/.bashrc", "a\0b.png", "x" * 300 + ".png", "-rf", "con", "nul.png", "a\nb.png",
    "📷.png", "\u202egnp.exe", "$(touch x).png", "`x`.png", "a b.png", "%2e%2e%2fx.png",
    "\ud800.png", "file:///etc/passwd", "http://127.0.0.1/x.png",
)  # fmt: skip
"""File names."""
NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), True, False)


def text(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    alphabet = rng.choice((string.printable, "".join(map(chr, range(32))), "日本語的中文한국어", "abc "))
    return "".join(rng.choices(alphabet, k=rng.choice((1, 5, 60, 3000))))


def value(rng: random.Random, depth: int = 0):
    """Any JSON value."""
    makers = [lambda: None, lambda: rng.choice(NUMBERS), lambda: text(rng), lambda: text(rng)]
    if depth < 4:
        keys = "raw", "image", "split", "id", text(rng)[:20]
        makers += [lambda: [value(rng, depth + 1) for _ in range(rng.randrange(4))]]
        makers += [lambda: {rng.choice(keys): value(rng, depth + 1) for _ in range(3)}] * 2
    return rng.choice(makers)()


def corrupted(rng: random.Random, document, junk=value):
    """A copy of a JSON value in which one to three places are replaced by junk, deleted, duplicated or renamed."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        inner = document
        while isinstance(inner, dict | list) and inner:
            key = rng.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            if not isinstance(inner[key], dict | list) or not inner[key] or rng.random() < 0.25:
                break
            inner = inner[key]
        else:
            return junk(rng)
        how = rng.random()
        if how < 0.6:
            inner[key] = junk(rng)
        elif how < 0.8:
            del inner[key]
        elif isinstance(inner, list):
            inner.append(copy.deepcopy(inner[key]))
        else:
            inner[text(rng)[:50]] = inner.pop(key)
    return document


def json_bytes(rng: random.Random, document, junk=value) -> bytes:
    """A JSON value as bytes: corrupted as a value or as bytes, nested too deeply, too long or in another encoding."""
    plain, depth = json.dumps(document).encode(), rng.choice((500, 5_000, 200_000))
    makers = {
        lambda: json.dumps(corrupted(rng, document, junk)).encode(): 11,
        lambda: json.dumps(corrupted(rng, document, junk), ensure_ascii=False).encode("utf-8", "surrogatepass"): 1,
        lambda: rng.choice((b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth)): 1,
        lambda: json.dumps([document, "x" * rng.choice((10**6, 2 * 10**7))]).encode(): 1,
        lambda: rng.choice((b"", b"\0" * 4096, b"null", b"\xff\xfe" + plain, b"\xef\xbb\xbf" + plain, b"1" * 9999)): 1,
        lambda: plain.decode().encode(rng.choice(("utf-16", "utf-32", "utf-16-le"))): 1,
        lambda: damaged(rng, plain): 4,
    }
    return rng.choices(list(makers), list(makers.values()))[0]()


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes truncated, changed in some places, with a part missing or inserted, or repeated."""
    if not data:
        return data
    at, how = rng.randrange(len(data)), rng.randrange(5)
    if how == 0:
        return data[:at]
    if how == 1:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 3, 50))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    if how == 2:
        return data[:at] + data[at + rng.randrange(1, 200) :]
    if how == 3:
        return data[:at] + rng.randbytes(rng.choice((1, 100))) + data[at:]
    return data + data


# --- images -----------------------------------------------------------------------------------------------------------

FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr", "PA")
SIDES = (1, 2, 7, 48, 333)
IMPOSTORS = (
    b"", b"\0" * 1000, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0\x08\0\0\0",
    b"<html><script>1</script></html>", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", b"%PDF-1.7", b"PK\x03\x04",
    b"P6 99999 99999 255 ", b"P3 1 1 255 999999999999999999999999", b"BM" + b"\xff" * 60,
)  # fmt: skip
"""Files that only begin like images."""


def image_bytes(rng: random.Random) -> bytes:
    """An image file of any format, mode and size, intact or damaged, or an impostor."""
    how = rng.random()
    if how < 0.8:
        return saved_image(rng) if how < 0.55 else damaged(rng, saved_image(rng))
    return decompression_bomb(rng) if how < 0.85 else rng.choice((*IMPOSTORS, rng.randbytes(2000)))


def saved_image(rng: random.Random) -> bytes:
    mode, format_ = rng.choice(MODES), rng.choice(FORMATS)
    width, height = rng.choice(SIDES), rng.choice(SIDES)
    if rng.random() < 0.05:
        width, height = rng.choice(((1, 20_000), (20_000, 1), (4000, 3000)))
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise).convert("L" if mode in ("LA", "PA", "I;16", "I", "F") else "RGB")
    image = image.convert("LA").convert("PA") if mode == "PA" else image.convert(mode)
    options = {}
    if rng.random() < 0.3 and format_ in ("JPEG", "PNG", "TIFF", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = rng.choice((*range(10), 65535))  # orientation
        options["exif"] = exif if rng.random() < 0.7 else b"Exif\0\0" + rng.randbytes(40)
    if rng.random() < 0.2 and format_ in ("GIF", "PNG", "TIFF", "WEBP"):
        options |= {"save_all": True, "append_images": [image] * rng.randint(1, 5)}
    out = BytesIO()
    try:
        image.save(out, format_, **options)
    except Exception:  # not every format has every mode
        out = BytesIO()
        image.convert("RGB").save(out, rng.choice(("PNG", "JPEG")))
    return out.getvalue()


def decompression_bomb(rng: random.Random) -> bytes:
    """A small PNG that declares a huge size, with fewer pixels or a huge text."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    side = rng.choice((9_500, 60_000, 2**31 - 1))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    note = chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 50_000_000)) if rng.random() < 0.5 else b""
    return b"\x89PNG\r\n\x1a\n" + head + note + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")


def place_image(rng: random.Random, path: Path) -> None:
    """Put a file at an image's path, or rarely a folder, link or pipe."""
    how = rng.random()
    if how < 0.93:
        path.write_bytes(image_bytes(rng))
    elif how < 0.95:
        path.mkdir()
    elif how < 0.97:
        path.symlink_to(rng.choice(("/etc/passwd", "/nowhere", path.name, "/dev/zero", "/proc/self/mem")))
    else:
        os.mkfifo(path)
