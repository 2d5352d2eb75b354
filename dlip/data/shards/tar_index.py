"""What a tar of samples holds and where: an index of offsets, so that any sample can be read at any time.

A sample is the run of files whose names are the same up to the first dot of their last part: `0001.jpg`, `0001.json`,
`0001.txt` (WebDataset's layout, which img2dataset writes too). Names are only compared: nothing is ever unpacked, so
that none of them reaches the file system.
"""

import hashlib
import io
import json
import os
import tarfile
import zipfile
import zlib
from itertools import groupby
from pathlib import Path

import numpy as np

from dlip.common.errors import UserError
from dlip.common.files import write_atomically
from dlip.common.text import plural
from dlip.data.batch import Question

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "img")
MAX_MEMBER = 64 * 2**20
"""Bytes; a larger file in a tar is left out, whatever its name."""
MAX_NAME = 1000
"""Characters of a file's name in a tar."""
VERSION = 2
"""Of the index that is kept on disk."""
PARTS = ("picture", "json", "txt")
COLUMNS = ("key", "captions", "questions", *(f"{part}{what}" for part in PARTS for what in ("", "_bytes")))
"""Of a sample."""


def index(tar: Path, label: str, cache: Path) -> tuple[np.ndarray, list[str]]:
    """The samples of a tar [N] and its faults, from `cache` where the same file has been read before.

    label: what faults call it.
    A sample is (key, captions, questions, picture, picture_bytes, json, json_bytes, txt, txt_bytes): counts, and each
    file's place and size in the tar, 0 for none. Raises UserError where the tar cannot be opened.
    """
    try:
        stat = tar.stat()
    except OSError as error:
        raise UserError(f"there is no file {tar} ({error.strerror}); check its name") from error
    known = f"{VERSION} {label} {tar.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    kept = cache / f"{hashlib.sha256(known.encode(errors='surrogatepass')).hexdigest()[:32]}.npz"
    try:
        with np.load(kept) as columns:
            samples, faults = columns["samples"], json.loads(columns["faults"].tobytes())
        if samples.dtype.names == COLUMNS and isinstance(faults, list):
            return samples, faults
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        pass  # not there yet, or damaged
    samples, faults = scan(tar, label)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, samples=samples, faults=np.frombuffer(json.dumps(faults).encode(), np.uint8))

    write_atomically(kept, write)
    return samples, faults


def scan(tar: Path, label: str) -> tuple[np.ndarray, list[str]]:
    """As `index`, read from the tar itself. A tar that breaks off keeps the samples before that place."""
    members, faults = _members(tar, label)
    rows = []
    with open(tar, "rb") as file:
        for key, files in groupby(members, key=lambda member: member[0]):
            parts = {}
            for _, suffix, at, size in files:
                part = "picture" if suffix in PICTURES else suffix
                if part in PARTS and part not in parts:
                    parts[part] = (at, size)
            name = f"{label}/{key}"
            if "picture" not in parts:
                if parts:
                    faults.append(f"{name} is missing: there is a text of that name but no picture")
                continue
            captions, questions, _, wrong = read_texts(
                *(os.pread(file.fileno(), *parts[part][::-1]) if part in parts else None for part in PARTS[1:])
            )
            faults += [f"{name} {fault}" for fault in wrong]
            if captions or questions:
                places = [value for part in PARTS for value in parts.get(part, (0, 0))]
                rows.append((key.encode(errors="surrogatepass"), len(captions), len(questions), *places))
    width = max((len(row[0]) for row in rows), default=1)
    kinds = [f"S{width}", "i4", "i4", *["i8"] * (len(COLUMNS) - 3)]
    return np.array(rows, list(zip(COLUMNS, kinds, strict=True))), faults


def read_texts(about: bytes | None, text: bytes | None) -> tuple[list[str], list[Question], int | None, list[str]]:
    """Captions, questions, the picture's own number if any, and faults, of a sample's JSON and text.

    The JSON may have "captions" or "caption", "questions" (each with "question", "answers", "question_type") and
    "image_id"; without captions there, each line of the text is one.
    """
    captions, questions, number, faults = None, [], None, []
    if about is not None:
        try:
            known = json.loads(about)
        except (ValueError, RecursionError) as error:
            known = None
            faults.append(f"has JSON that cannot be read ({error})")
        if isinstance(known, dict):
            captions = known.get("captions")
            if not isinstance(captions, list):
                captions = [known["caption"]] if isinstance(known.get("caption"), str) else None
            number = known.get("image_id")
            number = number if type(number) is int and 0 <= number < 2**53 else None
            for row in known["questions"] if isinstance(known.get("questions"), list) else []:
                question, fault = _question(row)
                questions += [question] if question else []
                faults += [fault] if fault else []
    if captions is None and text is not None:
        captions = text.decode("utf-8", "replace").strip().splitlines() or [""]
    said = [caption.strip() for caption in captions or [] if isinstance(caption, str)]
    full = [caption for caption in said if caption]
    faults += ["has an empty caption"] * (len(said) - len(full))
    if not said and not questions and not faults:
        faults.append("has no caption")
    return full, questions, number, faults


def _question(row) -> tuple[Question | None, str | None]:
    if not isinstance(row, dict) or not isinstance(text := row.get("question"), str) or not text.strip():
        return None, "has an empty question"
    answers = row.get("answers")
    answers = [a.strip() for a in answers if isinstance(a, str) and a.strip()] if isinstance(answers, list) else []
    if not answers:
        return None, f"has no answer to {text!r}"
    kind = row.get("question_type")
    return Question(text.strip(), answers, kind if isinstance(kind, str) else "other"), None


class _Headers(io.BufferedReader):
    """A tar as `tarfile` reads the headers of its files, with a limit, as it keeps names of any length."""

    left = MAX_MEMBER
    """Bytes that the next file's may have."""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"headers of more than {MAX_MEMBER:,} bytes")
        self.left -= size
        return super().read(size)


def _members(tar: Path, label: str) -> tuple[list[tuple[str, str, int, int]], list[str]]:
    """(key, suffix, place, bytes) of the files in a tar, in order, and the faults."""
    found, faults, end = [], [], tar.stat().st_size
    try:
        with _Headers(io.FileIO(tar)) as file, tarfile.open(fileobj=file, mode="r:") as opened:
            while (member := opened.next()) is not None:
                file.left = MAX_MEMBER
                opened.members = []  # which would keep them all
                if opened.offset <= member.offset:  # of a negative size: the next would be the same again
                    raise tarfile.ReadError("a header of negative size")
                folder, _, last = member.name.rpartition("/")
                stem, _, suffix = last.partition(".")
                if not member.isreg() or member.sparse is not None or not stem:
                    continue
                if len(member.name) > MAX_NAME:
                    long = f"a name of {len(member.name):,} characters, of {MAX_NAME:,} at most"
                    faults.append(f"{label}/{member.name[:60]}... is left out: {long}")
                elif member.size > MAX_MEMBER:
                    faults.append(
                        f"{label}/{member.name} is left out: {member.size:,} bytes, of {MAX_MEMBER:,} at most"
                    )
                elif member.offset_data + member.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                else:
                    key = f"{folder}/{stem}" if folder else stem
                    found.append((key, suffix.lower(), member.offset_data, member.size))
    except (tarfile.TarError, ValueError, OSError, EOFError, RecursionError) as error:
        faults.append(f"{label} cannot be read beyond its first {plural(len(found), 'file')} ({error})")
    return found, faults
