"""Pictures with their words, and several models' words side by side."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from dlip.plots import words

if TYPE_CHECKING:
    from dlip.vlm import VLM


def gallery(items: Sequence):
    """Pictures with the first of their captions and one of their questions, answered."""
    from IPython.display import HTML

    from dlip.plots.words import LEFT, small_picture

    cells = []
    for i, item in enumerate(items):
        asked = _question(item, i)
        qa = f"<br><b>{escape(asked.text)}</b> {escape(asked.answers[0])}" if asked else ""
        said = escape(item.captions[0]) if item.captions else ""
        cells.append(f"<td {LEFT}>{small_picture(item.image)}<br>{said}{qa}</td>")
    rows = "".join(f"<tr>{''.join(cells[i : i + 4])}</tr>" for i in range(0, len(cells), 4))
    return HTML(f"<table>{rows}</table>")


def compare(models: Sequence[tuple[str, str, "VLM"]], items: Sequence, questions: bool = False):
    """What models say of the same pictures: captions, or answers to one question a picture.

    models: (name, role, model), the first the one that the others are compared with.
    """
    from IPython.display import HTML

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
    """Retrieval and answers of models on a data set, in %, as a table; few pictures make recall easy."""
    import pandas as pd

    from dlip.tasks import evaluate

    rows = {}
    for name, _, vlm in models:
        found = evaluate(vlm, dataset, tasks=("retrieval", "vqa"), progress=False)
        rows[name] = {
            "TR@1": found["retrieval"]["tr@1"], "IR@1": found["retrieval"]["ir@1"], "VQA": found["vqa"]["accuracy"],
        }  # fmt: skip
    return pd.DataFrame(rows).T.round(1)
