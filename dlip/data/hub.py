"""Any Hugging Face dataset with named columns: `hub:NAME?image=picture&caption=text`.

NAME is a dataset of the hub, or a folder or file on this disk that the `datasets` library reads (parquet, its own
format, images with metadata). Code of a dataset is never run. Options after the question mark: the columns `image`,
`caption`, `question`, `answers`, `type` (of the question) and `id` (equal in all rows of one image; by default the path
where images are files beside the rows), and the dataset's `config` and `revision`.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.data.annotation import SPLITS, Annotation, as_text
from dlip.data.batch import Example
from dlip.data.quarantine import AnnotatedImages, EncodedItem, image_id_from_name

PREFIX = "hub:"
COLUMNS = {
    "image": ("image", "img", "picture", "jpg"),
    "caption": ("caption", "captions", "text", "sentences", "sentences_raw", "raw"),
    "question": ("question",),
    "answers": ("answers", "answer", "multiple_choice_answer"),
    "type": ("answer_type", "question_type"),
    "id": ("image_id", "img_id", "cocoid", "filename", "file_name"),
}
"""Role of a column -> its usual names; the first that exists is taken, unless the user names one."""
SETTINGS = ("config", "revision")
FILES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}
"""Suffix of a file -> the library's name of its format."""


class Hub(AnnotatedImages):
    """One split of a Hugging Face dataset; rows with the same `id` are one image with all their texts.

    Faults of texts are found on opening, those of images by `verify`.
    """

    def __init__(self, name: str, split: str, on_error: str = "fatal"):
        """Raise UserError if the dataset, the split, a named column or the `datasets` library does not exist."""
        address, options = parse(str(name))
        super().__init__(Path(address).name, str(name), split, on_error)
        loaded = _load(address, options)
        if split not in loaded:
            raise UserError(f"{name} has no split {split!r}; choose one of: {', '.join(sorted(loaded))}")
        self.data = loaded[split]
        self._roots = _image_folders(address)
        self.columns = _columns(self.data.column_names, options, str(name))
        if "id" not in self.columns and self._names_files():
            self.columns["id"] = self.columns["image"]
        self._report(self._group())

    def __getitem__(self, i: int) -> Example:
        """Image i, decoded now. Raises UserError if it cannot be decoded."""
        return self.encoded_item(i).decode()

    def encoded_item(self, i: int) -> EncodedItem:
        """Image i as stored. Raises UserError if its row holds no image."""
        texts = self.annotations[i]
        data = self._bytes(self._rows[i][0], texts.name)
        return EncodedItem(texts.name, image_id_from_name(texts.name), texts.captions, texts.questions, data)

    def image_fault(self, i: int) -> str | None:
        """Why image i cannot be used, None if it can."""
        try:
            self[i]
        except UserError as error:
            return f"{self.annotations[i].name} cannot be read ({error.__cause__ or 'its row holds no image'})"
        return None

    def _keep(self, kept: list[int]) -> None:
        self._rows = [self._rows[i] for i in kept]
        super()._keep(kept)

    def fingerprint(self) -> str:
        """Hash of the library's fingerprint, of the columns, of the rows used, and of the files that these name."""
        known = repr((self.data._fingerprint, self.columns, self._rows, [*self._files()]))
        return hashlib.sha256(known.encode()).hexdigest()

    def _names_files(self) -> bool:
        """Whether the column of images holds paths; rows of one path are then one image."""
        return getattr(self.data.features[self.columns["image"]], "dtype", None) in ("string", "large_string")

    def _group(self) -> list[str]:
        """Join the rows of each image; returns their faults. Raises UserError if a text is not UTF-8."""
        roles = {role: column for role, column in self.columns.items() if role != "image"}
        try:
            values = self.data.select_columns(list(dict.fromkeys(roles.values())))[:]
        except ValueError as error:
            raise UserError(f"{self.where} cannot be read ({error}); write it again") from error
        ids = values[roles.pop("id")] if "id" in roles else None
        groups: dict[str, list[int]] = {}
        for row in range(len(self.data)):
            known = ids is not None and ids[row] is not None
            name = str(ids[row]) if known else f"{self.name}/{self.split}/{row}"
            groups.setdefault(name, []).append(row)
        self._rows, self.annotations, faults = [], [], []
        for name, rows in groups.items():
            texts = read_rows(name, [{role: values[column][row] for role, column in roles.items()} for row in rows])
            faults += texts.faults
            if texts.captions or texts.questions:
                self._rows.append(rows)
                self.annotations.append(texts)
        return faults

    def _bytes(self, row: int, name: str) -> bytes:
        try:
            value = self.data[row][self.columns["image"]]
            if isinstance(value, dict):
                value = value["bytes"] if value.get("bytes") is not None else self._file(value["path"])
            elif isinstance(value, str):
                value = self._file(value)
        except (OSError, KeyError, TypeError, ValueError) as error:  # ValueError: an impossible file name
            raise UserError(f"the image {name} cannot be read ({error}); replace or remove it") from error
        if not isinstance(value, bytes):
            raise UserError(
                f"the column {self.columns['image']!r} of {self.where} holds no images; name another one: ?image=..."
            )
        return value

    def _file(self, path: str) -> bytes:
        """An image beside the rows. Raises OSError for a file elsewhere: rows may name any."""
        file = (self._roots[0] / path).resolve()
        if not (file.is_file() and any(map(file.is_relative_to, self._roots))):
            raise OSError("there is no such file in the dataset's own folders")
        return file.read_bytes()

    def _files(self) -> Iterator[tuple[str, int, int]]:
        """Path, size and time of each image file beside the rows; none if the first row holds its image."""
        for first, *_ in self._rows:
            value = self.data[first][self.columns["image"]]
            path = value.get("path") if isinstance(value, dict) and value.get("bytes") is None else value
            if not isinstance(path, str):
                return
            with suppress(OSError, ValueError):
                about = (self._roots[0] / path).stat()
                yield path, about.st_size, about.st_mtime_ns


