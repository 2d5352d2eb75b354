"""Pictures with their words, and several models' words side by side."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlip.plots import text_table as words

if TYPE_CHECKING:
    from dlip.vlm import VLM


def gallery(items: Sequence):
    """Images with the first of their captions and one of their questions with its answer."""
    from IPython.display import HTML

    from dlip.plots import generated_text

    return HTML(generated_text.gallery([(item, _question(item, i)) for i, item in enumerate(items)]))


def compare(models: Sequence[tuple[str, str, "VLM"]], items: Sequence, questions: bool = False):
    """What models say of the same pictures: captions, or answers to one question of each picture that has one.

    models: (name, role, model), the first the one that the others are compared with.
    """
    from IPython.display import HTML

    items = [item for item in items if item.questions or not questions]
    if not items:
        return HTML("None of these pictures has a question.")
    images = [item.image for item in items]
    asked = [_question(item, i).text if questions else "" for i, item in enumerate(items)]
    said = [
        (name, role, vlm.answer(images, asked) if questions else vlm.caption(images, max_new_tokens=40))
        for name, role, vlm in models
    ]
    return HTML(words(items, asked, said))


def _question(item, i: int):
    """A question of the i-th picture, another kind from picture to picture; None where it has none."""
    return item.questions[i % len(item.questions)] if item.questions else None


def scores(models: Sequence[tuple[str, str, "VLM"]], dataset):
    """Retrieval and answers of models on a data set, in %, NaN where it lacks captions or questions, as a table; few
    pictures make recall easy."""
    import pandas as pd

    from dlip.evaluation.tasks import evaluate
    from dlip.records.schema import value_at

    rows = {}
    for name, _, vlm in models:
        found = evaluate(vlm, dataset, tasks=("retrieval", "vqa"), progress=False)
        places = {"TR@1": ("retrieval", "tr@1"), "IR@1": ("retrieval", "ir@1"), "VQA": ("vqa", "accuracy")}
        rows[name] = {head: value_at(found, *place) for head, place in places.items()}
    return pd.DataFrame(rows).T.astype(float).round(1)
