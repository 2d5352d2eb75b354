"""Images with their captions and questions, and what several models generate for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from IPython.display import HTML

from dlip.data.batch import Example
from dlip.data.transforms import read_image
from dlip.plots import generated_text
from dlip.records.schema import SCORES, TABLE_SCORES, value_at

if TYPE_CHECKING:
    from dlip.vlm import VLM


def photographs(folder: str) -> list[Example]:
    """The JPEG images of a folder, without texts, in the order of their names."""
    return [Example(read_image(file), i, []) for i, file in enumerate(sorted(Path(folder).glob("*.jpg")))]


def gallery(items: Sequence):
    """Images with their first caption and one of their questions with its answer."""
    return HTML(generated_text.gallery([(item, _question(item, i)) for i, item in enumerate(items)]))


def compare_texts(models: Sequence[tuple[str, str, "VLM"]], items: Sequence, questions: bool = False):
    """What models generate for the same images: captions, or answers to one question of each image that has one.

    models: (name, role, model); the first is the reference for marked differences.
    """
    items = [item for item in items if item.questions or not questions]
    if not items:
        return HTML("None of these images has a question.")
    images = [item.image for item in items]
    prompts = [_question(item, i).text if questions else "" for i, item in enumerate(items)]
    texts = [
        (name, role, vlm.answer(images, prompts) if questions else vlm.caption(images, max_new_tokens=40))
        for name, role, vlm in models
    ]
    return HTML(generated_text.text_table(items, prompts, texts))


def _question(item, i: int):
    """A question of the i-th image, of a different kind from image to image; None if it has none."""
    return item.questions[i % len(item.questions)] if item.questions else None


def score_table(models: Sequence[tuple[str, str, "VLM"]], dataset):
    """Retrieval and VQA scores of models on a data set, in %; NaN if it lacks captions or questions."""
    from dlip.evaluation.evaluate import evaluate

    rows = {}
    for name, _, vlm in models:
        metrics = evaluate(vlm, dataset, tasks=("retrieval", "vqa"), progress=False)
        scores = ("ir1", "vqa_mean", "tr1")
        rows[name] = {TABLE_SCORES[score]: value_at({"metrics": metrics}, *SCORES[score]) for score in scores}
    return pd.DataFrame(rows).T.astype(float).round(1)
