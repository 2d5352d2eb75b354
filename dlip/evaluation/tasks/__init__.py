"""The tasks that a model is measured on: retrieval, captioning, and visual question answering."""

from contextlib import contextmanager
from pathlib import Path

import torch

from dlip.common.errors import MissingAbility, UserError
from dlip.data import open as open_data
from dlip.evaluation.tasks import captioning, retrieval, vqa
from dlip.evaluation.tasks.base import Progress, Unavailable, within
from dlip.models.tasks import TASKS
from dlip.vlm import VLM

RUN = {"retrieval": retrieval.run, "captioning": captioning.run, "vqa": vqa.run}
"""Task -> function that predicts and scores."""


def evaluate(
    model,
    data,
    split: str = "test",
    tasks: tuple[str, ...] = tuple(TASKS),
    *,
    k: int | None = None,
    answers: list[str] | None = None,
    num_beams: int = 3,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    return_items: bool = False,
    progress: Progress = True,
) -> dict:
    """Figures of a model: {"model", "data", "split", "retrieval", "captioning", "vqa", "notes"}, percents as 0 to 100.

    model, data: a VLM and a data set, or their names; `split` goes with a name. k: candidates that retrieval
    re-ranks. answers: a list that VQA ranks, besides answering freely. max_new_tokens: of a caption, by
    default as many as the model's longest text. A task or metric that could not be computed is None, and
    "notes" says why under its name. return_items adds "items": tables "tr", "ir", "captioning" and "vqa", a row
    each picture, caption, picture and question. progress: a bar, or what is called with the share done. Raises
    UserError where a task is unknown or none can be computed.
    """
    model = VLM.load(model) if isinstance(model, str | Path) else model
    data = open_data(data, split) if isinstance(data, str | Path) else data
    check_tasks(tasks)
    options = {
        "retrieval": dict(k=k),
        "captioning": dict(num_beams=num_beams, max_new_tokens=max_new_tokens or model.med.config.max_text),
        "vqa": dict(answers=answers, num_beams=num_beams),
    }
    result = {"model": model.name, "data": data.name, "split": data.split}
    notes, items = {}, {}
    with _evaluating(model.med):
        chosen = list(dict.fromkeys(tasks))
        for place, task in enumerate(chosen):
            share = within(progress, place / len(chosen), (place + 1) / len(chosen))
            try:
                outcome = RUN[task](model, data, batch_size=batch_size, progress=share, **options[task])
            except (Unavailable, MissingAbility) as reason:
                result[task], notes[task] = None, str(reason)
                continue
            result[task] = outcome.figures
            items |= outcome.rows
            notes |= {f"{task}.{name}": note for name, note in outcome.notes.items()}
    if not any(result[task] for task in tasks):
        reasons = "; ".join(dict.fromkeys(notes.values()))
        raise UserError(f"nothing can be measured on {data.name} {data.split}: {reasons}")
    return {**result, "notes": notes, **({"items": items} if return_items else {})}


def check_tasks(tasks: tuple[str, ...]) -> None:
    """Raises UserError where there is no such task."""
    if unknown := set(tasks) - set(TASKS):
        raise UserError(f"there is no task {sorted(unknown)[0]!r}; choose one of {', '.join(TASKS)}")


@contextmanager
def _evaluating(med: torch.nn.Module):
    """Eval and inference mode; the model's own mode comes back."""
    training = med.training
    med.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        med.train(training)
