"""The runs that a model comes from: where its weights began, who taught it, whose words it reads."""

from collections.abc import Iterable
from pathlib import Path

from dlip.checkpoints.init_from import parse_source
from dlip.checkpoints.load import model_folder, split_names, split_size
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.records.schema import is_record, upgrade
from dlip.training.run_folder import Run


def made(model: str) -> dict:
    """The record of the run that a model comes from. Raises UserError where none lies beside it."""
    path = model_folder(model) / "record.json"
    if not path.exists():
        raise UserError(f"no record of a run lies beside {model}, to tell how it was made; leave --results out")
    if not is_record(record := upgrade(read_json(path))) or "failed" in record:
        raise UserError(f"{path} is no record of a run; take another copy of the folder")
    return record


def history(models: Iterable[str], after: tuple[Path, ...] = ()) -> list[dict]:
    """The runs among models by name and those that they come from, the earliest first: {"folder", "command" (null where
    none was kept), "config", "wall_s" (of training)}. after: folders of runs that were given them, one of which may
    have taken the place of one."""
    found: dict[Path, dict] = {}
    for name in models:
        folder = Path(split_size(parse_source(name)[1])[0])
        if folder in after or not (folder / "run.json").is_file():
            continue
        run = Run(folder)
        config, kept = run.config(), folder / "record.json"
        command = made(folder)["command"] if kept.is_file() else None
        before = {"folder": str(folder), "command": command, "config": config, "wall_s": round(run.seconds(), 1)}
        found |= {Path(one["folder"]): one for one in history(given(config, folder), (*after, folder))}
        found[folder] = before
    return list(found.values())


def given(about: dict, folder: str | Path) -> list[str]:
    """Names of the models that the run of a folder was given: its teacher or teachers, whose words it reads, and those
    that it began at. Raises UserError where `about` does not tell."""
    start, single = about.get("start") or [], [about.get(what) or "" for what in ("teacher", "tokenizer")]
    if not isinstance(start, list) or not all(isinstance(one, str) for one in (*start, *single)):
        raise UserError(f"{Path(folder) / 'run.json'} does not say what the run began at; take another copy of it")
    return [*(part for name in single for part in split_names(name)), *start]
