"""Compare a teacher and its students by their records: the findings in words and a table for the terminal."""

import math
import textwrap
from collections.abc import Iterable

import pandas as pd

from dlip.common.errors import UserError
from dlip.common.text import mean_and_spread, plural, three_digits
from dlip.records import frame
from dlip.records.compare import (
    comparable_latencies,
    describe_test_sets,
    latest_runs,
    measured,
    retention,
    summary,
    undistilled_twin,
    warn_of_shared_names,
)
from dlip.records.outcomes import outcomes
from dlip.records.schema import TABLE_SCORES, headline_scores

COSTS = {"params_m": "params", "flops_g": "FLOPs", "latency_ms": "latency"}
"""Costs of the table -> their heads."""
UNITS = {"params_m": "M", "flops_g": "G", "latency_ms": " ms"}
WIDTHS = {"params_m": 7, "flops_g": 8, "latency_ms": 10, **dict.fromkeys(TABLE_SCORES, 11), "cider": 12, "kept": 7}
"""Characters of each column in a terminal."""
WIDTH, NAME_WIDTH = 110, 24
"""Characters of the table at most, and of its names."""


def comparison(records: list[dict]) -> pd.DataFrame:
    """`dlip.records.summary` with <column>_kept, each figure in % of the teacher's, and "kept".

    "kept" is the minimum over those of the `headline_scores` that the row has (NaN for the teacher). Raises UserError
    if there are no records or they have different test sets.
    """
    df = frame(records)
    warn_of_shared_names(df)
    df = comparable_latencies(latest_runs(df))
    if len(test_sets := describe_test_sets(df)) != 1:
        raise UserError(
            f"a report compares records of one test set, but these are of: {'; '.join(test_sets) or 'none'}; "
            "keep those of one of them"
        )
    rows = summary(df)
    kept = summary(retention(df))[["name", "role", *COSTS, *TABLE_SCORES]]
    rows = rows.merge(kept, on=["name", "role"], suffixes=("", "_kept"))
    kept_scores = rows[[f"{score}_kept" for score in headline_scores(measured(df))]]
    rows["kept"] = kept_scores.min(axis=1).where(rows["role"] != "teacher")
    return rows


def columns(rows: pd.DataFrame) -> dict[str, str]:
    """Columns of the table -> their heads: the costs, the scores that any row of `comparison` has, and "kept"."""
    return {**COSTS, **{c: head for c, head in TABLE_SCORES.items() if rows[c].notna().any()}, "kept": "kept"}


def finding(records: list[dict]) -> list[str]:
    """What the records show, in sentences; the first is the headline. Raises UserError as `comparison`."""
    rows = comparison(records)
    students = rows[(rows["role"] == "distilled") & rows["kept"].notna()]
    students = students.sort_values(["params_m", "kept"], ascending=[True, False])
    if students.empty:
        return ["A comparison needs a teacher and a distilled student; these records lack one of them."]
    student, others = students.iloc[0], students.iloc[1:]
    scores = [score for score in headline_scores(measured(rows)) if not math.isnan(student[f"{score}_kept"])]
    name = "The distilled student" if others.empty else student["name"]
    sentences = [
        f"{name} keeps at least {student['kept']:.1f}% of its teacher's "
        f"{_listing(TABLE_SCORES[s] for s in scores)} with {student['params_m_kept']:.0f}% of the parameters."
    ]
    costs = [f"needs {student['flops_g_kept']:.0f}% of the FLOPs"]
    if student["latency_share"] > 0:  # timed in alternation with the teacher
        costs.append(f"is {100 / student['latency_share']:.1f} times as fast")
    sentences.append(f"It {_listing(costs)}.")
    twin = undistilled_twin(rows, student)
    if twin is not None and (shared := [score for score in scores if not math.isnan(twin[score])]):
        sentences.append(_gain(student, twin, shared))
    for _, other in others.iterrows():
        share = f"{other['params_m_kept']:.0f}% of the parameters"
        sentences.append(f"{other['name']} keeps at least {other['kept']:.1f}% with {share}.")
    return sentences


