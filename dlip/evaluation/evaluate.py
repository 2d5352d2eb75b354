"""Evaluation of a model on retrieval, captioning and visual question answering."""

from collections.abc import Sequence
from pathlib import Path

from dlip.common import machine
from dlip.common.errors import MissingAbility, UserError, check_at_least
from dlip.data.sources import as_dataset
from dlip.data.transforms import as_list
from dlip.evaluation.tasks import captioning, retrieval, vqa
from dlip.evaluation.tasks.base import MetricUnavailable, Progress, subrange
from dlip.models.protocol import Measured
from dlip.models.tasks import TASKS, Reranker
from dlip.vlm import VLM

EVALUATORS = {"retrieval": retrieval.run, "captioning": captioning.run, "vqa": vqa.run}
"""Task -> function that predicts and scores."""


def evaluate(
    model: Measured | str | Path,
    data,
    split: str = "test",
    tasks: Sequence[str] = tuple(TASKS),
    *,
    k: int | None = None,
    rerank: Reranker = "itm",
    generate_limit: int | None = None,
    java: bool = True,
    num_beams: int = 3,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    return_items: bool = False,
    progress: Progress = True,
) -> dict:
    """Metrics of a model: {"model", "data", "split", "retrieval", "captioning", "vqa", "notes"}, percents as 0 to 100.

    A task or metric that could not be computed is None; "notes" has the reason under its name, or what limits a metric.

    model, data: a model and a data set, or their names; `split` applies to a name, and a model loaded by name is moved
    to the accelerator, if there is one. k: candidates that retrieval re-ranks. rerank: by "itm", or by the caption
    "decoder", which a model without ITM may have. generate_limit: number of images, the first ones that have such
    texts, that captions and answers are generated for; by default all. java: whether to run the Java programs that
    tokenize captions and compute METEOR and SPICE, which take many seconds to start. num_beams: of captions and
    answers. max_new_tokens: of a caption, by default the model's `max_text`. return_items: adds "items", the tables
    "tr" (a row for each image), "ir" (caption), "captioning" (image) and "vqa" (question). progress: whether to show a
    bar, or a function that is called with the fraction done.

    Raises UserError for an unknown task or a number out of range, or where no task can be evaluated.
    """
    tasks = list(dict.fromkeys(as_list(tasks, "task")))
    check_tasks(tasks)
    check_at_least(0, k=k)
    check_at_least(
        1, generate_limit=generate_limit, num_beams=num_beams, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    if isinstance(model, str | Path):
        model = VLM.load(model).to(machine.device())
    data = as_dataset(data, split)
    options = {
        "retrieval": dict(k=k, rerank=rerank),
        "captioning": dict(num_beams=num_beams, max_new_tokens=max_new_tokens, java=java),
        "vqa": dict(num_beams=num_beams),
    }
    result = {"model": model.name, "data": data.name, "split": data.split}
    notes, items = {}, {}
    with model.evaluating():
        for i, task in enumerate(tasks):
            part = subrange(progress, i / len(tasks), (i + 1) / len(tasks))
            limited = task != "retrieval" and generate_limit is not None and generate_limit < len(data)
            images = data.first_with(TASKS[task].data, generate_limit) if limited else data
            try:
                evaluated = EVALUATORS[task](model, images, batch_size=batch_size, progress=part, **options[task])
            except (MetricUnavailable, MissingAbility) as reason:
                result[task], notes[task] = None, str(reason)
                continue
            result[task] = evaluated.metrics
            items |= evaluated.items
            notes |= {task: f"of the first {generate_limit:,} images with {TASKS[task].data}"} if limited else {}
            notes |= {f"{task}.{name}": note for name, note in evaluated.notes.items()}
    if not any(result[task] for task in tasks):
        reasons = "; ".join(dict.fromkeys(notes.values()))
        raise UserError(f"no task can be evaluated on {data.name} {data.split}: {reasons}")
    return {**result, "notes": notes, **({"items": items} if return_items else {})}


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise UserError for an unknown task."""
    if unknown := set(tasks) - set(TASKS):
        raise UserError(f"there is no task {sorted(unknown)[0]!r}; choose one of {', '.join(TASKS)}")
