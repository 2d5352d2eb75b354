"""What the library `datasets` opens: data sets of the hub, tables, image folders, and WebDataset shards.

NAME is one of these, or `hub:NAME?image=picture&caption=text` with options: the columns `image`, `caption`, `question`,
`answers`, `type` (of the question) and `id` (equal in all rows of one image); `config` and `revision` of a data set of
the hub; `stream=true` and the `rows` of an epoch of a stream. Code of a data set is never run.
"""

import re
from glob import glob
from pathlib import Path
from urllib.parse import parse_qsl

from dlip.common.errors import UserError
from dlip.data.annotation import SPLITS, split_in
from dlip.data.transforms import SUFFIXES

PREFIX = "hub:"
COLUMNS = {
    "image": ("image", "img", "picture", "jpg", "file_name", "filename"),
    "caption": ("caption", "captions", "text", "sentences", "sentences_raw", "raw"),
    "question": ("question",),
    "answers": ("answers", "answer", "multiple_choice_answer"),
    "type": ("answer_type", "question_type"),
    "id": ("image_id", "img_id", "cocoid", "filename", "file_name"),
}
"""Role of a column -> its usual names; the first that exists is taken, unless the user names one."""
OPTIONS = (*COLUMNS, "config", "revision", "stream", "rows")
FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
FORMATS |= {".csv": "csv", ".tsv": "csv", ".txt": "csv"}
"""Suffix of a file -> the library's name of its format."""
TABLES = ("captions.txt", "*.csv", "*.tsv", "*.parquet")
"""Files of texts in a folder: Flickr8k's, or one's own."""
SHARD_TEXTS = ("__key__", "__url__", "txt", "json")
"""Columns of WebDataset shards besides those of images, one for each suffix."""
MADE = {"train": range(8), "val": [8], "test": [9]}
"""Splits of data that name none: which of each ten images."""
URLS = ("http://", "https://")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]+)\}")


def is_table(name: str) -> bool:
    """Whether the library reads this: hub:NAME, a URL, a pattern of shards, a table, or a folder that holds such."""
    path = Path(name)
    if name.startswith((PREFIX, *URLS)) or path.suffix in (".tar", *FORMATS):
        return True
    if any(path.glob("metadata.*")) or any(path.glob("*/metadata.*")) or _tables(path):
        return True
    return path.is_dir() and bool(shards(name)) and not (path / "images").is_dir()


def parse(name: str) -> tuple[str, dict[str, str]]:
    """`hub:NAME?image=picture` -> NAME and its options. Raises UserError for an unknown option."""
    if not name.startswith(PREFIX):
        return name, {}
    address, _, query = name.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := [option for option in options if option not in OPTIONS]:
        raise UserError(f"{name} has the unknown option {unknown[0]!r}; choose one of: {', '.join(OPTIONS)}")
    if not options.get("rows", "1").isdecimal():
        raise UserError(f"rows={options['rows']} is no number; give the rows of an epoch of {address}")
    if not address:
        raise UserError(f"{name} names no data set; write hub:NAME, or hub: and a folder")
    return address, options


def splits(name: str) -> list[str]:
    """The splits of a data set, `validation` as val, in alphabetical order. Raises UserError as `load_all` does."""
    address, options = parse(name)
    loaded = load_all(address, options)
    return sorted({*loaded, *(MADE if makes_splits(address, options) else ())})


def load(name: str, split: str):
    """One split as the library's data set, or its stream. Raises UserError if there is none."""
    address, options = parse(name)
    loaded = load_all(address, options)
    known = loaded | (dict.fromkeys(MADE, loaded.get("train")) if makes_splits(address, options) else {})
    if split not in known:
        raise UserError(f"{name} has no split {split!r}; choose one of: {', '.join(sorted(known))}")
    return known[split]


def makes_splits(address: str, options: dict[str, str]) -> bool:
    """Whether no file of a data set names a split, so that `MADE` says which images are of which."""
    path = Path(address)
    files = shards(address) or ([address] if path.is_file() else _tables(path) or [*map(str, path.glob("metadata.*"))])
    return bool(files) and not any(map(_split_of, files)) and options.get("stream") != "true"


