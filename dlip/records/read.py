"""Run records: one JSON object a run, a line each in `results/*.jsonl`, and the same as a table.

**A record** (schema 1) holds, in this order:

- schema (1), id (unique), created (UTC, ISO 8601), name (the same for all seeds of one thing), role ("teacher",
  "undistilled" or "distilled").
- command (exactly as typed), config (resolved: "model", "train" and whatever else decides the result),
  config_hash (`config_hash`), seed.
- data, split (what was measured on; the outcomes tell how many pictures), train_pictures (how many pictures the model
  could learn from).
- code ("version"; "commit" and whether the package was "modified" since, null outside a git checkout), python, torch,
  transformers (versions), releases (name -> version of `dlip.common.machine.RELEASES`), device, machine ("cpu", "gpu": their
  names, "instructions": of the cpu, "cores"), threads (of each process), processes, wall_s (seconds of training).
- losses: "step" and each term as lists of one length, at most 100 points.
- metrics: "retrieval", "caption" and "vqa" as `dlip.evaluate` yields them, "attention" as `dlip.evaluation.attention_maps.measure`
  does; null where not measured.
- efficiency: as `dlip.cost.count.summary` yields it, with "latency" as `dlip.cost.latency.latency` does and "memory" as
  `dlip.cost.memory.memory`.
- samples: up to 12 of {"image_id", "caption", "references", "questions", "answers", "truth"}; the last three are lists
  of one length.
- notes: why a metric is null, by its name; under "data" how many faults of the data were left out, under "steps"
  how many steps of training.
- outcomes: what the scores are the means of, each a column of float16, compressed and in base64 (`outcomes` reads it).
  In the order of the pictures measured: tr1 (0 or 1) and cider (x 100), one a picture with captions; ir1, one a
  caption; vqa (0 to 1), one a question; captions and questions, how many of them each picture has.
- history: the runs that the model comes from, by its weights, teacher and words, or that `command` only measured, the
  earliest first, each {"folder", "command" (null where none was kept), "config", "wall_s" (of training)}.
- inputs: SHA-256 of the "teacher"'s weights (null for none), of the student's at the "start", of its vocabulary's
  "words", of the "data" and the "test" (their `fingerprint`); "pictures", how many it learnt from; "threads",
  "torch", "releases", "gpu", "instructions" and "code", that training began with.
- of a grid's run, ablation: {"hash"}, of all that decides the result but the seed (`dlip.experiments.ablation.identity`); and
  quick: true where the run was too short for its scores to mean anything.

A run of a grid that failed is a line {"schema", "failed": why, "created", "name", "role", "seed", "ablation"}, which
`failures` gives and `read` leaves out.

**Columns** of `load`, one row a run: id, created, name, role, seed, data, split, test_pictures (how many were measured
on; 0 where the record does not tell), train_pictures, model (sizes in words), command, config_hash, wall_s, device,
threads, torch, transformers, quick, start (the parts, or all, that began at another model's weights, and whose), timed
(how its latency was, in words; "" where it was not); then numbers, NaN where the record has none:

- tr1 tr5 tr10 ir1 ir5 ir10: recall of texts by pictures and of pictures by texts, in %: re-ranked by ITM, or by ITC
  alone where "notes" say so and in all runs of grids.
- bleu4 meteor rougeL cider spice: caption scores x 100.
- vqa: soft accuracy in %. vqa.<type>: of one type of question.
- pointing, mass: how often the cross-attention of a word that names an object has its maximum there, and how much of
  what it gives to patches lies there, in %, when a caption is read; pointing_other, mass_other: of the scene's other
  objects. divergence: Jensen-Shannon, over all words and with what [CLS] gets, from the teacher's maps (or those of
  the model whose tokenizer it has), in bits. <it>_decoder: when the caption is said.
- params_m: millions of stored parameters. flops_g: GFLOPs of one picture and one text. latency_ms, latency_p95_ms:
  median and 95th percentile of the timed task; latency_share: the median in % of the teacher's (or of that of the model
  whose tokenizer it has), timed by turns; 100 of a teacher. params_m_paper, macs_g_paper: in the paper's count.
- w.<term>: weight of a loss term; 0 where the run did not have it.
"""

import json
import warnings
from contextlib import suppress
from pathlib import Path

import pandas as pd

from dlip.common.errors import UserError, one_line
from dlip.common.files import write_out
from dlip.records.outcomes import outcomes as outcomes  # read here, as the rest of a record
from dlip.records.schema import NUMBERS, SCHEMA, numbers, sizes, whole

ABOUT = (
    "id", "created", "name", "role", "seed", "data", "split", "test_pictures", "train_pictures", "model", "command",
    "config_hash", "wall_s", "device", "threads", "torch", "transformers", "quick", "start", "timed",
)  # fmt: skip


# --- writing --------------------------------------------------------------------------------------------------


# --- reading --------------------------------------------------------------------------------------------------


def read(path: str | Path) -> list[dict]:
    """The records of a file, or of every `*.jsonl` of a folder, in the order of their lines.

    A line that is no whole record (the last one, where a machine stopped while writing) or that a newer version wrote
    is named in a warning and skipped. Raises UserError where there is no such file or folder.
    """
    return [line for line in _lines(Path(path)) if "failed" not in line]


def stands(record: dict, path: str | Path) -> bool:
    """Whether a file holds this record already."""
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
            if not isinstance(record, dict) or record.get("schema") != SCHEMA or not whole(record):
                other = isinstance(record, dict) and record.get("schema", SCHEMA) != SCHEMA
                fault = f"is of schema {record['schema']}, not {SCHEMA}" if other else "is no whole record"
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
    row |= {"model": sizes(record["config"].get("model")), "test_pictures": test_pictures(record)}
    row |= {"quick": bool(record.get("quick")), "start": ", ".join(map(str, start)) if isinstance(start, list) else ""}
    return row | {"timed": _timed(record["efficiency"].get("latency") or {})} | numbers(record)


def _timed(latency: dict) -> str:
    counts = [(latency.get(noun), noun) for noun in ("beams", "tokens", "threads")]
    words = [f"{count} {noun[:-1] if count == 1 else noun}" for count, noun in counts if count]  # of any kind
    words = [latency.get("task"), f"batch {latency.get('batch')}", *words, latency.get("device")]
    return ", ".join(map(str, words)) if latency else ""


def test_pictures(record: dict) -> int:
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
        write_out(path, lambda place: writers[path.suffix](place, index=False))
    except OSError as error:
        raise UserError(f"the table cannot be written to {path}: {error.strerror}; choose another file") from error


# --- comparing ------------------------------------------------------------------------------------------------
