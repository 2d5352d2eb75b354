"""A record made again by its own command, and how far the new figures are from the old."""

import shlex
from pathlib import Path

from dlip import records
from dlip.checkpoints.init_from import parse_source
from dlip.checkpoints.load import built_in_models, split_size
from dlip.common.errors import UserError

PLACES = ("--out", "--results", "--json")
"""Options that say where things go, and nothing about what is learnt."""
FIGURES = ("tr1", "ir1", "cider", "vqa")


def chosen(path: str | Path, name: str | None = None, seed: int | None = None) -> dict:
    """The latest record of a file or folder, of this name and seed where they are given.

    Raises UserError where there is none, or where its command neither trains nor evaluates.
    """
    found = [r for r in records.read(path) if name in (None, r["name"]) and seed in (None, r["seed"])]
    if not found:
        asked = " and ".join(f"{what} {value}" for what, value in (("name", name), ("seed", seed)) if value is not None)
        raise UserError(f"{path} has no record of {asked or 'a run'}; see its names with pandas or in the app")
    try:
        words = shlex.split(found[-1]["command"])
    except ValueError:  # of quotes without an end
        words = []
    if words[:1] != ["dlip"] or words[1:2] not in (["train"], ["distill"], ["evaluate"]):
        raise UserError(
            f"the record {found[-1]['name']} was not made by dlip train, distill or evaluate; choose another"
        )
    return found[-1]


def command(record: dict, folder: str | Path, results: str | Path) -> list[str]:
    """The words of its command, behind `dlip`, with other places for what it makes, which is called as it was; a cache
    is this machine's own."""
    words, kept = iter(shlex.split(record["command"])[1:]), []
    for word in words:
        if word in PLACES:
            next(words, None)
        elif not word.startswith(tuple(f"{option}=" for option in PLACES)):
            kept.append(word)
    if kept[0] != "evaluate":
        if not any(word.partition("=")[0] == "--name" for word in kept):  # else it would be called as the folder is
            kept.append(f"--name={record['name']}")
        if any(word.partition("=")[0] == "--cache" for word in kept):  # else it would be where it was
            kept.append("--cache")
        kept += ["--out", str(folder)]
    return [*kept, "--results", str(results)]


def check_history(record: dict) -> None:
    """Raises UserError where a model that the record's command names is not there, with the command that made it."""
    words = shlex.split(record["command"])
    named = {str(Path(split_size(name)[0])) for word in words for name in (parse_source(word)[1], *word.split("+"))}
    for before in record.get("history", []):
        folder = before["folder"]
        if folder in named and folder not in built_in_models() and not Path(folder).is_dir():
            made = f"make it first: {before['command']}" if before["command"] else "its own command was not kept"
            raise UserError(f"{record['name']} begins with {folder}, which is not there; {made}")


def circumstances(before: dict, after: dict) -> dict[str, tuple]:
    """Of what last digits depend on, that which differs: its name -> then and now."""
    then, now = (
        {what: str(sha)[:12] for what, sha in (record.get("inputs") or {}).items()}
        | {what: record.get(what) for what in ("device", "threads", "processes", "torch", "releases", "code")}
        | {what: (record.get("machine") or {}).get(what) for what in ("cpu", "instructions", "gpu")}
        for record in (before, after)
    )
    known = (what for what in then if then[what] is not None and what in now)  # older records say less
    return {what: (then[what], now[what]) for what in known if then[what] != now[what]}


def difference(before: dict, after: dict) -> dict:
    """{"before", "after", "difference"}: figure -> value, where both records have it; and whether "losses" are equal,
    to the last digit, which they are by the same versions on the same processor with as many threads; null where the
    command did not train."""
    rows = records.frame([before, after])[list(FIGURES)].dropna(axis=1)
    old, new = (rows.iloc[i].to_dict() for i in range(2))
    return {
        "before": old, "after": new, "difference": {name: new[name] - old[name] for name in old},
        "losses": None if before["command"].startswith("dlip evaluate") else before["losses"] == after["losses"],
    }  # fmt: skip
