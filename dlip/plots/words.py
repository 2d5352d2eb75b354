"""What several models say of the same pictures, side by side, as an HTML table that needs no style sheet."""

from collections.abc import Sequence
from html import escape

from dlip.plots.html import image_tag, marked
from dlip.plots.style import COLOURS

SHOWN = 96
"""px: width of a picture."""
LEFT = 'style="text-align: left; vertical-align: top"'


def words(items: Sequence, asked: Sequence[str], said: Sequence[tuple[str, str, Sequence[str]]]) -> str:
    """A row for each item: its picture, what was asked and is true, and what each model said.

    items: as data sets give them. asked: a question of each item, or "" for a caption. said: (name, role, texts) of
    each model; the words of all but the first are marked where they differ from the first's.
    """
    heads = "".join(
        f'<th {LEFT}><span style="color: {COLOURS[role]}">■</span> {escape(name)}</th>' for name, role, _ in said
    )
    lines = []
    for i, (item, question) in enumerate(zip(items, asked, strict=True)):
        picture = small_picture(item.image)
        cells = [escape(_truth(item, question))] + [
            escape(texts[i]) if j == 0 else marked(texts[i], said[0][2][i]) for j, (_, _, texts) in enumerate(said)
        ]
        cells = [picture, *cells] if not question else [picture, f"<b>{escape(question)}</b><br>{cells[0]}", *cells[1:]]
        lines.append("<tr>" + "".join(f"<td {LEFT}>{cell}</td>" for cell in cells) + "</tr>")
    head = f"<tr><th></th><th {LEFT}>true</th>{heads}</tr>"
    return f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"


def small_picture(picture) -> str:
    """A picture of `SHOWN` px within a table, which may not press it together."""
    return image_tag(picture).replace("<img", f'<img width="{SHOWN}" style="max-width: none; min-width: {SHOWN}px"')


def _truth(item, question: str) -> str:
    """The question's answer, or the first of the captions that people gave."""
    if not question:
        return item.captions[0] if item.captions else ""
    return next((q.answers[0] for q in item.questions if q.text == question), "")
