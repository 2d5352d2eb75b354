"""Records read from JSON lines, and the same as a table."""

import json
import warnings
from contextlib import suppress
from pathlib import Path

import pandas as pd

from dlip.common.errors import UserError
from dlip.common.files import read_json, write_output
from dlip.common.text import one_line
from dlip.records.outcomes import outcomes as outcomes  # read here, as the rest of a record
from dlip.records.schema import NUMBERS, SCHEMA, is_record, numbers, sizes, upgrade

ABOUT = (
    "id", "created", "name", "role", "seed", "data", "split", "test_images", "train_images", "model", "command",
    "config_hash", "wall_s", "device", "threads", "torch", "transformers", "quick", "init_from", "timed",
)  # fmt: skip


# --- writing --------------------------------------------------------------------------------------------------


# --- reading --------------------------------------------------------------------------------------------------


def read(path: str | Path) -> list[dict]:
    """The records of a file, or of every `*.jsonl` of a folder, in the order of their lines.

    A line that is no whole record (the last one, where a machine stopped while writing) or that a newer version wrote
    is named in a warning and skipped. Raises UserError where there is no such file or folder.
    """
    return [line for line in _lines(Path(path)) if "failed" not in line]


def record_of_run(folder: Path) -> dict:
    """The record in a run's folder; empty where there is none, or it is damaged."""
    with suppress(UserError):
        if is_record(record := upgrade(read_json(folder / "record.json"))):
            return record
    return {}


def contains(path: str | Path, record: dict) -> bool:
    """Whether a file of records exists and holds this record, by its id."""
    return Path(path).is_file() and record["id"].encode() in Path(path).read_bytes()


def failures(path: str | Path) -> list[dict]:
    """The lines of runs that failed. Warns and raises as `read`."""
    return [line for line in _lines(Path(path)) if "failed" in line]


def _lines(path: Path) -> list[dict]:
    if not path.exists():
        raise UserError(f"there are no records at {path}; name a .jsonl file of records or a folder of them")
    records = []
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        for number, line in enumerate(_texts(file), 1):
            try:
                record = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError):
                record = {}
            if record is None:
                continue
            record = upgrade(record) if isinstance(record, dict) else {}
            if record.get("schema") != SCHEMA or not is_record(record):
                newer = record.get("schema", SCHEMA) != SCHEMA
                fault = f"has schema {record['schema']}, not {SCHEMA}" if newer else "is not a complete record"
                warnings.warn(one_line(f"{file} line {number} {fault}; it was skipped"), stacklevel=3)
                continue
            records.append(record)
    return records


def _texts(file: Path) -> list[bytes]:
    """The lines of a file of records, or all of a file that is one record, as a run keeps its own."""
    content = file.read_bytes()
    with suppress(ValueError, RecursionError):
        if file.suffix == ".json":
            json.loads(content)
            return [content]
    return content.splitlines()


def load(path: str | Path = "results") -> pd.DataFrame:
    """The records of a file or folder, in the repository those that are shipped, one row a run.

    The columns stand at the top of this file. Warns and raises as `read`.
    """
    return frame(read(path))


def frame(records: list[dict]) -> pd.DataFrame:
    """Records as `load` gives them."""
    df = pd.DataFrame([_row(record) for record in records])
    df = df.reindex(columns=[*ABOUT, *NUMBERS, *(c for c in df if "." in c)])
    numbers = df.columns[len(ABOUT) :]
    df[numbers] = df[numbers].astype(float)
    df.loc[(df["role"] == "teacher") & df["latency_ms"].notna(), "latency_share"] = 100.0
    weights = [c for c in df if c.startswith("w.")]
    return df.fillna(dict.fromkeys(weights, 0.0))


def _row(record: dict) -> dict:
    row, start = {column: record.get(column) for column in ABOUT}, record["config"].get("start")
    row |= {"model": sizes(record["config"].get("model")), "test_images": test_images(record)}
    row |= {
        "quick": bool(record.get("quick")),
        "init_from": ", ".join(map(str, start)) if isinstance(start, list) else "",
    }
    return row | {"timed": _timed(record["efficiency"].get("latency") or {})} | numbers(record)


def _timed(latency: dict) -> str:
    counts = [(latency.get(noun), noun) for noun in ("beams", "tokens", "threads")]
    words = [f"{count} {noun[:-1] if count == 1 else noun}" for count, noun in counts if count]  # of any kind
    words = [latency.get("task"), f"batch {latency.get('batch')}", *words, latency.get("device")]
    return ", ".join(map(str, words)) if latency else ""


def test_images(record: dict) -> int:
    """On how many pictures with captions it was measured, or with questions where those are more; 0 where it does not
    tell."""
    counts = outcomes(record)
    return max((len(counts[name]) for name in ("captions", "questions") if name in counts), default=0)


def export(df: pd.DataFrame, path: str | Path) -> None:
    """Writes `load`'s table as CSV or Parquet, as the path ends in. Raises UserError where it cannot."""
    path = Path(path)
    writers = {".csv": df.to_csv, ".parquet": df.to_parquet}
    if path.suffix not in writers:
        raise UserError(f"{path} ends in neither .csv nor .parquet; name a file that does")
    try:
        write_output(path, lambda place: writers[path.suffix](place, index=False))
    except OSError as error:
        raise UserError(f"the table cannot be written to {path}: {error.strerror}; choose another file") from error


# --- comparing ------------------------------------------------------------------------------------------------
