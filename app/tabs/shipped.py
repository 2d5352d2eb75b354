"""The records shipped with the project, in groups of runs that can be compared."""

from functools import lru_cache
from pathlib import Path

import pandas as pd

import dlip
from dlip.checkpoints.load import BUILT_IN, built_in_models
from dlip.common.errors import UserError
from dlip.experiments.ablation import matched
from dlip.experiments.grids import GRIDS
from dlip.records import frame, read, record_of_run
from dlip.records.compare import describe_test_sets

RESULTS = Path(dlip.__file__).parents[1] / "results"
_Files = tuple[tuple[Path, int], ...]


def records() -> list[dict]:
    """The records of the built-in models and of `results/`, each once, without quick runs."""
    return _read(_files())


def _files() -> _Files:
    """Each file with its modification time, the key of the caches below."""
    models = [*built_in_models("scenes"), *built_in_models("photos")]
    files = [BUILT_IN / name / "record.json" for name in models] + sorted(RESULTS.glob("*.jsonl"))
    return tuple((file, file.stat().st_mtime_ns) for file in files if file.is_file())


@lru_cache(maxsize=1)
def _read(files: _Files) -> list[dict]:
    every = (record for file, _ in files for record in read(file))
    return list({record["id"]: record for record in every if not record.get("quick")}.values())


def groups() -> list[str]:
    """The data sets of runs outside grids, that of the shipped scenes models first, and the grids with a run besides
    their teacher."""
    grids = (name for name in GRIDS if any(runs for row, runs in matched(name, records()).items() if row != "teacher"))
    return [*_outside_grids(_files()), *grids]


def group_of(model: str) -> str:
    """The group with the record of a built-in model; the first one for any other model."""
    record = record_of_run(BUILT_IN / model)  # {} if it is missing or damaged, which no group holds
    outside = _outside_grids(_files())
    return next((name for name, runs in outside.items() if record in runs), groups()[0])


def records_of(group: str | None = None) -> list[dict]:
    """The records of a group, by default the first; those of a grid are named after its rows.

    Raises UserError if there is no such group.
    """
    group = group or groups()[0]
    if group in GRIDS:
        return [{**record, "name": name} for name, runs in matched(group, records()).items() for record in runs]
    outside = _outside_grids(_files())
    if group not in outside:
        raise UserError(f"there are no runs called {group!r}; choose one of {'; '.join((*outside, *GRIDS))}")
    return outside[group]


def table(group: str | None = None) -> pd.DataFrame:
    """The records of a group as `dlip.records.frame` returns them, cached: do not modify. Raises as `records_of`."""
    return _table(group, _files())


@lru_cache(maxsize=16)
def _table(group: str | None, files: _Files) -> pd.DataFrame:
    return frame(records_of(group))


@lru_cache(maxsize=1)
def _outside_grids(files: _Files) -> dict[str, list[dict]]:
    """The records outside grids by the data that they were measured on."""
    by_data: dict[str, list[dict]] = {}
    for record in _read(files):
        if "ablation" not in record:
            by_data.setdefault(describe_test_sets(frame([record]))[0], []).append(record)
    return by_data
