"""Repeat the run of a record, and compare the new figures with the old."""

from pathlib import Path

from dlip import records
from dlip.checkpoints.init_from import parse_source
from dlip.checkpoints.load import built_in_models, parse_name, split_names
from dlip.common.errors import UserError
from dlip.common.text import one_line
from dlip.experiments.config import EvaluationConfig, ExperimentConfig
from dlip.experiments.history import models_of
from dlip.experiments.measure import measure_model, remeasured_record
from dlip.experiments.run import run, same_experiment


def find_record(path: str | Path, name: str | None = None, seed: int | None = None) -> dict:
    """The latest record of a file or folder, with this name and seed where they are passed.

    Raises UserError where there is none.
    """
    found = records.read(path)
    matching = [r for r in found if name in (None, r["name"]) and seed in (None, r["seed"])]
    if matching:
        return sorted(matching, key=lambda r: r["created"])[-1]  # of equal times the last line
    query = " and ".join(f"{key} {value}" for key, value in (("name", name), ("seed", seed)) if value is not None)
    there = ", ".join(dict.fromkeys(f"{r['name']} (seed {r['seed']})" for r in found)) or "none"
    raise UserError(f"{path} has no record of {query or 'a run'}; choose one of: {there}")


def repeat(record: dict, folder: str | Path, results: str | Path, progress: bool = True) -> dict:
    """Repeat the training or evaluation of a record, and return the new record, appended to `results`.

    Raises UserError if the record has no experiment, a model that it used is missing, or `folder` holds the record's
    own run, another one, or one whose record is in `results`.
    """
    if evaluation := record.get("evaluation"):
        config = EvaluationConfig.from_dict(evaluation)
        check_models(record, [config.model])
        repeated = remeasured_record(config, *measure_model(config, progress))
        records.append(repeated, results)
        return repeated
    experiment = ExperimentConfig.from_dict(record["config"])
    experiment = experiment.replace(name=record["name"])
    check_models(record, models_of(experiment.to_dict(), folder))
    existing = records.record_of_run(Path(folder))
    own = existing.get("id") == record["id"]
    if existing and (own or not same_experiment(existing, experiment) or records.contains(results, existing)):
        raise UserError(f"{folder} holds a finished run, which would not be trained again; choose another --out")
    return run(experiment, folder, results, progress=progress)


def check_models(record: dict, names: list[str]) -> None:
    """Raise UserError where a model that the record's run used is missing, with the command that made it."""
    used = {str(Path(parse_name(part).name)) for name in names for part in split_names(parse_source(name)[1])}
    for before in record.get("history", []):
        folder = before["folder"]
        if folder in used and folder not in built_in_models() and not Path(folder).is_dir():
            how = f"make it first: {before['command']}" if before["command"] else "its command was not kept"
            raise UserError(f"{record['name']} starts from {folder}, which does not exist; {how}")


def circumstances(before: dict, after: dict) -> dict[str, tuple]:
    """Differences between two records in what can change last digits: name -> values then and now."""
    then, now = (
        {what: str(sha)[:12] for what, sha in (record.get("inputs") or {}).items()}
        | {what: record.get(what) for what in ("device", "threads", "processes", "torch", "releases", "code")}
        | {what: (record.get("machine") or {}).get(what) for what in ("cpu", "instructions", "gpu")}
        for record in (before, after)
    )
    known = (what for what in then if then[what] is not None and what in now)  # older records have fewer
    return {what: (then[what], now[what]) for what in known if then[what] != now[what]}


def difference(before: dict, after: dict) -> dict:
    """{"before", "after", "difference"}: score -> value, where both records have it; and "losses".

    "losses" is whether all logged losses are equal to the last digit, as they are on the same processor with the same
    versions and number of threads; null where the record is of an evaluation alone.
    """
    rows = records.frame([before, after])[list(records.TABLE_SCORES)].dropna(axis=1)
    old, new = (rows.iloc[i].to_dict() for i in range(2))
    return {
        "before": old,
        "after": new,
        "difference": {name: new[name] - old[name] for name in old},
        "losses": None if before.get("evaluation") else before["losses"] == after["losses"],
    }


def text(compared: dict, changed: dict[str, tuple]) -> str:
    """The results of `difference` and `circumstances` for a terminal."""
    lines = [
        f"{name:8} {value:8.2f} then {compared['after'][name]:8.2f} now {compared['difference'][name]:+8.2f}"
        for name, value in compared["before"].items()
    ]
    if compared["losses"] is not None:
        lines.append(f"losses {'' if compared['losses'] else 'not '}the same to the last digit")
    return "\n".join(lines + [one_line(f"{what}: {then} then, {now} now") for what, (then, now) in changed.items()])
