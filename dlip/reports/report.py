"""What a comparison found, from run records alone: a table for the terminal and a page that needs no network."""

import json
import math
import textwrap
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd
from PIL import Image
from plotly.offline import get_plotlyjs

from dlip import plots
from dlip.common.errors import UserError
from dlip.common.files import write_output
from dlip.common.text import plural, three_digits
from dlip.data.answers import normalize
from dlip.plots.html import image_tag, marked
from dlip.records import frame
from dlip.records.compare import (
    comparable_latencies,
    describe_test_sets,
    latest_runs,
    retention,
    summary,
    undistilled_twin,
)
from dlip.records.write import SAMPLES

PRICES = ("params_m", "flops_g", "latency_ms")
SCORES = ("tr1", "ir1", "cider", "vqa")
HEADS = {
    "params_m": "params", "flops_g": "FLOPs", "latency_ms": "latency", "tr1": "TR@1", "ir1": "IR@1", "cider": "CIDEr",
    "vqa": "VQA", "kept": "kept",
}  # fmt: skip
UNITS = {"params_m": "M", "flops_g": "G", "latency_ms": " ms"}
TEMPLATE = Path(__file__).with_name("report.html")


# --- the comparison -------------------------------------------------------------------------------------------


def comparison(records: list[dict]) -> pd.DataFrame:
    """`dlip.records.compare.summary` with <it>_kept, in % of the teacher's, beside each figure of the table, and kept.

    kept is the least of the scores' (NaN for the teacher itself). Raises UserError where there are no records or they
    were not measured on the same pictures.
    """
    df = comparable_latencies(frame(records))
    if len(describe_test_sets(df)) != 1:
        found = "; ".join(describe_test_sets(df)) or "none"
        raise UserError(f"a report compares records measured on the same pictures, but these are of: {found}")
    rows = summary(df)
    kept = summary(retention(df))[["name", "role", *PRICES, *SCORES]]
    rows = rows.merge(kept, on=["name", "role"], suffixes=("", "_kept"))
    rows["kept"] = rows[[f"{score}_kept" for score in SCORES]].min(axis=1).where(rows["role"] != "teacher")
    return rows


def finding(records: list[dict]) -> list[str]:
    """What the records show, in sentences; the first is the headline."""
    rows = comparison(records)
    students = rows[(rows["role"] == "distilled") & rows["kept"].notna()]
    students = students.sort_values(["params_m", "kept"], ascending=[True, False])
    if students.empty:
        return ["A teacher and a distilled student are needed for a comparison; these records lack one of them."]
    student, others = students.iloc[0], students.iloc[1:]
    scores = [score for score in SCORES if not math.isnan(student[f"{score}_kept"])]
    who = "The distilled student" if others.empty else student["name"]
    said = [
        f"{who} keeps at least {student['kept']:.1f}% of its teacher's "
        f"{_listed(HEADS[s] for s in scores)} with {student['params_m_kept']:.0f}% of the parameters."
    ]
    costs = [f"needs {student['flops_g_kept']:.0f}% of the FLOPs"]
    if student["latency_share"] > 0:  # timed by turns with the teacher
        costs.append(f"is {100 / student['latency_share']:.1f} times as fast")
    said.append(f"It {_listed(costs)}.")
    alone = undistilled_twin(rows, student)
    if alone is not None and (both := [score for score in scores if not math.isnan(alone[score])]):
        said.append(_gain(student, alone, both))
    for _, other in others.iterrows():
        share = f"{other['params_m_kept']:.0f}% of the parameters"
        said.append(f"{other['name']} keeps at least {other['kept']:.1f}% with {share}.")
    return said


def _gain(student: pd.Series, alone: pd.Series, scores: list[str]) -> str:
    """What distillation adds, and on how many scores by more than the standard deviation of the difference."""
    gains = {score: student[score] - alone[score] for score in scores}
    changes = _listed(f"{HEADS[score]} by {gain:+.1f}".replace("-", "−") for score, gain in gains.items())
    said = f"Undistilled, a student like it keeps at least {alone['kept']:.1f}%; distillation changes {changes}"
    if min(student["runs"], alone["runs"]) < 2:
        return said + ", from one seed, so without a spread."
    sure = [s for s in scores if gains[s] > math.hypot(student[f"{s}_sd"], alone[f"{s}_sd"])]
    some = "all" if len(sure) == len(scores) else _listed(HEADS[s] for s in sure) if sure else "none"
    return said + f", above the spread over seeds on {some} of them."


