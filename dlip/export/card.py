"""The model card of an export: what the model is, how to use it, how it was trained, and its results.

Results and training come from the model's record; what it does not hold is skipped. The hub reads the metadata.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader

from dlip import __version__
from dlip.checkpoints.load import is_hub_id, parse_name, split_names
from dlip.models.med import Med
from dlip.vlm import VLM

TITLES = {"retrieval": "image-text retrieval", "captioning": "image captioning", "vqa": "visual question answering"}
PIPELINES = {"captioning": "image-text-to-text", "vqa": "visual-question-answering"}
ROLES = {
    "distilled": "a student distilled from a heavier teacher",
    "undistilled": "a model trained without a teacher",
    "teacher": "a model trained without a teacher",
    "quantized": "a teacher in int8",
}
METRICS = {  # (task, metric) -> title, unit
    ("retrieval", "tr@1"): ("TR@1", "%"), ("retrieval", "tr@5"): ("TR@5", "%"), ("retrieval", "ir@1"): ("IR@1", "%"),
    ("retrieval", "ir@5"): ("IR@5", "%"), ("captioning", "bleu4"): ("BLEU-4", ""),
    ("captioning", "meteor"): ("METEOR", ""), ("captioning", "rougeL"): ("ROUGE-L", ""),
    ("captioning", "cider"): ("CIDEr", ""), ("captioning", "spice"): ("SPICE", ""),
    ("captioning", "facts_f1"): ("facts F1", "%"), ("vqa", "accuracy"): ("VQA soft accuracy", "%"),
    ("vqa", "mean_by_type"): ("VQA soft accuracy, mean over types", "%"),
}  # fmt: skip


def card(
    template: str, vlm: VLM, record: dict, library: str, tasks: Iterable[str], license: str | None, **values
) -> str:
    """Markdown with the hub's metadata. record: may be empty; values: of the template."""
    role = ROLES.get(record.get("role"), "a BLIP-style model")
    return metadata(vlm, record, library, tasks, license) + render(
        template, record, name=model_name(vlm, record), role=role, **values
    )


def transformers_card(task: str, vlm: VLM, med: Med, record: dict, stock_class: str, license: str | None) -> str:
    """The card of one task's model in stock transformers. med: the model that does the task."""
    config = med.config
    prompt = med.tokenizer.decode([list(config.prompt_ids)])[0] if config.prompt_ids else ""
    return card(
        "transformers.md", vlm, record, "transformers", [task], license, task=task, title=TITLES[task], config=config,
        prompt=prompt, stock_class=stock_class,
    )  # fmt: skip


def metadata(vlm: VLM, record: dict, library: str, tasks: Iterable[str], license: str | None) -> str:
    """The header that the hub reads: library, license, teacher and data on the hub, results of the tasks."""
    config, name = record.get("config") or {}, model_name(vlm, record)
    results = [
        EvalResult(
            task_type=PIPELINES.get(task, task), dataset_type=record["data"], dataset_name=record["data"],
            metric_type=metric, metric_value=round(value, 2), dataset_split=record["split"],
        )
        for (task, metric), value in measured(record).items() if task in tasks
    ]  # fmt: skip
    teachers = [parse_name(one).name for one in split_names(config.get("teacher") or "")]
    datasets = re.findall(r"hub:([^+?]+)", (config.get("data") or {}).get("name", ""))
    pipelines = [PIPELINES[task] for task in tasks if task in PIPELINES]
    distilled = ["distillation"] if record.get("role") == "distilled" else []
    data = ModelCardData(
        library_name=library, license=license, base_model=list(filter(is_hub_id, teachers)) or None,
        datasets=list(filter(is_hub_id, datasets)) or None, tags=["blip", "vision-language", *distilled],
        pipeline_tag=pipelines[0] if pipelines else None, model_name=name if results else None,
        eval_results=results or None,
    )  # fmt: skip
    return f"---\n{data.to_yaml()}\n---\n\n"


def model_name(vlm: VLM, record: dict) -> str:
    return record.get("name") or "+".join(Path(name).name for name in split_names(vlm.name))


def render(template: str, record: dict, **values) -> str:
    environment = Environment(loader=PackageLoader("dlip.export", "cards"), keep_trailing_newline=True)
    figures = [(METRICS[key][0], f"{value:.1f}{METRICS[key][1]}") for key, value in measured(record).items()]
    text = environment.get_template(template).render(
        version=__version__, record=record, figures=figures, training=training(record),
        earlier=runs(record)[:-1], **values,
    )  # fmt: skip
    return text.rstrip() + "\n"


def measured(record: dict) -> dict[tuple[str, str], float]:
    """The metrics of `METRICS` that a record has."""
    metrics = record.get("metrics") or {}
    values = {(task, metric): (metrics.get(task) or {}).get(metric) for task, metric in METRICS}
    return {key: value for key, value in values.items() if value is not None}


def runs(record: dict) -> list[dict]:
    """The runs that made the model, the earliest first and its own last. record: may be empty."""
    own = [] if "evaluation" in record else [record]
    return [*record.get("history", []), *own]


def training(record: dict) -> list[tuple[str, str]]:
    """Rows of the table of how the model was trained; none if the record does not say."""
    config = record.get("config") or {}
    train, data = config.get("train") or {}, config.get("data") or {}
    images = record.get("train_images")
    command = runs(record)[-1].get("command")
    rows = {
        "teacher": config.get("teacher"),
        "initialized from": ", ".join(config.get("init_from") or []),
        "data": f"{data['name']} {data['split']}" + (f", {images:,} images" if images else "") if data else None,
        "losses": ", ".join(f"{term} x {weight:g}" for term, weight in (train.get("weights") or {}).items() if weight),
        "steps": f"{train['steps']:,} of {train['batch_size']} images" if train else None,
        "seed": train.get("seed"),
        "training time": f"{record['wall_s']:,.0f} s on {record.get('device')}" if record.get("wall_s") else None,
        "command": f"`{command}`" if command else None,
    }
    return [(title, value) for title, value in rows.items() if value not in (None, "")] if config else []
