"""Any Hugging Face data set with named columns: `hub:NAME?image=picture&caption=text`.

NAME is one of the hub, or a folder or file on this disk that the `datasets` library reads (parquet, what it saved
itself, pictures with metadata). No code of a data set is ever run. Named after the question mark: the columns `image`,
`caption`, `question`, `answers`, `type` (of the question) and `id` (equal for rows of one picture), the `config` of a
data set that has several, and the `revision`.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from dlip.common.errors import UserError
from dlip.data.batch import Item, Question
from dlip.data.quarantine import EncodedItem, QuarantineMixin, image_id_from_name, map_in_threads
from dlip.data.transforms import read_image

PREFIX = "hub:"
COLUMNS = {
    "image": ("image", "img", "picture", "jpg"),
    "caption": ("caption", "captions", "text", "sentences", "sentences_raw", "raw"),
    "question": ("question",),
    "answers": ("answers", "answer", "multiple_choice_answer"),
    "type": ("answer_type", "question_type"),
    "id": ("image_id", "img_id", "cocoid", "filename", "file_name"),
}
"""What a column holds -> the names that it is looked for by where none is given, the first that is there."""
_SETTINGS = ("config", "revision")
FILES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv"}
"""Endings of files -> what the library calls them."""


class Hub(QuarantineMixin):
    """A split of a Hugging Face data set; rows of one `id` are one picture, which has all their texts.

    Faults of texts are found on opening and those of pictures by `verify`, as `Folder` does.
    """

    def __init__(self, name: str, split: str, on_error: str = "fatal"):
        """Raises UserError where the data set, the split or a column named is not there, or `datasets` is missing."""
        address, options = parse(str(name))
        super().__init__(Path(address).name, str(name), split, on_error)
        found = _load(address, options)
        theirs = {_own(other): other for other in found}
        if split not in theirs:
            raise UserError(f"{name} has no split {split!r}; choose one of those it has: {', '.join(sorted(theirs))}")
        self.data = found[theirs[split]]
        self._roots = _roots(address)
        self.columns = _columns(self.data.column_names, options, str(name))
        self._report(self._group())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Item:
        """Picture i, decoded now. Raises UserError where it cannot be read."""
        encoded = self.encoded_item(i)
        return Item(read_image(encoded.name, encoded.data), encoded.image_id, encoded.captions, encoded.questions)

    def encoded_item(self, i: int) -> EncodedItem:
        """Picture i as the data set holds it, not decoded. Raises UserError where the row has no picture."""
        name, rows = self._rows[i]
        data = self._bytes(rows[0], name)
        captions, questions, _ = self._said[i]
        return EncodedItem(name, image_id_from_name(name), captions, questions, data)

    def verify(self) -> None:
        """Reads every picture once, so that none fails later.

        Raises UserError, as opening does, where faults are fatal or nothing is left.
        """
        faults = map_in_threads(self._fault, range(len(self)), len(self))
        good = [i for i, fault in enumerate(faults) if not fault]
        self._rows, self._said = [self._rows[i] for i in good], [self._said[i] for i in good]
        self._report([fault for fault in faults if fault])

    def counts(self) -> dict[str, int]:
        """Pictures, captions and questions."""
        captions, questions = (sum(len(said[part]) for said in self._said) for part in (0, 1))
        return {"images": len(self), "captions": captions, "questions": questions}

    def fingerprint(self) -> str:
        """A hash of the library's own, of the columns, and of the rows used."""
        known = repr((self.data._fingerprint, self.columns, [rows for _, rows in self._rows]))
        return hashlib.sha256(known.encode()).hexdigest()

    def _group(self) -> list[str]:
        """Joins the rows of each picture; returns their faults."""
        column = self.columns.get("id")
        names = self._texts([column])[column] if column else range(len(self.data))
        groups: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            groups.setdefault(str(name) if column else f"{self.name}/{self.split}/{name}", []).append(row)
        parts = {part: own for part, own in self.columns.items() if part in ("caption", "question", "answers", "type")}
        whole = self._texts(list(dict.fromkeys(parts.values())))
        texts = {part: whole[own] for part, own in parts.items()}
        self._rows, self._said, faults = [], [], []
        for name, rows in groups.items():
            said = read_rows([{part: values[row] for part, values in texts.items()} for row in rows])
            faults += [f"{name} {fault}" for fault in said[2]]
            if said[0] or said[1]:
                self._rows.append((name, rows))
                self._said.append(said)
        return faults

    def _texts(self, columns: list[str]) -> dict[str, list]:
        """Columns whole. Raises UserError where they hold what is no text."""
        try:
            return self.data.select_columns(columns)[:]
        except ValueError as error:  # bytes that are no UTF-8
            raise UserError(f"{self.where} cannot be read ({error}); write it anew") from error

    def _bytes(self, row: int, name: str) -> bytes:
        try:
            value = self.data[row][self.columns["image"]]
            if isinstance(value, dict):
                value = value["bytes"] if value.get("bytes") is not None else self._file(value["path"])
            elif isinstance(value, str):
                value = self._file(value)
        except (OSError, KeyError, TypeError, ValueError) as error:  # of a name that no file can have, the last
            raise UserError(f"cannot read the picture {name} ({error}); mend or remove it") from error
        if not isinstance(value, bytes):
            raise UserError(
                f"the column {self.columns['image']!r} of {self.where} holds no pictures; name it: ?image=..."
            )
        return value

    def _file(self, path: str) -> bytes:
        """A picture that lies beside the rows. Raises OSError for a file of another place: rows may name any."""
        file = Path(path).resolve()
        if not (file.is_file() and any(map(file.is_relative_to, self._roots))):
            raise OSError("there is no such file in the data set's own folders")
        return file.read_bytes()

    def _fault(self, i: int) -> str | None:
        """Why a picture cannot be used, if so."""
        try:
            self[i]
        except UserError as error:
            return f"{self._rows[i][0]} cannot be read ({error.__cause__ or 'there is no picture in its row'})"
        return None


