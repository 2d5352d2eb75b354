"""Write a comparison as one HTML page that needs no network: table, charts, examples, losses, how it was made."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from dlip import plots
from dlip.common.errors import UserError
from dlip.common.files import write_output
from dlip.common.text import plural
from dlip.data.answers import normalize
from dlip.plots.html import environment
from dlip.records import frame
from dlip.records.compare import comparable_latencies, latest_runs
from dlip.records.schema import TABLE_SCORES, headline_scores
from dlip.records.write import SAMPLES
from dlip.reports.comparison import COSTS, cell, columns, comparison, conditions, finding, share


def report(records: list[dict], images: dict[int, Image.Image | np.ndarray], path: str | Path) -> None:
    """Write the comparison as one self-contained HTML file.

    records: of one test set, as returned by `dlip.records.read`. images: image_id -> image, or uint8
    `[H, W, 3]`, for the samples of the records. Raises UserError as `comparison`, and if the page cannot be written.
    """
    rows, df, path = comparison(records), comparable_latencies(latest_runs(frame(records))), Path(path)
    axes = [
        (cost, score) for cost in COSTS for score in TABLE_SCORES
        if rows[[cost, score]].notna().all(axis=1).sum() > 1
    ]  # fmt: skip
    terms = [term for term in plots.terms(records) if term != "total"]
    learned = [*headline_scores(plots.learned_scores(records))]
    figures = {f"{cost}/{score}": plots.accuracy_cost(df, cost, score) for cost, score in axes}
    for fig in figures.values():
        fig.update_traces(customdata=None)  # only the app needs the names, for clicks
    figures |= {f"learning/{score}": plots.learning_curves(records, score) for score in learned}
    figures |= {term: plots.loss_curves(records, term) for term in terms}
    (headline, *sentences), heads = finding(records), columns(rows)
    page = environment(Path(__file__).parent).get_template("report.html").render(
        title=f"{records[0]['data']} {records[0]['split']}", headline=headline, finding=" ".join(sentences),
        columns=heads, rows=[_row(row, heads) for _, row in rows.iterrows()], conditions=conditions(records),
        notes=dict.fromkeys((f"{r['name']}, {key}", note) for r in records for key, note in r["notes"].items()),
        costs={cost: plots.LABELS[cost][0] for cost, _ in axes}, scores=[*dict.fromkeys(score for _, score in axes)],
        learned=learned, learning_images=_learning_images(records), examples=_examples(records, rows, images),
        colors=plots.COLORS, roles=rows["role"].unique(), records=records,
        versions="; ".join(dict.fromkeys(map(_versions, records))),
        task_terms=[term for term in terms if "." not in term],
        distillation_terms=[term for term in terms if "." in term],
        configurations={r["config_hash"]: (r["name"], json.dumps(r["config"], indent=1)) for r in records},
        figures={name: _payload(fig) for name, fig in figures.items()}, plotly=Markup(get_plotlyjs()),
    )  # fmt: skip
    try:
        write_output(path, lambda place: place.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the report cannot be written to {path}: {error.strerror}; choose another file") from error


def _payload(fig) -> dict:
    """A figure for the page, which shows its title as a heading."""
    title = fig.layout.title.text.replace("<br>", " ")
    margin = dict(t=12, r=min(64, fig.layout.margin.r), b=48)
    fig.update_layout(title_text=None, showlegend=False, height=None, margin=margin)
    return {"title": title, **json.loads(fig.to_json())}


def _learning_images(records: list[dict]) -> str:
    """The images of evaluations during training: `100 images of scenes val`."""
    found = (record.get("evaluations") for record in records)
    sets = [f"{plural(one['images'], 'image')} of {one['data']} {one['split']}" for one in found if one]
    return "; ".join(dict.fromkeys(sets))


def _row(row: pd.Series, heads: dict[str, str]) -> dict:
    about = f"{plural(row['train_images'], 'image')}, {plural(row['runs'], 'seed')}"
    cells = [(head, cell(row, column), share(row, column)) for column, head in heads.items()]
    return {"name": row["name"], "role": row["role"], "about": about, "cells": cells}


def _examples(records: list[dict], rows: pd.DataFrame, images: dict) -> list[dict]:
    """Images with each model's texts, from its first run with samples, models in the order of the table."""
    with_samples = {(r["name"], r["role"]): r for r in reversed(records) if r["samples"]}
    models = [with_samples[key] for key in zip(rows["name"], rows["role"], strict=True) if key in with_samples]
    by_image = {}  # image_id -> (record, sample) of each model
    for record in models:
        for sample in record["samples"]:
            by_image.setdefault(sample["image_id"], []).append((record, sample))
    return [_example(images.get(image_id), samples) for image_id, samples in [*by_image.items()][:SAMPLES]]


def _example(image, samples: list[tuple[dict, dict]]) -> dict:
    first = samples[0][1]
    questions = []
    for i, (question, truth) in enumerate(zip(first["questions"], first["truth"], strict=True)):
        answers = _by_text((record, sample["answers"][i]) for record, sample in samples if i < len(sample["answers"]))
        checked = [(answer, normalize(answer) == normalize(truth), models) for answer, models in answers.items()]
        questions.append((question, truth, checked))
    return {
        "image": image, "references": first["references"], "questions": questions,
        "captions": _by_text((record, sample["caption"]) for record, sample in samples),
        "reference": next((s["caption"] for r, s in samples if r["role"] == "teacher" and s["caption"]), None),
    }  # fmt: skip


def _by_text(pairs: Iterable[tuple[dict, str | None]]) -> dict[str, list[dict]]:
    """Text -> the records of the models that generated it."""
    records = {}
    for record, text in pairs:
        if text is not None:
            records.setdefault(text, []).append(record)
    return records


def _versions(record: dict) -> str:
    """The versions, device and threads of a run."""
    code = f"dlip {record['code']['version']}"
    if record["code"]["commit"]:
        code += f" ({record['code']['commit'][:10]}{', modified' if record['code']['modified'] else ''})"
    parts = (code, f"torch {record['torch']}", f"transformers {record['transformers']}", f"Python {record['python']}")
    return ", ".join([*parts, f"{record['device']}, {plural(record['threads'], 'thread')}"])
