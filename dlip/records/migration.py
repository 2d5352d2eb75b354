"""Upgrade records of schemas 1 and 2, which are read but no longer written, and older ones of schema 3."""

import re
import shlex
from contextlib import suppress
from itertools import pairwise

from dlip.records.schema import config_hash

NEW_OPTIONS = {
    "model": {"image_backbone": "", "no_repeat_ngram_size": 0},
    "train": {"optimizer": "adamw", "backbone_lr": 0.0, "backbone_stages": 0, "cache_features": 0, "freeze": []},
    "evaluation": {"generate_limit": None},
}
"""Options of experiments that older records lack, by part, with the values that their runs had."""
REMOVED_OPTIONS = {"train": {"itm_ramp": 0}}
"""Options that no longer exist, by part, with the values at which they did nothing; a record keeps other values."""


def upgrade(record: dict) -> dict:
    """A record or failed run of schema 1 to 3 as schema 3 has it today; any other is returned unchanged."""
    if record.get("schema") == 1:
        record = _from_1(record)
    if record.get("schema") == 2:
        record = _from_2(record)
    return _with_present_options(record) if record.get("schema") == 3 else record


def _with_present_options(record: dict) -> dict:
    """The record with `NEW_OPTIONS` and without `REMOVED_OPTIONS`; if it changes, so does its "config_hash"."""
    if isinstance(evaluation := record.get("evaluation"), dict):
        record = record | {"evaluation": evaluation | {"rerank": evaluation.get("rerank", "itm")}}
    with suppress(AttributeError, KeyError, TypeError):  # damaged
        config = dict(record["config"])
        for part in NEW_OPTIONS.keys() & config.keys():
            removed = REMOVED_OPTIONS.get(part, {}).items()
            options = (NEW_OPTIONS[part] | config[part]).items()
            config[part] = {name: value for name, value in options if (name, value) not in removed}
        if config != record["config"]:
            return record | {"config": config, "config_hash": config_hash(config)}
    return record


def _from_2(record: dict) -> dict:
    """Schema 2 to 3: "mean_by_type" of VQA is added, and "facts" of captions gets the form that has recall.

    Old "facts" are precisions. Their recall was not measured, so that it, F1 and "facts_f1" are unknown.
    """
    record = record | {"schema": 3}
    with suppress(KeyError, TypeError):  # none, or damaged
        evaluation = record["evaluation"]
        measure = NEW_OPTIONS["evaluation"] | evaluation["measure"]
        record["evaluation"] = evaluation | {"measure": measure, "bounds": False}
    metrics = record.get("metrics")
    if not isinstance(metrics, dict):
        return record
    metrics = dict(metrics)
    with suppress(AttributeError, KeyError, TypeError, ZeroDivisionError):  # not measured, or damaged
        by_type = metrics["vqa"]["by_type"]
        metrics["vqa"] = {"mean_by_type": sum(by_type.values()) / len(by_type)} | metrics["vqa"]
    with suppress(AttributeError, KeyError, TypeError):
        facts = {kind.removesuffix("s"): {"precision": value, "recall": None, "f1": None}
                 for kind, value in metrics["captioning"]["facts"].items()}  # fmt: skip
        metrics["captioning"] = metrics["captioning"] | {"facts_f1": None, "facts": facts}
    return record | {"metrics": metrics}


