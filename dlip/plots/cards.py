"""The disagreement view: pictures with what teacher and student said, as HTML that needs nothing beside it."""

from html import escape

import pandas as pd

from dlip.plots.html import image_tag, marked
from dlip.plots.style import COLOURS

STYLE = """
.dlip-cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 20px; margin: 12px 0;
  font: 14px/1.45 system-ui, sans-serif; }
.dlip-cards h4 { grid-column: 1 / -1; margin: 0; font-size: 16px; font-weight: 600; }
.dlip-cards article { display: grid; grid-template-columns: 112px minmax(0, 1fr); gap: 14px; padding-top: 14px;
  border-top: 1px solid rgba(128, 128, 128, .35); }
.dlip-cards img { width: 112px; border-radius: 6px; display: block; margin: 0; }
.dlip-cards img.png { image-rendering: pixelated; }
.dlip-cards p { margin: 0 0 8px; }
.dlip-cards p.asked { font-weight: 600; }
.dlip-cards span.who { display: block; font-size: 12px; font-weight: 600; }
.dlip-cards span.who::before { content: ""; display: inline-block; width: 9px; height: 9px; margin-right: 6px;
  background: var(--role); }
.dlip-cards .truth { opacity: .75; font-size: 13px; }
.dlip-cards mark { background: color-mix(in srgb, var(--role) 25%, transparent); color: inherit;
  box-shadow: inset 0 -2px var(--role); border-radius: 2px; padding: 0 2px; }
"""


def cards(
    rows: pd.DataFrame, items: dict, role: str = "distilled", names: tuple[str, str] = ("teacher", "student")
) -> str:
    """A card for each row: the picture, what was asked, what the teacher and the student said and scored, the truth.

    rows: as `dlip.evaluation.disagreement.disagreements` gives them. items: image_id -> Item, as `items_of`
    there. role: the student's, whose colour it has. The words in which the student differs are marked.
    """
    if rows.empty:
        return f"<style>{STYLE}</style><div class=dlip-cards><h4>{escape(names[1])} loses on no item</h4></div>"
    worst = f"{rows['loss'].max():.0f} on the first"
    head = f"Where {names[1]} loses most against {names[0]}, in {rows['measure'].iloc[0]}: {worst}"
    parts = [_card(row, items.get(row["image_id"]), role, names) for _, row in rows.iterrows()]
    return f"<style>{STYLE}</style><section class=dlip-cards><h4>{escape(head)}</h4>{''.join(parts)}</section>"


def _card(row: pd.Series, item, role: str, names: tuple[str, str]) -> str:
    asked = f"<p class=asked>{escape(row['asked'])}</p>" if row["asked"] else ""
    texts = escape(row["teacher"]), marked(row["student"], row["teacher"])
    said = "".join(
        f'<p class=side style="--role: {COLOURS[who]}">'
        f"<span class=who>{escape(name)}, {row[f'{side}_score']:.0f}</span>{text}</p>"
        for side, who, name, text in zip(("teacher", "student"), ("teacher", role), names, texts, strict=True)
    )
    truth = _truth(row, item)
    shown = next(iter(item.captions), f"picture {row['image_id']}") if item else ""
    picture = image_tag(item.image, shown) if item else "<div></div>"
    return f"<article>{picture}<div>{asked}{said}{truth}</div></article>"


def _truth(row: pd.Series, item) -> str:
    """The answers to a question, or a reference of a caption."""
    if item is None:
        return ""
    answers = [question.answers for question in item.questions if question.text == row["asked"]]
    if answers:
        return f"<p class=truth>true: {escape(', '.join(dict.fromkeys(answers[0])))}</p>"
    references = [text for text in item.captions if text != row["asked"]]
    return f"<p class=truth>a reference: {escape(references[0])}</p>" if references else ""
