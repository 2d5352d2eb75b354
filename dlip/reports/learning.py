"""The learning curve of a run for a terminal."""

from dlip.common.text import plural
from dlip.records.evaluations import percent
from dlip.records.schema import headline_scores

BAR = 10
"""Characters of a bar that stands for the teacher's score."""


def learning_lines(evaluations: dict | None) -> list[str]:
    """A head, then a line per evaluation with the headline scores in percent of the teacher's, in ASCII.

    Scores that the teacher lacks are shown as they are. evaluations: of a record (`dlip.records`); none give no lines.
    """
    if not evaluations:
        return []
    scores, teacher = evaluations["scores"], evaluations["teacher"]
    columns = [[f"step{step:6}" for step in scores["step"]]]
    measured = [column for column, values in scores.items() if any(value is not None for value in values)]
    for column, name in headline_scores(measured).items():
        level = teacher.get(column)
        values, show = (percent(scores[column], level), _bar) if level else (scores[column], _number)
        columns.append([f"{name} {show(value)}" for value in values])
    head = f"On {plural(evaluations['images'], 'image')} of {evaluations['data']} {evaluations['split']}"
    head += ", in % of the teacher's scores:" if teacher else ":"
    return [head, *map("  ".join, zip(*columns, strict=True))]


def _bar(share: float | None) -> str:
    filled = min(BAR, round(BAR * (share or 0) / 100))
    return "#" * filled + "." * (BAR - filled) + ("   -" if share is None else f"{share:4.0f}%")


def _number(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.1f}"
