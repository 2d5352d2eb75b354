"""Measure models by name or at hand, and make the records of such measurements."""

from dataclasses import asdict
from pathlib import Path

from dlip import data as data_sets
from dlip.common import machine
from dlip.common.errors import UserError
from dlip.cost.count import summary
from dlip.cost.latency import compare_latency
from dlip.cost.memory import memory
from dlip.evaluation import attention_maps
from dlip.evaluation.bounds import bounds
from dlip.evaluation.evaluate import check_tasks, evaluate
from dlip.experiments.config import DataConfig, EvaluationConfig, HeldOutConfig
from dlip.experiments.history import made_elsewhere, model_record
from dlip.export.optimize import optimize
from dlip.export.runner_evaluate import int8_runner
from dlip.models.fast.precision import convert_precision, precision
from dlip.models.tasks import TASKS
from dlip.records.write import append, new_record, samples
from dlip.training.run_folder import weights_hash
from dlip.vlm import VLM


def held_out(data: str, flag_prefix: str = "--test-") -> str:
    """The default split to evaluate on: test, or val where there is no test.

    flag_prefix: start of the flags that name others. Raises UserError where there is neither.
    """
    splits = data_sets.splits(data)
    if split := next((split for split in ("test", "val") if split in splits), None):
        return split
    raise UserError(
        f"{data} has neither a test nor a val split to measure the model on, only {', '.join(splits)}; name one with "
        f"{flag_prefix}split, or other data with {flag_prefix}data"
    )


def measure(
    vlm: VLM,
    dataset,
    latency_repeats: int = HeldOutConfig.latency_repeats,
    progress: bool = True,
    teacher: VLM | None = None,
    **options,
) -> tuple[dict, dict]:
    """The model's metrics on `dataset` with "efficiency" among them, and its predictions ("items").

    On scenes with "attention" too. Where latency is measured, memory is as well. Attention and latency are compared
    with those of `teacher` where one is passed: latency is then measured in turns, and its "share" is the percentage of
    the teacher's. Models are moved to the accelerator where there is one. options: of `dlip.evaluate`.
    """
    for model in (vlm, teacher) if teacher else (vlm,):
        model.med.to(machine.device())
    metrics = evaluate(vlm, dataset, return_items=True, progress=progress, **options)
    items = metrics.pop("items")
    if dataset.has_scenes and attention_maps.measurable(vlm):
        metrics["attention"] = attention_maps.measure(
            vlm, dataset, teacher=teacher if teacher and attention_maps.measurable(teacher) else None
        )
    metrics["efficiency"] = summary(vlm.med)
    if latency_repeats:
        timed = "captioning" if "lm" in vlm.med.abilities else "vqa" if "vqa" in vlm.med.abilities else "retrieval"
        pair = {"teacher": teacher} if teacher and TASKS[timed].abilities[-1] in teacher.med.abilities else {}
        try:
            latency = compare_latency({**pair, "model": vlm}, timed, latency_repeats)
            share = {"share": 100 / latency["speedup"]["model"]} if pair else {}
            metrics["efficiency"]["latency"] = latency["models"]["model"] | share
            metrics["efficiency"]["memory"] = memory(vlm, timed)
        except UserError as reason:  # the model was not trained for the task, or has too few positions
            metrics["notes"]["latency"] = str(reason)
    return metrics, items


def open_verified(data: DataConfig) -> tuple:
    """A data set to evaluate on, by default its held-out split, and the number of faults skipped by split.

    Raises UserError where it cannot be read.
    """
    dataset = data_sets.open(data.name, data.split or held_out(data.name, "--"), data.limit, data.on_error)
    return dataset, {dataset.split: len(dataset.verify())}


