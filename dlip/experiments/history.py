"""The runs that a model comes from: its initial weights', its teacher's, its tokenizer's."""

from collections.abc import Iterable
from pathlib import Path

from dlip.checkpoints.init_from import parse_source
from dlip.checkpoints.load import model_folder, parse_name, split_names
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.records.migration import upgrade
from dlip.records.schema import is_record
from dlip.training.run_folder import Run


def model_record(model: str) -> dict:
    """The record of the run that made a model. Raises UserError where none lies beside it."""
    path = model_folder(model) / "record.json"
    if not path.exists():
        raise UserError(f"no record of a run lies beside {model}, so how it was made is unknown; drop --results")
    if not is_record(record := upgrade(read_json(path))) or "failed" in record:
        raise UserError(f"{path} is not a record of a run; take another copy of the folder")
    return record


def history(models: Iterable[str], after: tuple[Path, ...] = ()) -> list[dict]:
    """The runs among models by name, and those that these come from, the earliest first.

    Each is {"folder", "command" (null where it was not kept), "config", "wall_s" (of training)}. after: run folders
    that come later, one of which may have replaced an earlier one.
    """
    runs: dict[Path, dict] = {}
    for name in models:
        folder = Path(parse_name(parse_source(name)[1]).name)
        if folder in after or not (folder / "run.json").is_file():
            continue
        run = Run(folder)
        config = run.config()
        command = model_record(folder)["command"] if (folder / "record.json").is_file() else None
        runs |= {Path(one["folder"]): one for one in history(models_of(config, folder), (*after, folder))}
        about = {"folder": str(folder), "command": command, "config": config, "wall_s": round(run.seconds(), 1)}
        runs[folder] = about
    return list(runs.values())


def models_of(config: dict, folder: str | Path) -> list[str]:
    """Names of the models that a run used: its teachers, tokenizer source, and initial weights.

    Raises UserError where the configuration in `folder` does not name them.
    """
    init_from, names = config.get("init_from") or [], [config.get(key) or "" for key in ("teacher", "tokenizer")]
    if not isinstance(init_from, list | tuple) or not all(isinstance(one, str) for one in (*init_from, *names)):
        raise UserError(f"{Path(folder) / 'run.json'} does not say what the run started from; take another copy of it")
    return [*(part for name in names for part in split_names(name)), *init_from]
