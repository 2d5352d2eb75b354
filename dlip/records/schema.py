"""Keys of a record: where its figures are, which keys are required, how old records are upgraded.

`dlip/records/__init__.py` documents what each key and column means.
"""

import hashlib
import json
import re
import shlex
from itertools import pairwise

from dlip.records.outcomes import outcomes

SCHEMA = 2
ROLES = ("teacher", "undistilled", "distilled")
SCORES = {
    **{f"{recall}{k}": ("metrics", "retrieval", f"{recall}@{k}") for recall in ("tr", "ir") for k in (1, 5, 10)},
    **{name: ("metrics", "captioning", name) for name in ("bleu4", "meteor", "rougeL", "cider", "spice")},
    "vqa": ("metrics", "vqa", "accuracy"),
    **{name: ("metrics", "attention", "fusion", name) for name in ("pointing", "mass")},
    **{f"{name}_decoder": ("metrics", "attention", "decoder", name) for name in ("pointing", "mass")},
}
"""Column -> path in a record, of figures of which more is better."""
COSTS = {
    "params_m": ("efficiency", "params_m"),
    "flops_g": ("efficiency", "flops_g"),
    "latency_ms": ("efficiency", "latency", "p50_ms"),
    "latency_p95_ms": ("efficiency", "latency", "p95_ms"),
    "latency_share": ("efficiency", "latency", "share"),
    "params_m_paper": ("efficiency", "params_m_paper"),
    "macs_g_paper": ("efficiency", "macs_g_paper"),
}
"""Column -> path in a record, of figures of which less is better."""
OTHER_FIGURES = {
    **{name: ("metrics", "attention", "fusion", name) for name in ("pointing_other", "mass_other", "divergence")},
    **{f"{n}_decoder": ("metrics", "attention", "decoder", n) for n in ("pointing_other", "mass_other", "divergence")},
}
"""Column -> path in a record, of figures that are neither a score nor a cost."""
FIGURES = [*SCORES, *COSTS, *OTHER_FIGURES]
HEADLINE_SCORES = {"tr1": "TR@1", "ir1": "IR@1", "cider": "CIDEr", "vqa": "VQA"}
"""Column of each headline score -> its printed name."""

REQUIRED_KEYS = {
    **dict.fromkeys(("id", "created", "name", "role", "data", "split", "command", "config_hash"), str),
    **dict.fromkeys(("config", "losses", "metrics", "efficiency"), dict), "seed": int, "samples": list,
    "train_images": int, "wall_s": (int, float),
}  # fmt: skip
"""Key of a record -> its type."""
FAILED_RUN_KEYS = {"failed": str, "created": str, "name": str, "role": str, "seed": int, "ablation": dict}
"""Key of a failed run's line -> its type."""
MAX_THREADS = 4096
"""Limit on "threads": `dlip rerun` starts as many."""


def upgrade(record: dict) -> dict:
    """A record or failed run of schema 1 converted to schema 2; a record of any other schema is returned unchanged.

    Renamed keys: "train_pictures" -> "train_images", the task "caption" -> "captioning" in "metrics" and "notes",
    "pictures" -> "images" in the metrics "attention" and in "inputs", there also "words" -> "vocabulary".
    "config" becomes an experiment, here and in "history" (`upgrade_config`); "evaluation" tells what `dlip evaluate`
    did; "config_hash" is computed anew.
    """
    if record.get("schema") != 1:
        return record
    record = _renamed(record, {"train_pictures": "train_images"}) | {"schema": 2}
    if isinstance(metrics := record.get("metrics"), dict):
        record["metrics"] = metrics = _renamed(metrics, {"caption": "captioning"})
        if isinstance(attention := metrics.get("attention"), dict):
            metrics["attention"] = _renamed(attention, {"pictures": "images"})
    if isinstance(inputs := record.get("inputs"), dict):
        record["inputs"] = _renamed(inputs, {"pictures": "images", "words": "vocabulary"})
    if isinstance(notes := record.get("notes"), dict):
        record["notes"] = {re.sub(r"^caption\b", "captioning", name): note for name, note in notes.items()}
    return _with_experiment(record)


def _with_experiment(record: dict) -> dict:
    """A record of schema 1 whose configurations are experiments; unchanged where it is damaged."""
    config, command, history = (record.get(key) for key in ("config", "command", "history"))
    if not isinstance(config, dict) or "train" not in config or not isinstance(command, str):
        return record
    history = history if isinstance(history, list) and all(isinstance(one, dict) for one in history) else []
    name, role = record.get("name"), record.get("role")
    try:
        if command.startswith("dlip evaluate"):
            record["evaluation"] = _evaluation(_old_options(command))
            command = history[-1].get("command") if history else None
            record["config"] = upgrade_config(config, command, name, role)
        else:
            record["config"] = upgrade_config(config, command, name, role, record.get("split"))
        record["history"] = [
            one | {"config": upgrade_config(one["config"], one.get("command"))} for one in history
        ]  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError):
        return record
    record["history"] = [one | {"command": _respelled(one.get("command"))} for one in record["history"]]
    return record | {"command": _respelled(record["command"]), "config_hash": config_hash(record["config"])}


def _respelled(command: str | None) -> str | None:
    """A command line of schema 1 with today's flags."""
    if command is None:
        return None
    command = re.sub(r"--start\b", "--init-from", command)
    if command.startswith("dlip train "):  # where they meant nothing
        command = re.sub(r" --(fixed-teacher-space|center-states)\b", "", command)
    return command


