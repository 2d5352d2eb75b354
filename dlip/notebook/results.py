"""Records shown in notebooks: charts, tables, verdicts, advice."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from dlip import plots
from dlip.common.errors import UserError
from dlip.common.text import mean_and_spread, plural
from dlip.records import read
from dlip.records.compare import summary
from dlip.records.schema import TABLE_SCORES

RERUN_RESULTS = "runs/notebooks/ablations.jsonl"
"""Records of a notebook that reruns its grids; the shipped records are not changed."""


def records(*grids: str, rerun: bool = False, path: str | Path | None = None) -> list[dict]:
    """The shipped records; prints how many runs of each grid are among them.

    rerun: first runs the grids, into a file of their own, and resumes there when called again. If the file is missing
    there are no records, and the printed line names the command that makes them.
    """
    from dlip.experiments import ablation

    if rerun:
        path = path or RERUN_RESULTS
        failed = ablation.ablate([ablation.grid(name) for name in grids], workers=os.cpu_count() or 1, results=path)
        for name, reason in failed.items():
            print(f"{name} failed: {reason}")
    path = Path(path or ablation.RESULTS)
    loaded = read(path) if path.exists() else []
    for name in grids:
        by_row = ablation.matched(name, loaded)
        trained = [row.name for row in ablation.grid(name).rows if row.weights]  # a teacher in int8 is not
        students = {row: by_row[row] for row in trained if by_row[row]}
        if not students:
            print(f"{path} holds no run of the grid {name} yet; `dlip ablate {name}` or RERUN = True makes them.")
            continue
        made = [run for runs in students.values() for run in runs]
        hours = sum(run["wall_s"] for run in made) / 3600
        runs = plural(len(made), "run")
        print(f"{name}: {runs} of {len(students)} of {len(trained)} students, {hours:.1f} hours of training")
    return loaded


def shipped_records(rerun: bool = False) -> list[dict]:
    """The records of the shipped models; with rerun, evaluated again on this machine."""
    from dlip.checkpoints.load import built_in_models
    from dlip.experiments.history import model_record

    made = {name: model_record(name) for name in built_in_models("scenes")}
    if rerun:
        from dlip import data
        from dlip.experiments.measure import measure
        from dlip.vlm import VLM

        teacher = VLM.load("scenes/teacher")
        for name, record in made.items():
            compared = None if name == teacher.name else teacher
            figures, _ = measure(VLM.load(name), data.open("scenes", record["split"]), teacher=compared)
            record["metrics"] = {task: figures.get(task) for task in record["metrics"]}
            record["efficiency"] = figures["efficiency"]
    return list(made.values())


def chart(draw: Callable, *arguments, **options):
    """The result of `draw`, or a sentence about what the records lack for it."""
    try:
        return draw(*arguments, **options)
    except UserError as error:
        return Markdown(f"*Nothing to show yet: {error}.*")


def gain_chart(grid: str, records: list[dict], score: str, base: str = "no distillation"):
    """Gains of the rows of a grid over its first row as bars, or a sentence about what is missing."""
    from dlip.experiments.analysis import effects

    return chart(plots.gain_bars, effects.gains(grid, records, score), score, base)


def grid_table(grid: str, records: list[dict]):
    """A grid as in the paper: mean ± standard deviation over seeds, beside the paper's figures."""
    from dlip.experiments import ablation

    rows = ablation.table(grid, records)
    if not rows["runs"].sum():
        return Markdown(f"*Nothing to show yet: there is no run of the grid {grid}.*")
    columns = {}
    for score, name in TABLE_SCORES.items():
        if rows[score].isna().all():
            continue
        pairs = zip(rows[score], rows[f"{score}_sd"], strict=True)
        columns[name, "here"] = [_figure(mean, spread) for mean, spread in pairs]
        if ablation.has_paper_score(rows, score):
            columns[name, "paper"] = [_figure(value) for value in rows[f"paper_{score}"]]
    columns["parameters", "M"] = [_figure(value, digits=2) for value in rows["params_m"]]
    return pd.DataFrame(columns, index=list(rows["name"]))


def column_table(grid: str, records: list[dict], *columns: str):
    """Columns of the records (see `dlip.records`) by rows of a grid: mean ± standard deviation over seeds."""
    from dlip.experiments import ablation

    rows = summary(ablation.runs(grid, records)).set_index("name")
    if rows.empty:
        return Markdown(f"*Nothing to show yet: there is no run of the grid {grid}.*")
    rows = rows.reindex(["teacher", *(row.name for row in ablation.grid(grid).rows)])
    texts = {c: [_figure(*pair, 2) for pair in zip(rows[c], rows[f"{c}_sd"], strict=True)] for c in columns}
    return pd.DataFrame(texts, index=list(rows.index))


def _figure(mean: float, spread: float = math.nan, digits: int = 1) -> str:
    return "" if math.isnan(mean) else mean_and_spread(mean, spread, digits).replace(" ", "\u00a0")


def verdicts(records: list[dict], *numbers: int):
    """The paper's conclusions with these numbers, tested on the records (`dlip.experiments.analysis.conclusions`)."""
    from dlip.experiments.analysis.conclusions import READING, claim_text, conclusions, preliminary
    from dlip.experiments.grids import UNLIKE_PAPER

    rows, lines = conclusions(records), []
    rows = rows[rows["number"].isin(numbers)]
    for (number, statement, verdict), claims in rows.groupby(["number", "statement", "verdict"], sort=False):
        lines.append(f"**{number}. {statement}** → **{verdict}**{preliminary(verdict, claims)}\n")
        lines += [f"- {row['comparison']}: {claim_text(row)}" for _, row in claims.iterrows()] + [""]
    lines.append(f"{READING} {UNLIKE_PAPER}.")
    return Markdown("\n".join(lines))


def findings(*charts):
    """The titles of charts, which state their findings, as a list."""
    titles = (fig.layout.title.text.replace("<br>", " ") for fig in charts if hasattr(fig, "layout"))
    return Markdown("\n".join(f"- {title}." for title in titles) or "*Nothing found yet: the records are missing.*")


def advice(records: list[dict], params_m: float):
    """The best known student with at most this many million parameters (`dlip.experiments.advise`)."""
    from dlip.experiments.advise import advise, text

    if not records:
        return Markdown("*Nothing to advise yet: the records are missing.*")
    return Markdown(f"```\n{text(advise(records, {'params_m': params_m}))}\n```")
