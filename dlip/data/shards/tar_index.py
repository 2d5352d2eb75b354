"""Index of the samples in a tar file: where each one's files lie, so that any sample can be read at any time.

A sample is a run of files with the same name up to the first dot: `0001.jpg`, `0001.json`, `0001.txt` (WebDataset's
layout, also written by img2dataset). Names are only compared: nothing is unpacked, so no name reaches the file system.
"""

import hashlib
import json
import os
import tarfile
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from dlip.common.files import write_atomically
from dlip.common.text import plural
from dlip.data.annotation import Annotation
from dlip.data.quarantine import image_id_from_name
from dlip.data.transforms import SUFFIXES

IMAGE_SUFFIXES = (*SUFFIXES, "img")
VERSION = 5
"""Version of the index on disk."""
PARTS = ("image", "json", "txt")
COLUMNS = ("key", "captions", "questions", *(f"{part}{what}" for part in PARTS for what in ("", "_bytes")))
"""Columns of the index: a sample's name, its numbers of captions and questions, each file's offset and size."""


def sample_index(tar: Path, label: str, cache: Path) -> tuple[np.ndarray, list[str]]:
    """The samples of a tar, a structured array [N] of `COLUMNS`, and its faults; from `cache` if the tar is unchanged.

    label: the tar's name in faults. A file that a sample lacks has offset and size 0. Raises UserError if the tar
    cannot be opened.
    """
    stat = tar.stat()
    identity = f"{VERSION} {label} {tar.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    cached = cache / f"{hashlib.sha256(identity.encode(errors='surrogatepass')).hexdigest()[:32]}.npz"
    with suppress(OSError, EOFError, ValueError, KeyError, BadZipFile), np.load(cached) as arrays:  # none, or damaged
        return arrays["samples"], json.loads(arrays["faults"].tobytes())
    samples, faults = scan(tar, label)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez(file, samples=samples, faults=np.frombuffer(json.dumps(faults).encode(), np.uint8))

    write_atomically(cached, write)
    return samples, faults


def scan(tar: Path, label: str) -> tuple[np.ndarray, list[str]]:
    """As `sample_index`, always from the tar. A truncated tar keeps the samples before the cut."""
    members, faults = _members(tar, label)
    rows = []
    with open(tar, "rb") as file:
        for key, files in groupby(members, key=lambda member: member[0]):
            parts: dict[str, tuple[int, int]] = {}
            for _, suffix, start, size in files:
                parts.setdefault("image" if suffix in IMAGE_SUFFIXES else suffix, (start, size))
            texts = [os.pread(file.fileno(), *parts[part][::-1]) if part in parts else None for part in PARTS[1:]]
            if "image" not in parts:
                if any(suffix.rpartition(".")[2] in IMAGE_SUFFIXES for suffix in parts):
                    faults.append(f"{label}/{key} is skipped: its image has another dot in its name; rename it")
                elif texts != [None, None]:
                    faults.append(f"{label}/{key} is missing: it has a text but no image")
                continue
            annotation, _ = parse_sample(f"{label}/{key}", *texts)
            faults += annotation.faults
            if annotation.captions or annotation.questions:
                places = [value for part in PARTS for value in parts.get(part, (0, 0))]
                counts = len(annotation.captions), len(annotation.questions)
                rows.append((key.encode(errors="surrogatepass"), *counts, *places))
    width = max((len(row[0]) for row in rows), default=1)
    kinds = [f"S{width}", "i4", "i4", *["i8"] * (len(COLUMNS) - 3)]
    return np.array(rows, list(zip(COLUMNS, kinds, strict=True))), faults


def parse_sample(name: str, about: bytes | None, text: bytes | None) -> tuple[Annotation, int | None]:
    """Captions and questions from a sample's JSON and text file, and the image's id if it has one.

    The JSON may have "captions" or "caption", "writers" (caption -> the model that wrote it), "questions" (each with
    "question", "answers", "question_type") and "image_id"; without captions in it, each line of the text file is one.
    """
    row, annotation = {}, Annotation(name)
    if about is not None:
        try:
            row = json.loads(about)
        except (ValueError, RecursionError) as error:
            annotation.faults.append(f"{name} has JSON that cannot be read ({error})")
        row = row if isinstance(row, dict) else {}
    captions = row.get("captions") or row.get("caption")
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list):
        try:
            captions = [] if text is None else text.decode().strip().splitlines() or [""]
        except UnicodeDecodeError:
            annotation.faults.append(f"{name} has text that is not UTF-8")
            captions = []
    writers = row["writers"] if isinstance(row.get("writers"), dict) else {}
    annotation.add_captions(_strings(captions), {c: name for c, name in writers.items() if isinstance(name, str)})
    for item in row["questions"] if isinstance(row.get("questions"), list) else []:
        item = item if isinstance(item, dict) else {}
        question, kind = item.get("question"), item.get("question_type")
        question = question if isinstance(question, str) else ""
        answers = item["answers"] if isinstance(item.get("answers"), list) else []
        annotation.add_question(question, answers, kind if isinstance(kind, str) else "other")
    annotation.check_not_empty()
    number = row.get("image_id")
    number = image_id_from_name(number) if isinstance(number, str) else number
    return annotation, number if type(number) is int and 0 <= number < 2**53 else None


def _strings(values: Any) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _members(tar: Path, label: str) -> tuple[list[tuple[str, str, int, int]], list[str]]:
    """(key, suffix, offset, size) of the files in a tar, in order, and the faults."""
    members, faults, end = [], [], tar.stat().st_size
    try:
        with tarfile.open(tar, "r:") as opened:
            while (member := opened.next()) is not None:
                opened.members = []  # tarfile would keep them all in memory
                if opened.offset <= member.offset:  # tarfile would read the same headers again, forever
                    raise tarfile.ReadError("a header has a negative size")
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not member.isreg() or member.sparse is not None or not stem:
                    continue
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                key = f"{folder}/{stem}" if folder else stem
                members.append((key, suffix.lower(), member.offset_data, member.size))
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        faults.append(f"{label} cannot be read beyond its first {plural(len(members), 'file')} ({error})")
    return members, faults
