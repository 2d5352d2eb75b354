"""Evaluations of a student during training, as its record keeps them."""

from dlip.records.schema import SCORES, value_at


def evaluations(rows: list[dict], images: int) -> dict | None:
    """The "evaluations" of a record, from the rows of a run's log; None if there were none.

    images: number of images that were evaluated.
    """
    done = [(row["step"], row["eval"]) for row in rows if "eval" in row]
    if not done:
        return None
    by_step = [_scores(metrics) for _, metrics in done]
    columns = [name for name in SCORES if any(scores[name] is not None for scores in by_step)]
    teacher = _scores(next((metrics["teacher"] for _, metrics in done if "teacher" in metrics), {}))
    scores = {"step": [step for step, _ in done], **{name: [row[name] for row in by_step] for name in columns}}
    return {
        "data": done[0][1]["data"], "split": done[0][1]["split"], "images": images, "scores": scores,
        "teacher": {name: value for name, value in teacher.items() if value is not None},
    }  # fmt: skip


def _scores(metrics: dict) -> dict[str, float | None]:
    return {column: value_at({"metrics": metrics}, *path) for column, path in SCORES.items()}


def percent(values: list[float | None], level: float) -> list[float | None]:
    """Values in percent of a level."""
    return [None if value is None else 100 * value / level for value in values]
