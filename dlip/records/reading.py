"""Read records from JSON lines, as dicts or as a table."""

import json
import warnings
from contextlib import suppress
from pathlib import Path

import pandas as pd

from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.common.text import one_line
from dlip.records.migration import upgrade
from dlip.records.outcomes import outcomes
from dlip.records.schema import FIGURES, SCHEMA, figures, is_record, model_size

RUN_COLUMNS = (
    "id", "created", "name", "role", "seed", "data", "split", "test_images", "train_images", "model", "command",
    "config_hash", "wall_s", "device", "threads", "torch", "transformers", "quick", "init_from", "latency_setup",
)  # fmt: skip
"""Columns of `load` that describe the run; `FIGURES` follow."""


def read(path: str | Path) -> list[dict]:
    """The records of a file, or of every `*.jsonl` in a folder, in the order of their lines, upgraded to this schema.

    A line that is not a complete record (an interrupted write) or has a newer schema is skipped with a warning. Raises
    UserError if the path does not exist.
    """
    return [line for line in _lines(Path(path)) if "failed" not in line]


def failures(path: str | Path) -> list[dict]:
    """The lines of failed runs. Warns and raises as `read`."""
    return [line for line in _lines(Path(path)) if "failed" in line]


def record_of_run(folder: Path) -> dict:
    """The record in a run folder; empty if it is missing, damaged or of a failed run."""
    with suppress(UserError):
        if is_record(record := upgrade(read_json(folder / "record.json"))) and "failed" not in record:
            return record
    return {}


def record_of_model(folder: Path, size: int | None = None) -> dict | None:
    """The record in a model's folder, None if there is none. Raises UserError if it is damaged.

    size: image size that follows the model's name (`@384`), which the record's name then states.
    """
    if not (path := folder / "record.json").is_file():
        return None
    if not (record := record_of_run(folder)):
        raise UserError(f"{path} is not a record of a run; take another copy of the folder")
    return record | ({"name": f"{record['name']}, {size} px"} if size else {})


def contains(path: str | Path, record: dict) -> bool:
    """Whether a file of records exists and holds this record, by its id."""
    return Path(path).is_file() and record["id"].encode() in Path(path).read_bytes()


def _lines(path: Path) -> list[dict]:
    if not path.exists():
        raise UserError(f"no records at {path}; name a .jsonl file of records or a folder of such files")
    records = []
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        for number, line in enumerate(_raw_lines(file), 1):
            if not line.strip():
                continue
            record = None
            with suppress(ValueError, RecursionError):
                record = json.loads(line)
            record = upgrade(record) if isinstance(record, dict) else {}
            if (schema := record.get("schema", SCHEMA)) != SCHEMA:
                problem = f"has schema {schema}, not {SCHEMA}"
            elif "schema" not in record or not is_record(record):
                problem = "is not a complete record"
            else:
                records.append(record)
                continue
            warnings.warn(one_line(f"{file} line {number} {problem}; it was skipped"), stacklevel=3)
    return records


def _raw_lines(file: Path) -> list[bytes]:
    """The lines of a file of records; the whole content if it is a single, possibly indented, record."""
    content = file.read_bytes()
    if file.suffix == ".json":
        with suppress(ValueError, RecursionError):
            json.loads(content)
            return [content]
    return content.splitlines()


def load(path: str | Path = "results") -> pd.DataFrame:
    """The records of a file or folder as a table, one row per run; by default those shipped in the repository.

    `dlip.records` documents the columns. Warns and raises as `read`.
    """
    return frame(read(path))


def frame(records: list[dict]) -> pd.DataFrame:
    """Records as a table with the columns of `load`."""
    df = pd.DataFrame([_row(record) for record in records])
    df = df.reindex(columns=[*RUN_COLUMNS, *FIGURES, *(c for c in df if "." in c)])
    numbers = df.columns[len(RUN_COLUMNS) :]
    df[numbers] = df[numbers].astype(float)
    df.loc[(df["role"] == "teacher") & df["latency_ms"].notna(), "latency_share"] = 100.0
    weights = [c for c in df if c.startswith("w.")]
    return df.fillna(dict.fromkeys(weights, 0.0))


def _row(record: dict) -> dict:
    start = record["config"].get("init_from")
    return {column: record.get(column) for column in RUN_COLUMNS} | {
        "model": model_size(record["config"].get("model")),
        "test_images": count_test_images(record),
        "quick": bool(record.get("quick")),
        "init_from": ", ".join(map(str, start)) if isinstance(start, list) else "",
        "latency_setup": _latency_setup(record["efficiency"].get("latency")),
        **figures(record),
    }


def _latency_setup(latency: dict | None) -> str:
    """How a latency was measured: `captioning, batch 1, 3 beams, 20 tokens, 2 threads, cpu`."""
    if not latency:
        return ""
    counts = [(latency.get(noun), noun) for noun in ("beams", "tokens", "threads")]
    parts = [f"{count} {noun[:-1] if count == 1 else noun}" for count, noun in counts if count]
    return ", ".join(map(str, [latency.get("task"), f"batch {latency.get('batch')}", *parts, latency.get("device")]))


def count_test_images(record: dict) -> int:
    """Number of images measured: the most that were ranked, captioned or asked about; 0 if unknown."""
    columns = outcomes(record)
    return max((len(columns[name]) for name in ("captions", "cider", "questions") if name in columns), default=0)
