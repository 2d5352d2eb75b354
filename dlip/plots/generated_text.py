"""What models generate for the same images, as HTML that needs no other file."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dlip.plots.html import environment
from dlip.plots.style import COLORS

TEMPLATES = environment(Path(__file__).with_name("templates"))
IMAGE_WIDTH = 96
"""px: width of an image in a table."""


def disagreement_cards(
    rows: pd.DataFrame, items: dict, role: str = "distilled", names: tuple[str, str] = ("teacher", "student")
) -> str:
    """A card per row: the image, the question, both models' texts with their scores, the reference.

    rows: as returned by `dlip.evaluation.disagreement.disagreements`. items: image_id -> Example, as returned by
    `items_of` there. role: the student's, for its color. Words that differ from the teacher's are marked.
    """
    cards = [row | {"item": items.get(row["image_id"])} for row in rows.to_dict("records")]
    for card in cards:
        card["truth"] = _reference(card["item"], card["asked"])
    worst = rows["loss"].max() if cards else 0
    template = TEMPLATES.get_template("disagreement_cards.html")
    return template.render(cards=cards, names=names, role=role, worst=worst, colors=COLORS)


def _reference(item, question: str) -> str:
    """The true answers to a question, or a reference caption."""
    if item is None:
        return ""
    answers = [one.answers for one in item.questions if one.text == question]
    if answers:
        return f"true: {', '.join(dict.fromkeys(answers[0]))}"
    references = [text for text in item.captions if text != question]
    return f"a reference: {references[0]}" if references else ""


def text_table(items: Sequence, questions: Sequence[str], models: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """A table with a row per item: its image, the question and the truth, and each model's text.

    questions: one per item, "" for captions. models: (name, role, texts) of each; the words of all but the first are
    marked where they differ from the first's.
    """
    rows = [(item, question, _truth(item, question)) for item, question in zip(items, questions, strict=True)]
    template = TEMPLATES.get_template("text_table.html")
    return template.render(rows=rows, models=models, colors=COLORS, width=IMAGE_WIDTH)


def _truth(item, question: str) -> str:
    """The first true answer to the question, or without a question the first caption."""
    if not question:
        return item.captions[0] if item.captions else ""
    return next((one.answers[0] for one in item.questions if one.text == question), "")


def gallery(cells: Sequence[tuple]) -> str:
    """A table of images, four in a row, each with its first caption and a question with its answer.

    cells: (item, question or None).
    """
    return TEMPLATES.get_template("gallery.html").render(cells=cells, width=IMAGE_WIDTH)
