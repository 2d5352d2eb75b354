"""What the library `datasets` opens: data sets of the hub, tables, image folders, and WebDataset shards.

NAME is one of these, or `hub:NAME?image=picture&caption=text` with options: the columns `image`, `caption`, `question`,
`answers`, `type` (of the question) and `id` (equal in all rows of one image); `config` and `revision` of a data set of
the hub; `stream=true` and the `rows` of an epoch of a stream. Code of a data set is never run.
"""

import re
from glob import glob
from itertools import product
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
SETTINGS = ("config", "revision", "stream", "rows")
FILES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
FILES |= {".csv": "csv", ".tsv": "csv", ".txt": "csv"}
"""Suffix of a file -> the library's name of its format."""
TABLES = ("captions.txt", "*.csv", "*.tsv", "*.parquet")
"""Files of texts in a folder: Flickr8k's, or one's own."""
SHARD_COLUMNS = ("__key__", "__url__", "txt", "json")
"""Columns of WebDataset shards beside images, which are in one column for each suffix."""
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]+)\}")


def is_table(name: str) -> bool:
    """Whether the library reads this: hub:NAME, a URL, a pattern of shards, a table, or a folder that holds such."""
    path = Path(name)
    if name.startswith((PREFIX, "http://", "https://")) or path.suffix in (".tar", *FILES):
        return True
    metadata = any(path.glob("metadata.*")) or any(path.glob("*/metadata.*"))
    return path.is_dir() and (metadata or bool(_tables(path)) or bool(shards(name) and not (path / "images").is_dir()))


def parse(name: str) -> tuple[str, dict[str, str]]:
    """`hub:NAME?image=picture` -> NAME and its options. Raises UserError for an unknown option."""
    if not name.startswith(PREFIX):
        return name, {}
    address, _, query = name.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = (*COLUMNS, *SETTINGS)
    if unknown := [option for option in options if option not in known]:
        raise UserError(f"{name} has the unknown option {unknown[0]!r}; choose one of: {', '.join(known)}")
    if not address:
        raise UserError(f"{name} names no data set; write hub:NAME, or hub: and a folder")
    return address, options


def splits(name: str) -> list[str]:
    """The splits of a data set, `validation` as val, in alphabetical order. Raises UserError as `load` does."""
    return sorted(load(*parse(name)))


def load(address: str, options: dict[str, str]) -> dict:
    """Split -> the library's data set, or its stream; `validation` and the like are val, images are not decoded.

    Raises UserError if the library is not installed or the data set cannot be loaded.
    """
    try:
        import datasets
    except ModuleNotFoundError as missing:
        raise UserError(f"{address} needs {missing.name}, which is not installed; pip install 'dlip[hub]'") from None
    path, streaming = Path(address), options.get("stream") == "true"
    if path.exists():
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # no request to the hub about local files
    try:
        if files := shards(address):
            kinds = {name: datasets.Value("string") for name in SHARD_COLUMNS} | {"json": datasets.Json()}
            kinds |= {suffix: datasets.Image(decode=False) for suffix in SUFFIXES}
            loaded = datasets.load_dataset(
                "webdataset", data_files=_by_split(files), features=datasets.Features(kinds), streaming=streaming
            )
        elif files := [address] if path.is_file() else _tables(path):
            # pandas takes the answer "None" for a missing one
            csv = {"sep": "\t" if files[0].endswith(".tsv") else ",", "keep_default_na": False, "na_values": [""]}
            kind = FILES.get(Path(files[0]).suffix)
            if kind is None:
                raise UserError(f"{address} is not a known table; give one of: {', '.join(FILES)}")
            loaded = datasets.load_dataset(
                kind, data_files=_by_split(files), streaming=streaming, **(csv if kind == "csv" else {})
            )
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(address)
        else:
            config, revision = options.get("config"), options.get("revision")
            loaded = datasets.load_dataset(address, name=config, revision=revision, streaming=streaming)
    except UserError:
        raise
    except Exception as error:  # the library raises nearly anything
        malformed = isinstance(error, datasets.exceptions.DatasetGenerationError)
        cause = (error.__cause__ if malformed else None) or error
        advice = "correct its files" if malformed else "check its name and the network"
        raise UserError(f"{address} cannot be loaded ({str(cause) or type(cause).__name__}); {advice}") from error
    if isinstance(loaded, datasets.Dataset):
        loaded = {str(loaded.split or "train"): loaded}
    named = {}
    for split, data in loaded.items():
        for column, kind in (data.features or {}).items():
            if isinstance(kind, datasets.Image):
                data = data.cast_column(column, datasets.Image(decode=False))
        usual = SPLITS.get(split, split)
        named[split if usual in (*loaded, *named) else usual] = data
    return named


def shards(address: str) -> list[str]:
    """The tar files of a folder, a pattern (`*`, `{000..041}`, `{train,val}`) or a URL.

    Raises UserError for a missing one.
    """
    path = Path(address)
    if path.is_dir():
        return sorted(map(str, [*path.glob("*.tar"), *path.glob("*/*.tar")]))
    if not address.partition("?")[0].endswith(".tar"):
        return []
    names = expand_braces(address)
    if address.startswith(("http://", "https://")):
        return names
    files = [file for name in names for file in sorted(glob(name)) or [name]]
    if missing := [file for file in files if not Path(file).is_file()]:
        raise UserError(f"there is no shard {missing[0]}; check its name")
    return files


def expand_braces(pattern: str) -> list[str]:
    """Every name that a pattern with {000..041} or {train,val} stands for."""
    pieces, end = [], 0
    for match in _BRACES.finditer(pattern):
        first, last, words = match.groups()
        values = words.split(",") if words else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
        pieces += [[pattern[end : match.start()]], values]
        end = match.end()
    return ["".join(parts) for parts in product(*pieces, [pattern[end:]])]


def image_folders(address: str) -> list[Path]:
    """Folders in which a data set's images may be: its own, or the libraries' downloads."""
    if Path(address).exists():
        place = Path(address).resolve()
        folder = place.parent if place.is_file() else place
        return [folder, *(folder / name for name in ("images", "Images") if (folder / name).is_dir())]
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    places = (config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return [Path(place).expanduser().resolve() for place in places]


def _tables(folder: Path) -> list[str]:
    """The tables of one kind in a folder."""
    found = (sorted(map(str, folder.glob(pattern))) for pattern in TABLES)
    return next(filter(None, found), [])


def _by_split(files: list[str]) -> dict[str, list[str]]:
    """Split -> its files, by a word of their name, or by their folder; else train."""
    named: dict[str, list[str]] = {}
    for file in files:
        split = split_in(Path(file).stem) or SPLITS.get(Path(file).parent.name, "train")
        named.setdefault(split, []).append(file)
    return named