def _from_1(record: dict) -> dict:
    """Schema 1 to 2.

    Renamed keys: "train_pictures" -> "train_images", the task "caption" -> "captioning" in "metrics" and "notes",
    "pictures" -> "images" in the metrics "attention", in "inputs" and in the names of rows of the grid `data`; "words"
    -> "vocabulary" in "inputs".
    "config" becomes an experiment, here and in "history" (`upgrade_config`); "evaluation" is added to records of
    `dlip evaluate`; "config_hash" is computed again.
    """
    record = _renamed(record, {"train_pictures": "train_images"}) | {"schema": 2}
    if isinstance(name := record.get("name"), str):
        record["name"] = re.sub(r"^(data: [\d,]+) pictures", r"\1 images", name)
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
    """The record with its configurations as experiments, as far as it is not damaged."""
    config, command, history = (record.get(key) for key in ("config", "command", "history"))
    if not isinstance(config, dict) or "train" not in config or not isinstance(command, str):
        return record
    history = history if isinstance(history, list) and all(isinstance(run, dict) for run in history) else []
    name, role = record.get("name"), record.get("role")
    try:
        if command.startswith("dlip evaluate"):
            record["evaluation"] = _evaluation(_options(command))
            command = history[-1].get("command") if history else None
            record["config"] = upgrade_config(config, command, name, role)
        else:
            record["config"] = upgrade_config(config, command, name, role, record.get("split"))
        record["history"] = [run | {"config": upgrade_config(run["config"], run.get("command"))} for run in history]
    except (AttributeError, KeyError, TypeError, ValueError):
        return record
    record["history"] = [run | {"command": _with_new_flags(run.get("command"))} for run in record["history"]]
    return record | {"command": _with_new_flags(record["command"]), "config_hash": config_hash(record["config"])}


def _with_new_flags(command: str | None) -> str | None:
    """A command line of schema 1 with the present flags."""
    if command is None:
        return None
    command = re.sub(r"--start(?![-\w])", "--init-from", command)
    if command.startswith("dlip train "):  # without a teacher they had no effect
        command = re.sub(r" --(fixed-teacher-space|center-states)\b", "", command)
    return command


def upgrade_config(
    config: dict, command: str | None, name: str | None = None, role: str | None = None, split: str | None = None
) -> dict:
    """The "config" of schema 1 as the fields of `dlip.experiments.config.ExperimentConfig`, with "model".

    command: the run's command line, for options that "config" lacks. split: of the test data. Raises KeyError,
    TypeError or ValueError if they are damaged.
    """
    if "size" not in config or "init_from" in config:
        return config
    options = _options(command or "")
    old, role = config["data"], role or ("distilled" if config["teacher"] else "undistilled")
    split, limit = split or options.get("test_split"), options.get("limit")
    return {
        "model": config["model"],
        **{key: config[key] for key in ("size", "teacher", "tokenizer")},
        "init_from": config.get("start") or [],
        "name": name,
        "role": role,
        "data": {
            "name": options.get("data", old["name"]), "split": old["split"], "limit": limit and int(limit),
            "on_error": old.get("on_error", "fatal"),
        },
        "evaluation": {
            "data": options.get("test_data"), "split": split,
            "limit": int(options["test_limit"]) if "test_limit" in options else None, **_measure(options),
        },
        "train": {"epochs": None} | {key: value for key, value in config["train"].items() if key != "shard_teacher"},
    }  # fmt: skip


def _evaluation(options: dict[str, str]) -> dict:
    """The options of `dlip evaluate` as the fields of `dlip.experiments.config.EvaluationConfig`."""
    limit = options.get("limit")
    data = {"name": options.get("data", "scenes"), "split": options.get("split"), "limit": limit and int(limit)}
    tasks = options.get("tasks", "retrieval,captioning,vqa").split(",")
    return {
        "model": options["model"], "tasks": ["captioning" if task == "caption" else task for task in tasks],
        "answers": [], "beams": int(options.get("beams", 3)),
        "data": data | {"on_error": options.get("on_error", "fatal")},
        "measure": _measure(options),
    }  # fmt: skip


def _measure(options: dict[str, str]) -> dict:
    candidates = options.get("candidates")
    return {"candidates": candidates and int(candidates), "latency_repeats": int(options.get("latency_repeats", 20))}


def _options(command: str) -> dict[str, str]:
    """Option -> value of a command line in which no value begins with "--". Raises ValueError as `shlex.split`."""
    words = [part for word in shlex.split(command) for part in (word.split("=", 1) if word[:2] == "--" else [word])]
    return {word[2:].replace("-", "_"): value for word, value in pairwise([*words, "--"]) if word.startswith("--")}


def _renamed(table: dict, names: dict[str, str]) -> dict:
    return {names.get(key, key): value for key, value in table.items()}