def evaluate_model(
    config: EvaluationConfig, results: str | Path | None = None, progress: bool = True, optimized: bool = False
) -> dict:
    """Evaluate a model by name and return its metrics with "items"; with `results`, append its record there.

    optimized: as in `measure_model`; it has no record. Raises UserError where the model or data cannot be read, or,
    with `results`, the record beside the model.
    """
    if results:
        model_record(config.model)  # raises before the work is done
    vlm, metrics, items, dataset = measure_model(config, progress, optimized=optimized)
    if results:
        append(remeasured_record(config, vlm, metrics, items, dataset), results)
    return {**metrics, "items": items}


def measure_model(
    config: EvaluationConfig, progress: bool = True, teacher: VLM | None = None, optimized: bool = False
) -> tuple:
    """Load a model by name and measure it: the model in torch, its metrics, its predictions and the data.

    optimized: score what the fastest backends give; "optimized" lists every candidate of `optimize`, the fastest at one
    caption first. With it or in int8 there is no attention, latency or memory. teacher: as in `measure`. Raises
    UserError as `evaluate_model` and `optimize` do.
    """
    check_tasks(config.tasks)
    vlm, how = VLM.load(config.model), config.measure
    dataset, skipped = open_verified(config.data)
    known = {"bounds": bounds(dataset, config.tasks, how.generate_limit)} if config.bounds else {}
    options = {
        "tasks": config.tasks,
        "k": how.candidates,
        "rerank": config.rerank,
        "num_beams": config.beams,
        "generate_limit": how.generate_limit,
        "progress": progress,
    }
    if optimized:
        fastest, candidates = optimize(vlm)
        metrics = evaluate(fastest, dataset, return_items=True, **options)
        metrics["optimized"] = [asdict(candidate) for candidate in candidates]
        items = metrics.pop("items")
        metrics["notes"]["latency"] = "measured in torch only"
    elif config.precision == "int8":
        with int8_runner(config.model) as (runner, mb):
            metrics = evaluate(runner, dataset, return_items=True, **options)
            metrics["efficiency"] = summary(vlm.med) | {"weights_mb": mb}
        items = metrics.pop("items")
        metrics["notes"]["latency"] = "measured in torch only"
    else:
        for med in vlm.med.members:
            convert_precision(med, config.precision)
        metrics, items = measure(vlm, dataset, how.latency_repeats, teacher=teacher, **options)
    note_skipped(metrics, skipped)
    return vlm, metrics | known, items, dataset


def remeasured_record(config: EvaluationConfig, vlm: VLM, metrics: dict, items: dict, dataset) -> dict:
    """The record of a model that was evaluated; its "history" tells how the model was made.

    In int8 it has no curves of training, which are those in full precision, and a teacher is "quantized". metrics,
    items: of `measure`. Raises UserError as `model_record` does.
    """
    first = model_record(config.model) or made_elsewhere(config.model, vlm)
    about = {key: first[key] for key in ("name", "role", "config", "seed", "train_images", "losses", "wall_s")}
    lowered = "int8" if config.precision == "int8" else precision(vlm.med)
    about["name"] = ", ".join([first["name"], *config.differences(lowered)])
    about |= {"device": str(vlm.device), "samples": samples(items, dataset), "evaluations": first.get("evaluations")}
    if config.precision == "int8":
        about |= {"losses": {}, "evaluations": None}
        about["role"] = "quantized" if about["role"] == "teacher" else about["role"]
    record = new_record(command=config.command(), metrics=metrics, items=items, **about)
    record |= {"evaluation": config.to_dict(), "inputs": {"model": weights_hash(vlm), "test": dataset.fingerprint()}}
    made = {"folder": config.model} | {key: first[key] for key in ("command", "config", "wall_s")}
    return record | {"history": first.get("history", []) + [made] * ("evaluation" not in first)}


def note_skipped(metrics: dict, faults: dict[str, int]) -> None:
    """Add a note such as `faults skipped: 2 of train, 1 of val` to metrics. faults: split -> number of faults."""
    if counts := [f"{count} of {split}" for split, count in faults.items() if count]:
        metrics["notes"]["data"] = f"faults skipped: {', '.join(counts)}"