def splits(name: str) -> list[str]:
    """The splits of a dataset, `validation` as val, in alphabetical order. Raises UserError as `Hub` does."""
    return sorted(_load(*parse(str(name))))


def parse(name: str) -> tuple[str, dict[str, str]]:
    """`hub:NAME?image=picture` -> NAME and its options. Raises UserError for an unknown option."""
    address, _, query = name.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = (*COLUMNS, *SETTINGS)
    if unknown := [option for option in options if option not in known]:
        raise UserError(f"{name} has the unknown option {unknown[0]!r}; choose one of: {', '.join(known)}")
    if not address:
        raise UserError(f"{name} names no dataset; write hub:NAME, or hub: and a folder")
    return address, options


def read_rows(name: str, rows: list[dict[str, Any]]) -> Annotation:
    """The texts of the rows of one image, each {"caption", "question", "answers", "type"} or less.

    A caption or answer may be a string, a list of them, or a dictionary as in datasets of the hub: {"raw": text},
    {"answer": text}, {"answer": [texts]}. A list of questions has a list of as many answers, or lists of answers. A
    caption in several rows of one image counts once.
    """
    annotation = Annotation(name)
    for row in rows:
        annotation.add_captions(_texts(row.get("caption")))
        questions, answers = row.get("question"), row.get("answers")
        if not isinstance(questions, list):
            questions, answers = [questions], [answers]
        elif not isinstance(answers, list) or len(answers) != len(questions):
            annotation.faults.append(f"{name} has {plural(len(questions), 'question')}, but not as many answers")
            continue
        for question, its_answers in zip(questions, answers, strict=True):
            if question is not None:
                annotation.add_question(str(question), _texts(its_answers), str(row.get("type") or "other"))
    annotation.captions = list(dict.fromkeys(annotation.captions))
    annotation.check_not_empty()
    return annotation


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _texts(next((value[key] for key in ("raw", "answer", "caption", "text") if key in value), None))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif value is not None:
        yield as_text(value)


def _load(address: str, options: dict[str, str]) -> dict:
    """The splits by name, `validation` and the like as val, with images not decoded."""
    try:
        import datasets
    except ModuleNotFoundError as missing:
        raise UserError(f"hub: needs {missing.name}, which is not installed; run pip install 'dlip[hub]'") from None
    path = Path(address)
    if path.exists():
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # no request to the hub about local files
    if path.is_file() and path.suffix not in FILES:
        raise UserError(f"{address} is not a known table; give one of: {', '.join(FILES)}")
    try:
        if path.is_file():
            reading = {}
            if separator := {".csv": ",", ".tsv": "\t"}.get(
                path.suffix
            ):  # pandas takes the answer "None" for a missing one
                reading = {"sep": separator, "keep_default_na": False, "na_values": [""]}
            loaded = datasets.load_dataset(FILES[path.suffix], data_files=str(path), **reading)
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(address, name=options.get("config"), revision=options.get("revision"))
    except Exception as error:  # the library raises nearly anything
        malformed = isinstance(error, datasets.exceptions.DatasetGenerationError)
        cause = (error.__cause__ if malformed else None) or error
        reason = " ".join(str(cause).split()) or type(cause).__name__
        advice = "correct its files" if malformed else "check its name and the network"
        raise UserError(f"the dataset {address} cannot be loaded ({reason}); {advice}") from error
    if isinstance(loaded, datasets.Dataset):
        loaded = {str(loaded.split or "train"): loaded}
    splits = {}
    for split, data in loaded.items():
        for column, kind in data.features.items():
            if isinstance(kind, datasets.Image):
                data = data.cast_column(column, datasets.Image(decode=False))
        usual = SPLITS.get(split, split)
        splits[split if usual in (*loaded, *splits) else usual] = data
    return splits


def _image_folders(address: str) -> list[Path]:
    """Folders in which a dataset's images may be: its own, or the libraries' downloads."""
    if Path(address).exists():
        place = Path(address).resolve()
        return [place.parent if place.is_file() else place]
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    places = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return [Path(place).expanduser().resolve() for place in places]


def _columns(names: list[str], options: dict[str, str], where: str) -> dict[str, str]:
    """Role of a column -> its name: the one in `options`, or the first usual one that exists."""
    columns = {role: next((name for name in usual if name in names), None) for role, usual in COLUMNS.items()}
    columns |= {role: name for role, name in options.items() if role in COLUMNS}
    if wrong := [name for name in columns.values() if name not in (*names, None)]:
        raise UserError(f"{where} has no column {wrong[0]!r}; choose one of: {', '.join(names)}")
    if columns["image"] is None:
        raise UserError(f"{where} has no usual column of images; name it: ?image=..., one of: {', '.join(names)}")
    if columns["caption"] is None and None in (columns["question"], columns["answers"]):
        raise UserError(
            f"{where} has no usual columns of captions, or of questions and answers; name them: ?caption=... or "
            f"?question=...&answers=..., of: {', '.join(names)}"
        )
    if None in (columns["question"], columns["answers"]):
        columns["question"] = columns["answers"] = None
    return {role: name for role, name in columns.items() if name is not None}