def load_all(address: str, options: dict[str, str]) -> dict:
    """Split -> the library's data set, or its stream; images are not decoded.

    Raises UserError if the library is not installed or the data set cannot be loaded.
    """
    try:
        import datasets
    except ModuleNotFoundError as missing:
        raise UserError(f"{address} needs {missing.name}, which is not installed; pip install 'dlip[hub]'") from None
    if Path(address).exists():
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # no request to the hub about local files
    try:
        loaded = _load(datasets, address, options)
    except UserError:
        raise
    except Exception as error:  # the library raises nearly anything
        malformed = isinstance(error, datasets.exceptions.DatasetGenerationError)
        cause = (error.__cause__ if malformed else None) or error
        advice = "correct its files" if malformed else "check its name and the network"
        raise UserError(f"{address} cannot be loaded ({str(cause) or type(cause).__name__}); {advice}") from error
    if isinstance(loaded, datasets.Dataset):
        loaded = {str(loaded.split or "train"): loaded}
    for split, data in loaded.items():
        for column, kind in (data.features or {}).items():
            if isinstance(kind, datasets.Image):
                loaded[split] = loaded[split].cast_column(column, datasets.Image(decode=False))
    return {SPLITS.get(split, split): data for split, data in loaded.items()}


def _load(datasets, address: str, options: dict[str, str]):
    path, streaming = Path(address), options.get("stream") == "true"
    if files := shards(address):
        kinds = {name: datasets.Value("string") for name in SHARD_TEXTS} | {"json": datasets.Json()}
        kinds |= {suffix: datasets.Image(decode=False) for suffix in SUFFIXES}
        features = datasets.Features(kinds)  # the library would guess them from the first samples
        return datasets.load_dataset("webdataset", data_files=_by_split(files), features=features, streaming=streaming)
    if files := [address] if path.is_file() else _tables(path):
        suffix = Path(files[0]).suffix
        if suffix not in FORMATS:
            raise UserError(f"{address} is not a known table; give one of: {', '.join(FORMATS)}")
        reading = {}
        if FORMATS[suffix] == "csv":  # pandas would take the answer "None" for a missing one
            reading = {"sep": "\t" if suffix == ".tsv" else ",", "keep_default_na": False, "na_values": [""]}
        return datasets.load_dataset(FORMATS[suffix], data_files=_by_split(files), streaming=streaming, **reading)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return datasets.load_from_disk(address)
    config, revision = options.get("config"), options.get("revision")
    return datasets.load_dataset(address, name=config, revision=revision, streaming=streaming)


def shards(address: str) -> list[str]:
    """The tar files of a folder, a pattern (`*`, `{000..041}`, `{train,val}`) or a URL; none of other data.

    Raises UserError for a missing one.
    """
    path = Path(address)
    if path.is_dir():
        return sorted(map(str, [*path.glob("*.tar"), *path.glob("*/*.tar")]))
    if not address.partition("?")[0].endswith(".tar"):
        return []
    names = expand_braces(address)
    if address.startswith(URLS):
        return names
    files = [file for name in names for file in sorted(glob(name)) or [name]]
    if missing := [file for file in files if not Path(file).is_file()]:
        raise UserError(f"there is no shard {missing[0]}; check its name")
    return files


def expand_braces(pattern: str) -> list[str]:
    """Every name that a pattern with {000..041} or {train,val} stands for."""
    if not (match := _BRACES.search(pattern)):
        return [pattern]
    first, last, words = match.groups()
    values = words.split(",") if words else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    before, after = pattern[: match.start()], expand_braces(pattern[match.end() :])
    return [f"{before}{value}{rest}" for value in values for rest in after]


def image_folders(address: str) -> list[Path]:
    """Folders in which a data set's images may be: its own, or the libraries' downloads."""
    place = Path(address).resolve()
    if place.exists():
        folder = place.parent if place.is_file() else place
        return [folder, folder / "images", folder / "Images"]
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    places = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return [Path(place).expanduser().resolve() for place in places]


def _tables(folder: Path) -> list[str]:
    """The tables of one kind in a folder."""
    return next(filter(None, (sorted(map(str, folder.glob(pattern))) for pattern in TABLES)), [])


def _by_split(files: list[str]) -> dict[str, list[str]]:
    """Split -> its files; those that name none are train."""
    named: dict[str, list[str]] = {}
    for file in files:
        named.setdefault(_split_of(file) or "train", []).append(file)
    return named


def _split_of(file: str) -> str | None:
    """The split in a file's name, or that of its folder."""
    return split_in(Path(file).stem) or SPLITS.get(Path(file).parent.name)
