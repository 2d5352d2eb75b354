"""Bad things of every kind, made at random: texts, JSON values, files of pictures."""

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
NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), True, False)


def text(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(TEXTS)
    alphabet = rng.choice((string.printable, "".join(map(chr, range(32))), "日本語的中文한국어", "abc "))
    return "".join(rng.choices(alphabet, k=rng.choice((1, 5, 60, 3000))))


def value(rng: random.Random, depth: int = 0):
    """Anything that JSON can hold."""
    kind = rng.randrange(7 if depth < 4 else 4)
    if kind == 0:
        return None
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind in (2, 3):
        return text(rng)
    if kind == 4:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(("raw", "image", "split", "id", text(rng)[:20])): value(rng, depth + 1) for _ in range(3)}


def spoilt(rng: random.Random, whole, junk=value):
    """A copy of a JSON value, with junk, nothing or a double in one to three of its places."""
    whole = copy.deepcopy(whole)
    for _ in range(rng.randint(1, 3)):
        inner = whole
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
    return whole


def written(rng: random.Random, whole, junk=value) -> bytes:
    """A JSON value as bytes: spoilt as a value, as a text, or in its depth."""
    how = rng.random()
    if how < 0.55:
        return json.dumps(spoilt(rng, whole, junk)).encode()
    if how < 0.6:
        return json.dumps(spoilt(rng, whole, junk), ensure_ascii=False).encode("utf-8", "surrogatepass")
    plain = json.dumps(whole).encode()
    if how < 0.65:
        depth = rng.choice((500, 5_000, 200_000))
        return rng.choice((b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth))
    if how < 0.7:
        return json.dumps([whole, "x" * rng.choice((10**6, 2 * 10**7))]).encode()
    if how < 0.75:
        return rng.choice((b"", b"\0" * 4096, b"null", b"\xff\xfe" + plain, b"\xef\xbb\xbf" + plain, b"1" * 10_000))
    if how < 0.8:
        return plain.decode().encode(rng.choice(("utf-16", "utf-32", "utf-16-le")))
    return damaged(rng, plain)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Cut off, with other bytes in some places, with a part left out, or twice."""
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


# --- pictures ---------------------------------------------------------------------------------------------------------

KINDS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO")
MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16", "I", "F", "YCbCr", "PA")
SIDES = (1, 2, 7, 48, 333)


def picture(rng: random.Random) -> bytes:
    """A picture's file of any kind, mode and size, whole or damaged, or something that only looks like one."""
    how = rng.random()
    if how < 0.55:
        return saved(rng)
    if how < 0.8:
        return damaged(rng, saved(rng))
    if how < 0.85:
        return bomb(rng)
    return rng.choice((
        b"", b"\0" * 1000, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0\x08\0\0\0",
        b"<html><script>1</script></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/etc/passwd'/></svg>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", b"%PDF-1.7", b"PK\x03\x04", rng.randbytes(2000),
        b"P6 99999 99999 255 ", b"P3 1 1 255 999999999999999999999999", b"BM" + b"\xff" * 60,
    ))  # fmt: skip


def saved(rng: random.Random) -> bytes:
    mode, kind = rng.choice(MODES), rng.choice(KINDS)
    width, height = rng.choice(SIDES), rng.choice(SIDES)
    if rng.random() < 0.05:
        width, height = rng.choice(((1, 20_000), (20_000, 1), (4000, 3000)))
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise).convert("L" if mode in ("LA", "PA", "I;16", "I", "F") else "RGB")
    image = image.convert("LA").convert("PA") if mode == "PA" else image.convert(mode)
    more = {}
    if rng.random() < 0.3 and kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = rng.choice((*range(10), 65535))
        more["exif"] = exif if rng.random() < 0.7 else b"Exif\0\0" + rng.randbytes(40)
    if rng.random() < 0.2 and kind in ("GIF", "PNG", "TIFF", "WEBP"):
        more |= {"save_all": True, "append_images": [image] * rng.randint(1, 5)}
    out = BytesIO()
    try:
        image.save(out, kind, **more)
    except Exception:  # not every kind has every mode
        out = BytesIO()
        image.convert("RGB").save(out, rng.choice(("PNG", "JPEG")))
    return out.getvalue()


def bomb(rng: random.Random) -> bytes:
    """A small PNG that says it is large: of pixels that nobody may hold, or that it does not have."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    side = rng.choice((9_500, 60_000, 2**31 - 1))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    note = chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * 50_000_000)) if rng.random() < 0.5 else b""
    return b"\x89PNG\r\n\x1a\n" + head + note + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")


def put(rng: random.Random, path: Path) -> None:
    """Something under a picture's name: most often a file, now and then what is none."""
    how = rng.random()
    if how < 0.93:
        path.write_bytes(picture(rng))
    elif how < 0.95:
        path.mkdir()
    elif how < 0.97:
        path.symlink_to(rng.choice(("/etc/passwd", "/nowhere", path.name, "/dev/zero", "/proc/self/mem")))
    else:
        os.mkfifo(path)
