"""The records that are shipped with the project, in groups of runs that can be compared."""

from functools import lru_cache
from pathlib import Path

import pandas as pd

import dlip
from dlip.checkpoints.load import BUILT_IN, built_in_models
from dlip.common.errors import UserError
from dlip.experiments.ablation import matched
from dlip.experiments.grids import GRIDS
from dlip.records import frame, read
from dlip.records.compare import describe_test_sets

RESULTS = Path(dlip.__file__).parents[1] / "results"
MAIN = "playground"
"""The group of the shipped models and their like."""


def shipped() -> list[dict]:
    """The records of `results/` and of the built-in models, each once, but for runs too short to mean anything."""
    return _read(_files())


def _files() -> tuple[tuple[Path, int], ...]:
    """Each file with the time of its last change: what was read of the same ones need not be read again."""
    files = sorted(RESULTS.glob("*.jsonl")) + [BUILT_IN / name / "record.json" for name in built_in_models()]
    return tuple((file, file.stat().st_mtime_ns) for file in files if file.is_file())


@lru_cache(maxsize=1)
def _read(files: tuple[tuple[Path, int], ...]) -> list[dict]:
    lists = [read(file) for file, _ in files]
    return list({record["id"]: record for some in lists for record in some if not record.get("quick")}.values())


def groups() -> list[str]:
    """`MAIN`, what else records of no grid were measured on, and the grids of which a run is there, teachers apart."""
    grids = (name for name in GRIDS if any(made for row, made in matched(name, shipped()).items() if row != "teacher"))
    return [*_measured(_files()), *grids]


def chosen(group: str) -> list[dict]:
    """The records of a group; a grid's under the names of its rows. Raises UserError where there is no such group."""
    if group in GRIDS:
        return [{**record, "name": name} for name, made in matched(group, shipped()).items() for record in made]
    found = _measured(_files())
    if group not in found:
        raise UserError(f"there are no runs called {group!r}; choose one of {'; '.join((*found, *GRIDS))}")
    return found[group]


def table(group: str) -> pd.DataFrame:
    """The records of a group as `dlip.records.load` gives them; not to be changed. Raises UserError as `chosen`."""
    return _table(group, _files())


@lru_cache(maxsize=16)
def _table(group: str, files: tuple[tuple[Path, int], ...]) -> pd.DataFrame:
    return frame(chosen(group))


@lru_cache(maxsize=1)
def _measured(files: tuple[tuple[Path, int], ...]) -> dict[str, list[dict]]:
    """The records of no grid by what they were measured on, most first; what most were measured on is `MAIN`."""
    found: dict[str, list[dict]] = {}
    for record in _read(files):
        if "ablation" not in record:
            found.setdefault(describe_test_sets(frame([record]))[0], []).append(record)
    (_, main), *rest = sorted(found.items(), key=lambda group: -len(group[1]))
    return {MAIN: main, **dict(rest)}