def _gain(student: pd.Series, twin: pd.Series, scores: list[str]) -> str:
    """What distillation adds, and for which scores this exceeds the standard deviation of the difference."""
    gains = {score: student[score] - twin[score] for score in scores}
    changes = _listing(f"{TABLE_SCORES[score]} by {gain:+.1f}".replace("-", "−") for score, gain in gains.items())
    kept = min(twin[f"{score}_kept"] for score in scores)
    text = f"Undistilled, a student of this size keeps at least {kept:.1f}%; distillation changes {changes}"
    if min(student["runs"], twin["runs"]) < 2:
        return text + ", from one seed, so without a spread."
    clear = [s for s in scores if gains[s] > math.hypot(student[f"{s}_sd"], twin[f"{s}_sd"])]
    names = "all" if len(clear) == len(scores) else _listing(TABLE_SCORES[s] for s in clear) if clear else "none"
    return text + f", above the spread over seeds on {names} of them."


def _listing(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def cell(row: pd.Series, column: str) -> str:
    """A figure of the table: three digits of a cost, one decimal of a score and its spread over seeds."""
    value = row[column]
    if math.isnan(value):
        return "–"
    if column in COSTS:
        return three_digits(value) + UNITS[column]
    if column == "kept":
        return f"{value:.1f}%"
    return mean_and_spread(value, row[f"{column}_sd"])


def share(row: pd.Series, column: str) -> str:
    """A student's figure in percent of its teacher's; "" for the teacher."""
    value = row.get(f"{column}_kept", math.nan)
    if row["role"] == "teacher" or math.isnan(value):
        return ""
    return f"{value:.1f}%" if column in TABLE_SCORES else f"{value:.0f}%"


def conditions(records: list[dict]) -> str:
    """How to read the figures of the table."""
    df = comparable_latencies(latest_runs(frame(records)))
    timed = df.dropna(subset=["latency_ms"])
    scores = headline_scores(measured(df))
    text = f"kept: minimum of {_listing(scores.values())} in % of the teacher's, as far as measured; " if scores else ""
    text += "VQA: mean over types of question; " if "vqa_mean" in scores else ""
    gallery = max((len(outcomes(record).get("captions", ())) for record in records), default=0)
    text += f"retrieval: among {plural(gallery, 'image')}; " if gallery else ""
    text += "±: standard deviation over seeds; FLOPs: of one image and one text"
    for setup in timed["latency_setup"].head(1):
        text += f"; latency: median of {setup}"
        if "teacher" in set(timed["role"]):
            text += ", of a student its share of the teacher's, timed in alternation"
        text += "; – where it was not timed this way" if len(timed) < len(df) else ""
    return text + "."


def table(records: list[dict]) -> str:
    """The comparison for a terminal of 110 columns, below each student its shares of the teacher's figures.

    Raises UserError as `comparison`.
    """
    rows = comparison(records)
    shown = columns(rows)
    widths = [WIDTHS[column] for column in shown]
    name_width = min(NAME_WIDTH, WIDTH - sum(widths))
    rule = "─" * (name_width + sum(widths))

    def line(name: str, cells) -> str:
        return (
            f"{name:<{name_width}}" + "".join(f"{text:>{w}}" for text, w in zip(cells, widths, strict=True))
        ).rstrip()

    lines = [line("", shown.values()), rule]
    for _, row in rows.iterrows():
        name = row["name"] if len(row["name"]) < name_width else row["name"][: name_width - 2] + "…"
        lines.append(line(name, (cell(row, column) for column in shown)))
        if any(shares := [share(row, column) for column in shown]):
            lines.append(line("  of the teacher's", shares))
    return "\n".join([*lines, rule, *textwrap.wrap(conditions(records), len(rule))])