def upgrade_config(
    config: dict, command: str | None, name: str | None = None, role: str | None = None, split: str | None = None
) -> dict:
    """The "config" of a record or run folder of schema 1 as `dlip.experiments.config.ExperimentConfig` and "model".

    command: the command line of the run, whose options told what "config" did not hold. split: what it was measured on.
    Raises KeyError, TypeError or ValueError where they are damaged.
    """
    if "size" not in config or "init_from" in config:
        return config
    typed = _old_options(command or "")
    old, role = config["data"], role or ("distilled" if config["teacher"] else "undistilled")
    split, limit = split or typed.get("test_split"), typed.get("limit")
    return {
        "model": config["model"],
        **{key: config[key] for key in ("size", "teacher", "tokenizer")},
        "init_from": config.get("start") or [],
        "name": name,
        "role": role,
        "data": {
            "name": typed.get("data", old["name"]), "split": old["split"], "limit": limit and int(limit),
            "on_error": old.get("on_error", "fatal"),
        },
        "evaluation": {
            "data": typed.get("test_data"), "split": split,
            "limit": int(typed["test_limit"]) if "test_limit" in typed else None, **_measure(typed),
        },
        "train": {"epochs": None} | {key: value for key, value in config["train"].items() if key != "shard_teacher"},
    }  # fmt: skip


def _evaluation(typed: dict[str, str]) -> dict:
    """The options of `dlip evaluate` as `dlip.experiments.config.EvaluationConfig`."""
    limit = typed.get("limit")
    data = {"name": typed.get("data", "scenes"), "split": typed.get("split"), "limit": limit and int(limit)}
    tasks = typed.get("tasks", "retrieval,captioning,vqa").split(",")
    return {
        "model": typed["model"], "tasks": ["captioning" if task == "caption" else task for task in tasks],
        "answers": [], "beams": int(typed.get("beams", 3)), "data": data | {"on_error": typed.get("on_error", "fatal")},
        "measure": _measure(typed),
    }  # fmt: skip


def _measure(typed: dict[str, str]) -> dict:
    candidates = typed.get("candidates")
    return {"candidates": candidates and int(candidates), "latency_repeats": int(typed.get("latency_repeats", 20))}


def _old_options(command: str) -> dict[str, str]:
    """Option -> value of a command line of schema 1, where no value begins with --. Raises ValueError as shlex."""
    words = [part for word in shlex.split(command) for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    return {
        word[2:].replace("-", "_"): value for word, value in pairwise([*words, "--"]) if word.startswith("--")
    }  # fmt: skip


def config_hash(config: dict) -> str:
    """SHA-256 of the configuration in canonical JSON, without its name and seeds (at its top and in "train").

    Runs that differ in their seed alone share it, in whatever order their keys stand; other data have another.
    """
    parts = {key: value for key, value in config.items() if key not in ("seed", "name")}
    if "train" in parts:
        parts["train"] = {key: value for key, value in parts["train"].items() if key != "seed"}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _renamed(table: dict, names: dict[str, str]) -> dict:
    return {names.get(key, key): value for key, value in table.items()}


def value_at(record: dict, *path: str):
    """The value at a path of keys; None if it is missing. Raises AttributeError if a key leads into a non-table."""
    value = record
    for key in path:
        value = (value or {}).get(key)
    return value


def figures(record: dict) -> dict:
    """Column -> number or None, with vqa.<type> and w.<term>. Raises AttributeError as `value_at`."""
    row = {column: value_at(record, *path) for column, path in (SCORES | COSTS | OTHER_FIGURES).items()}
    row |= {f"vqa.{kind}": value for kind, value in (value_at(record, "metrics", "vqa", "by_type") or {}).items()}
    return row | {f"w.{term}": value for term, value in (value_at(record, "config", "train", "weights") or {}).items()}


def model_size(model: dict | None) -> str:
    """A model configuration in a few words: `image 80 x 4, text 80 x 2, fusion in 2` (width x layers)."""
    if not model:
        return ""
    image, text = (f"{part} {model[f'{part}_width']} x {model[f'{part}_layers']}" for part in ("image", "text"))
    return f"{image}, {text}, fusion in {len(model['fusion_layers'])}"


def is_record(line: dict) -> bool:
    """Whether a line has every required key of a record, or of a failed run, with a value of the right type."""
    failed = "failed" in line
    required = FAILED_RUN_KEYS if failed else REQUIRED_KEYS
    complete = all(isinstance(line.get(key), kind) for key, kind in required.items())
    if failed or not complete:
        return complete
    try:
        "".join(value for value in line.values() if isinstance(value, str)).encode()  # fails on lone surrogates
        model_size(line["config"].get("model"))
        values = figures(line).values()
        outcomes(line)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    threads, history = line.get("threads", 1), line.get("history", [])
    return (
        line["role"] in ROLES
        and type(threads) is int
        and 0 < threads <= MAX_THREADS
        and all(isinstance(line.get(key), dict | None) for key in ("machine", "inputs", "releases"))
        and isinstance(history, list)
        and all(isinstance(run, dict) and _has_origin(run) for run in history)
        and all(value is None or (isinstance(value, int | float) and type(value) is not bool) for value in values)
    )


def _has_origin(run: dict) -> bool:
    """Whether a run of a record's history names its folder and its command."""
    return isinstance(run.get("folder"), str) and isinstance(run.get("command"), str | None)
