"""Benchmarks: variants timed in alternation on one machine and kept as records. One module per benchmark.

A record is {"bench", "created", "command", "machine", "versions", "settings", "rows"}. A row is a variant: its "name",
medians over the rounds with minimum and maximum, and "ratio", its speed relative to the first row.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from inspect import signature
from pkgutil import resolve_name
from statistics import median

from dlip.common.errors import UserError
from dlip.common.machine import machine_info
from dlip.common.text import plural

BENCHES = {
    "backends": "this package, stock transformers, onnxruntime, OpenVINO and torch.compile with the same weights",
    "captioning": "captioning by the shipped students and their teacher",
    "demo": "dlip demo from command to report",
    "growth": "captioning time by batch, image size, tokens and beams; ITM time by candidates",
    "modules": "the modules of captioning against the machine's peak speed",
    "precision": "the shipped student in each precision, all shipped models as optimize picks: scores, captioning time",
    "reading": "images per second from a folder and from shards against torchvision's ImageFolder (needs --data)",
    "reranking": "retrieval's second stage (ITM) against BLIP's own loops, with equal ranks",
    "scenes": "scenes rendered per second, pixels alone and with texts",
    "search": "retrieval's first stage (ITC) at growing sizes: time and memory",
    "step": "a distillation step of DLIP-Small from BLIP-Base: time and memory, beside the --dry-run estimate",
    "training": "a distillation step of the scenes student in fp32, bf16 and with a warm cache, and its profile",
}
"""Name of a benchmark's module -> what it compares."""


def bench(name: str, command: str = "", **options) -> dict:
    """Run a benchmark and return its record. options: arguments of its `run`. Raises UserError if it is unknown."""
    if name not in BENCHES:
        raise UserError(f"there is no benchmark {name!r}; choose one of {', '.join(BENCHES)}")
    run = resolve_name(f"dlip.bench.{name}:run")
    if unknown := options.keys() - signature(run).parameters:
        raise UserError(f"the benchmark {name} has no option --{min(unknown)}; remove it")
    settings, rows = run(**options)
    return {"bench": name, **about(command), "settings": settings, "rows": rows}


def every(options: dict) -> dict[str, dict]:
    """Name -> the options it takes, for every benchmark that can run with them (`reading` needs data)."""
    parameters = {name: signature(resolve_name(f"dlip.bench.{name}:run")).parameters for name in BENCHES}
    names = [name for name in BENCHES if name != "reading" or "data" in options]
    return {name: {key: value for key, value in options.items() if key in parameters[name]} for name in names}


def about(command: str) -> dict:
    """The keys "created", "command", "machine" and "versions" of a new record."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine_info(),
        "versions": {name: version(name) for name in ("dlip", "torch", "transformers")},
    }


def alternate(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; the calls alternate, and a warm-up round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(1 + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return times


def row(name: str, values: list[float], first: list[float], unit: str, **more) -> dict:
    """A row of a record from one value per round: median, minimum, maximum, and speed relative to `first`.

    ratio: median over rounds. unit: in "s" and "ms" lower values are faster, in all others higher ones.
    """
    ratio = median(a / b for a, b in zip(values, first, strict=True))
    ratio = 1 / ratio if unit in ("s", "ms") else ratio
    spread = {unit: median(values), f"{unit}_min": min(values), f"{unit}_max": max(values)}
    return {"name": name, **{key: round(value, 4) for key, value in spread.items()}, "ratio": round(ratio, 3), **more}


def text(record: dict) -> str:
    """A record as a table for the terminal, without values that are tables themselves."""
    items = (item for one in record["rows"] for item in one.items())
    columns = [*dict.fromkeys(key for key, value in items if not isinstance(value, dict))]
    cells = [columns, *([_cell(one.get(column)) for column in columns] for one in record["rows"])]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    about = ", ".join(f"{key} {value}" for key, value in record["settings"].items())
    machine = record["machine"]
    return "\n".join([*lines, about, f"on {machine['gpu'] or machine['cpu']}, {plural(machine['cores'], 'core')}"])


def _cell(value) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)
