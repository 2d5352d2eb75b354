"""Benchmarks: things compared side by side on one machine, in alternation, and kept as records. A file each.

A record is {"bench", "created", "command", "machine", "versions", "settings", "rows"}; every row is one of the things
compared, by "name", with medians over the rounds, their spread, and "ratio": how many times as fast as the first row.
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
    "captioning": "a caption of the shipped students against their teacher's",
    "demo": "the playground's main job, from the command to its report",
    "growth": "how a caption's cost grows with batch, picture, tokens and beams, and ITM's with candidates",
    "modules": "a caption's modules against what the machine can do at most",
    "precision": "the shipped student in bf16, int8 and ONNX: what it keeps of its scores, and its captions' time",
    "reading": "pictures a second, from a folder and from shards against torchvision's ImageFolder (needs --data)",
    "reranking": "retrieval's second stage against BLIP's own loops, the same ranks",
    "scenes": "scenes drawn a second, pixels alone and with their words",
    "search": "retrieval's first stage at growing sizes: time and memory",
    "step": "a distillation step, DLIP-Small from a random BLIP-Base: time and memory, and what --dry-run says of them",
    "stock": "captions, pictures and pairs against stock transformers on the same weights, the same outputs",
    "training": "a distillation step of the playground in fp32, in bf16 and with a warm cache, and its profile",
}
"""Name, that of its module -> what is compared."""


def bench(name: str, command: str = "", **options) -> dict:
    """The record of a benchmark; `options` are those of its module's `run`. Raises UserError where there is none."""
    if name not in BENCHES:
        raise UserError(f"there is no benchmark {name!r}; choose one of {', '.join(BENCHES)}")
    run = resolve_name(f"dlip.bench.{name}:run")
    if unknown := options.keys() - signature(run).parameters:
        raise UserError(f"the benchmark {name} takes no --{min(unknown)}; leave it out")
    settings, rows = run(**options)
    return {"bench": name, **about(command), "settings": settings, "rows": rows}


def every(asked: dict) -> dict[str, dict]:
    """Name -> those of the options that it takes, of all benchmarks that can run with them: `reading` needs data."""
    takes = {name: signature(resolve_name(f"dlip.bench.{name}:run")).parameters for name in BENCHES}
    able = [name for name in BENCHES if name != "reading" or "data" in asked]
    return {name: {key: value for key, value in asked.items() if key in takes[name]} for name in able}


def about(command: str) -> dict:
    """created, command, machine and versions, of a record that is made now."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine_info(),
        "versions": {name: version(name) for name in ("dlip", "torch", "transformers")},
    }


def by_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, one a round; the calls take turns, and a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(1 + rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - began)
    return times


def row(name: str, values: list[float], first: list[float], unit: str, **more) -> dict:
    """A row of values, one a round: median, min and max, and how many times as fast as `first` in the same round.

    unit: "s" and "ms" are times, of which less is faster; of all others more is.
    """
    ratio = median(a / b for a, b in zip(values, first, strict=True))
    ratio = 1 / ratio if unit in ("s", "ms") else ratio
    spread = {unit: median(values), f"{unit}_min": min(values), f"{unit}_max": max(values)}
    return {"name": name, **{key: round(value, 4) for key, value in spread.items()}, "ratio": round(ratio, 3), **more}


def text(record: dict) -> str:
    """A record as a table for a terminal."""
    columns = list(dict.fromkeys(key for one in record["rows"] for key in one))
    cells = [columns, *([_cell(one.get(column)) for column in columns] for one in record["rows"])]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    about = ", ".join(f"{key} {value}" for key, value in record["settings"].items())
    machine = record["machine"]
    return "\n".join([*lines, about, f"on {machine['gpu'] or machine['cpu']}, {plural(machine['cores'], 'core')}"])


def _cell(value) -> str:
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)