def splits(name: str) -> list[str]:
    """The splits that a data set has, `validation` as val, in alphabetical order. Raises UserError as `Hub` does."""
    return sorted(set(map(_own, _load(*parse(str(name))))))


def parse(name: str) -> tuple[str, dict[str, str]]:
    """`hub:NAME?image=picture` -> NAME and what is named after it. Raises UserError where that is not known."""
    address, _, query = name.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = (*COLUMNS, *_SETTINGS)
    if unknown := [option for option in options if option not in known]:
        raise UserError(f"{name} names {unknown[0]!r}, which is no option; choose one of {', '.join(known)}")
    if not address:
        raise UserError(f"{name} names no data set; write hub:NAME, or hub: and a folder")
    return address, options


def read_rows(rows: list[dict[str, Any]]) -> tuple[list[str], list[Question], list[str]]:
    """Captions, questions and faults of one picture's rows, each {"caption", "question", "answers", "type"} or less.

    A caption or answer may be a text, a list of them, or what the hub's data sets make of one: {"raw": text},
    {"answer": text}, {"answer": [texts]}. One that comes twice in a picture's rows counts once, as captions do where
    each row has a question.
    """
    captions: dict[str, None] = {}
    questions, faults = [], []
    for row in rows:
        said = list(_texts(row.get("caption")))
        captions |= dict.fromkeys(text for text in said if text)
        faults += ["has an empty caption"] * said.count("")
        if (asked := row.get("question")) is None:
            continue
        asked, answers = str(asked).strip(), [answer for answer in _texts(row.get("answers")) if answer]
        if asked and answers:
            questions.append(Question(asked, answers, str(row.get("type") or "other")))
        else:
            faults.append(f"has no answer to {asked!r}" if asked else "has an empty question")
    if not captions and not questions and not faults:
        faults.append("has no caption")
    return list(captions), questions, faults


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _texts(next((value[key] for key in ("raw", "answer", "caption", "text") if key in value), None))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif value is not None:
        yield str(value).strip()


def _own(split: str) -> str:
    return {"validation": "val"}.get(split, split)


def _load(address: str, options: dict[str, str]) -> dict:
    """The library's splits by its names, pictures not decoded."""
    try:
        import datasets
    except ModuleNotFoundError as missing:
        raise UserError(f"hub: needs {missing.name}, which is not installed; run pip install 'dlip[hub]'") from None
    path = Path(address)
    if path.exists():
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # the hub is told nothing of what lies here
    if path.is_file() and path.suffix not in FILES:
        raise UserError(f"{address} is no table that can be read; give one of {', '.join(FILES)}")
    settings = {"name": options.get("config"), "revision": options.get("revision")}
    try:
        if path.is_file():
            found = datasets.load_dataset(FILES[path.suffix], data_files=str(path))
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(address, **settings)
    except Exception as error:  # the library raises nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"the data set {address} cannot be loaded ({reason}); check its name and the network"
        ) from error
    if isinstance(found, datasets.Dataset):
        found = {str(found.split or "train"): found}
    for split, data in found.items():
        for column, kind in data.features.items():
            if isinstance(kind, datasets.Image):
                data = data.cast_column(column, datasets.Image(decode=False))
        found[split] = data
    return found


def _roots(address: str) -> list[Path]:
    """The folders that a data set's pictures may lie in: its own, or the libraries' downloads."""
    if Path(address).exists():
        place = Path(address).resolve()
        return [place.parent if place.is_file() else place]
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    places = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return [Path(place).expanduser().resolve() for place in places]


def _columns(names: list[str], options: dict[str, str], where: str) -> dict[str, str]:
    """What a column holds -> its name: the one given, or the first one usual for it."""
    found = {part: next((name for name in usual if name in names), None) for part, usual in COLUMNS.items()}
    for part in COLUMNS:
        if part in options and options[part] not in names:
            raise UserError(
                f"{where} names the column {options[part]!r}; choose one of those it has: {', '.join(names)}"
            )
    found |= {part: name for part, name in options.items() if part in COLUMNS}
    if found["image"] is None:
        raise UserError(
            f"{where} has no column of pictures by a usual name; name it: ?image=..., of {', '.join(names)}"
        )
    if found["caption"] is None and None in (found["question"], found["answers"]):
        raise UserError(
            f"{where} has no captions nor answered questions by usual names; name them: ?caption=... or "
            f"?question=...&answers=..., of {', '.join(names)}"
        )
    if None in (found["question"], found["answers"]):
        found["question"] = found["answers"] = None
    return {part: name for part, name in found.items() if name is not None}