def _listed(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _cell(row: pd.Series, column: str) -> str:
    """A figure as it is read: three digits of a cost, one decimal of a score, and its spread over seeds."""
    value = row[column]
    if math.isnan(value):
        return "–"
    if column in PRICES:
        return three_digits(value) + UNITS[column]
    if column == "kept":
        return f"{value:.1f}%"
    spread = row[f"{column}_sd"]
    return f"{value:.1f}" if math.isnan(spread) else f"{value:.1f} ±{spread:.1f}"


def _share(row: pd.Series, column: str) -> str:
    """A student's figure beside its teacher's."""
    share = row.get(f"{column}_kept", math.nan)
    if row["role"] == "teacher" or math.isnan(share):
        return ""
    return f"{share:.1f}%" if column in SCORES else f"{share:.0f}%"


def conditions(records: list[dict]) -> str:
    """How the table's figures are to be read."""
    df = comparable_latencies(latest_runs(frame(records)))
    timed = df.dropna(subset=["latency_ms"])
    said = "kept: the least of TR@1, IR@1, CIDEr and VQA in % of the teacher's; ±: standard deviation over seeds; "
    said += "FLOPs: of one picture and one text"
    for how in timed["latency_setup"].head(1):
        said += f"; latency: median of {how}"
        if "teacher" in set(timed["role"]):
            said += ", of a student its share, timed by turns, of the teacher's"
        said += "; – where it was not timed so" if len(timed) < len(df) else ""
    return said + "."


def table(records: list[dict]) -> str:
    """The comparison for a terminal, at most 100 columns wide; under each student its shares of a teacher among them.

    Raises UserError as `comparison`.
    """
    widths = {"params_m": 7, "flops_g": 8, "latency_ms": 10, "tr1": 11, "ir1": 11, "cider": 11, "vqa": 11, "kept": 7}
    name = 100 - sum(widths.values())

    def line(first: str, cells) -> str:
        return (f"{first:<{name}}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths.values(), strict=True))).rstrip()

    lines = [line("", (HEADS[column] for column in widths)), "─" * 100]
    for _, row in comparison(records).iterrows():
        label = row["name"] if len(row["name"]) < name else row["name"][: name - 2] + "…"
        lines.append(line(label, (_cell(row, column) for column in widths)))
        if any(shares := [_share(row, column) for column in widths]):
            lines.append(line("  of the teacher's", shares))
    return "\n".join([*lines, "─" * 100, *textwrap.wrap(conditions(records), 100)])


# --- the page -------------------------------------------------------------------------------------------------


def report(records: list[dict], pictures: dict[int, Image.Image | np.ndarray | str | Path], path: str | Path) -> None:
    """Writes the comparison as one HTML file that holds all it shows.

    records: measured on the same pictures, as `dlip.records.read` gives them. pictures: image_id -> a picture, its
    pixels (uint8 [H, W, 3]) or its file, for the examples that the records hold. Raises UserError as `comparison`,
    where a picture cannot be read and where the page cannot be written.
    """
    rows, df, path = comparison(records), comparable_latencies(latest_runs(frame(records))), Path(path)
    headline, *rest = finding(records)
    axes = [(cost, score) for cost in PRICES for score in SCORES if rows[[cost, score]].notna().all(axis=1).sum() > 1]
    curves = [term for term in plots.terms(records) if term != "total"]
    figures = {f"{cost}/{score}": plots.accuracy_cost(df, cost, score) for cost, score in axes}
    for fig in figures.values():
        fig.update_traces(customdata=None)  # names, for the clicks that the page does not take
    figures |= {term: plots.loss_curves(records, term) for term in curves}
    page = Template(TEMPLATE.read_text()).substitute(
        title=escape(f"{records[0]['data']} {records[0]['split']}"),
        headline=escape(headline),
        finding=" ".join(map(escape, rest)),
        table=_table(rows),
        conditions=escape(conditions(records)),
        missing=_missing(records),
        costs=_costs([*dict.fromkeys(cost for cost, _ in axes)]),
        charts="".join(_chart(score) for score in dict.fromkeys(score for _, score in axes)),
        examples=_examples(records, rows, pictures),
        task_losses="".join(_chart(term) for term in curves if "." not in term),
        distillation_losses=_more("Distillation terms", [_chart(term) for term in curves if "." in term]),
        runs="".join(map(_run, records)),
        versions=escape(_versions(records)),
        configurations=_configurations(records),
        figures=json.dumps({name: _payload(fig) for name, fig in figures.items()}).replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
    )
    try:
        write_output(path, lambda place: place.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}; choose another file") from error


def _payload(fig) -> dict:
    """A figure for the page, which sets its title as a heading, that wraps."""
    title = fig.layout.title.text.replace("<br>", " ")
    margin = dict(t=12, r=min(64, fig.layout.margin.r), b=48)
    fig.update_layout(title_text=None, showlegend=False, height=None, margin=margin)
    return {"title": title, **json.loads(fig.to_json())}


def _chart(name: str) -> str:
    return f'<figure><h3></h3><div class="chart" data-name="{escape(name)}"></div></figure>'


def _more(title: str, parts: list[str]) -> str:
    return (
        f'<details><summary>{title}</summary><div class="grid small">{"".join(parts)}</div></details>' if parts else ""
    )


def _dot(role: str, name: str) -> str:
    return f'<span class="dot {escape(role)}" title="{escape(name)}"></span>'


def _table(rows: pd.DataFrame) -> str:
    out = []
    for _, row in rows.iterrows():
        cells = [
            f'<td data-head="{head}">{_cell(row, column)}<small>{_share(row, column)}</small></td>'
            for column, head in HEADS.items()
        ]
        pictures = f"{plural(row['train_images'], 'picture')}, {plural(row['runs'], 'seed')}"
        name = f"<th>{_dot(row['role'], row['name'])}{escape(row['name'])}<small>{pictures}</small></th>"
        out.append(f"<tr>{name}{''.join(cells)}</tr>")
    heads = "".join(f"<th>{head}</th>" for head in HEADS.values())
    return f"<table class=figures><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(out)}</tbody></table>"


def _missing(records: list[dict]) -> str:
    notes = {name: note for record in records for name, note in record["notes"].items()}
    return "".join(f"<li>{escape(name)}: {escape(str(note))}</li>" for name, note in notes.items())


def _costs(costs: list[str]) -> str:
    """The choice of the charts' cost."""
    return "".join(
        f'<label><input type="radio" name="cost" value="{cost}"{" checked" if cost == costs[0] else ""}>'
        f"<span>{plots.LABELS[cost][0]}</span></label>"
        for cost in costs
    )


def _examples(records: list[dict], rows: pd.DataFrame, pictures: dict) -> str:
    """Pictures with what each model said, models in the order of the table: of each its first run with samples."""
    kept = {(r["name"], r["role"]): r for r in reversed(records) if r["samples"]}
    models = [kept[key] for key in zip(rows["name"], rows["role"], strict=True) if key in kept]
    said = {}  # image_id -> (record, sample) of each model
    for record in models:
        for sample in record["samples"]:
            said.setdefault(sample["image_id"], []).append((record, sample))
    return "".join(_example(pictures.get(image_id), some) for image_id, some in [*said.items()][:SAMPLES])


def _example(picture, said: list[tuple[dict, dict]]) -> str:
    first = said[0][1]
    image = image_tag(picture) if picture is not None else '<div class="gone">no picture</div>'
    references = "".join(f"<li>{escape(text)}</li>" for text in first["references"])
    reference = next((s["caption"] for r, s in said if r["role"] == "teacher" and s["caption"]), None)
    captions = "".join(
        f"<li>{_dots(some)}{marked(text, reference)}<small>{escape(', '.join(r['name'] for r in some))}</small></li>"
        for text, some in _same((record, sample["caption"]) for record, sample in said)
    )
    questions = "".join(_question(i, said) for i in range(len(first["questions"])))
    return (
        f'<article>{image}<div><ul class="said">{captions}</ul>'
        f"<details><summary>{plural(len(first['references']), 'reference')}</summary>"
        f'<ul class="references">{references}</ul></details>'
        f"<dl>{questions}</dl></div></article>"
    )


def _same(said: Iterable[tuple[dict, str | None]]) -> list[tuple[str, list[dict]]]:
    """Every text once, with the records of the models that said it."""
    out = {}
    for record, text in said:
        if text is not None:
            out.setdefault(text, []).append(record)
    return [*out.items()]


def _dots(records: list[dict]) -> str:
    return "".join(_dot(record["role"], record["name"]) for record in records)


def _question(i: int, said: list[tuple[dict, dict]]) -> str:
    """A question with its true answer, and what the models answered, marked where VQA takes it for another."""
    question, truth = (said[0][1][part][i] for part in ("questions", "truth"))
    answers = ""
    for answer, some in _same((record, sample["answers"][i]) for record, sample in said if i < len(sample["answers"])):
        tag = "span" if normalize(answer) == normalize(truth) else "mark"
        answers += f"<span>{_dots(some)}<{tag}>{escape(answer)}</{tag}></span>"
    return f"<dt>{escape(question)} <b>{escape(truth)}</b></dt><dd>{answers}</dd>"


def _run(record: dict) -> str:
    about = f"seed {record['seed']}, {record['wall_s'] / 60:.1f} minutes, configuration {record['config_hash'][:8]}"
    made = f"{record['created'][:10]}, {about}"
    words = " ".join(f"<span>{escape(word)}</span>" for word in record["command"].split())
    return (
        f"<li>{_dot(record['role'], record['name'])}<div>{escape(record['name'])} <small>{escape(made)}</small>"
        f"<code>{words}</code></div></li>"
    )


def _versions(records: list[dict]) -> str:
    """Under what the runs were made, each once."""
    out = {}
    for r in records:
        code = f"dlip {r['code']['version']}"
        if r["code"]["commit"]:
            code += f" ({r['code']['commit'][:10]}{', modified' if r['code']['modified'] else ''})"
        parts = (code, f"torch {r['torch']}", f"transformers {r['transformers']}", f"Python {r['python']}")
        out[", ".join([*parts, f"{r['device']}, {plural(r['threads'], 'thread')}"])] = None
    return "; ".join(out)


def _configurations(records: list[dict]) -> str:
    configs = {record["config_hash"]: record for record in records}
    return "".join(
        f"<details><summary>Configuration {digest[:8]}, {escape(record['name'])}</summary>"
        f"<pre>{escape(json.dumps(record['config'], indent=1))}</pre></details>"
        for digest, record in configs.items()
    )
