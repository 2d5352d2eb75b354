"""The fixed parts of a notebook: its opening card, its records, its tables and verdicts."""

import math
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import dlip
from dlip.common.errors import UserError
from dlip.common.files import read_json
from dlip.common.text import plural

RERUN_RESULTS = "runs/notebooks/ablations.jsonl"
"""Where the runs of a notebook that reruns everything go; the shipped records stay as they are."""
PACKAGES = ("torch", "transformers", "plotly")
PLOTLY = "application/vnd.plotly.v1+json"


def opening():
    """Sets the page up and returns its card: what it runs with.

    Paths count from the repository, `!dlip` is this environment's, figures are shown as data (no copy of plotly in the
    file, and not by plotly's own way, whose imports take a second), and a user's mistake is said in one sentence.
    """
    from IPython import get_ipython
    from IPython.display import Markdown

    if Path.cwd().name == "notebooks":
        os.chdir("..")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers has one for every file it writes
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.ipython_display_formatter.for_type_by_name("plotly.graph_objs._figure", "Figure", _show)
        shell.set_custom_exc((UserError,), _one_sentence)
    versions = " · ".join(f"{name} {version(name)}" for name in PACKAGES)
    short = " · a short run: the live cell shows that it works, not what it can reach" * bool(os.getenv("DLIP_QUICK"))
    cores = plural(os.cpu_count(), "core")
    return Markdown(f"**dlip {dlip.__version__}** · {versions} · Python {platform.python_version()} · {cores}{short}")


def _show(figure) -> None:
    from IPython.display import display

    from dlip.notebook.controls import bundle

    display(bundle(figure), raw=True)


def _one_sentence(shell, kind, error, traceback, tb_offset=None) -> list[str]:
    """A user's mistake, as IPython shows what was raised."""
    print(f"dlip: {error}", file=sys.stderr)
    return [str(error)]


def records(*grids: str, rerun: bool = False, path: str | Path | None = None) -> list[dict]:
    """The shipped records, and a printed sentence of how many runs of these grids are among them.

    rerun: does every run of the grids first, in a file of its own, and goes on there when called again. Where the file
    is missing there are no records, and the sentence says what makes them.
    """
    from dlip.experiments import ablation
    from dlip.records import read

    if rerun:
        path = path or RERUN_RESULTS
        ablation.ablate([ablation.grid(name) for name in grids], workers=os.cpu_count() or 1, results=path)
    path = Path(path or ablation.RESULTS)
    found = read(path) if path.exists() else []
    for name in grids:
        by_row = ablation.matched(name, found)
        students = {row: made for row, made in by_row.items() if made and row != "teacher"}
        if not students:
            print(f"{path} holds no run of the grid {name} yet; `dlip ablate {name}` or RERUN = True makes them.")
            continue
        made = [run for runs in students.values() for run in runs]
        hours = sum(run["wall_s"] for run in made) / 3600
        runs = plural(len(made), "run")
        print(f"{name}: {runs} of {len(students)} of {len(by_row) - 1} students, {hours:.1f} hours of training")
    return found


def shipped(rerun: bool = False) -> list[dict]:
    """The records of the shipped models; with rerun, their figures as measured here and now."""
    from dlip.checkpoints.load import BUILT_IN, built_in_models
    from dlip.records.schema import upgrade

    made = {name: upgrade(read_json(BUILT_IN / name / "record.json")) for name in built_in_models()}
    if rerun:
        from dlip import data
        from dlip.experiments import run as experiment
        from dlip.vlm import VLM

        for name, record in made.items():
            figures, _ = experiment.measure(VLM.load(name), data.open("scenes", record["split"]))
            record["metrics"] = {task: figures.get(task) for task in record["metrics"]}
            record["efficiency"] = figures["efficiency"]
    return list(made.values())


def chart(draw: Callable, *arguments, **options):
    """What `draw` returns; where the records lack what it needs, the sentence that says so."""
    from IPython.display import Markdown

    try:
        return draw(*arguments, **options)
    except UserError as lack:
        return Markdown(f"*Nothing to show yet: {lack}.*")


def gains(grid: str, found: list[dict], score: str, base: str = "no distillation"):
    """What each row of a grid gains over its first one, as bars, or the sentence that says what is missing."""
    from dlip import plots
    from dlip.experiments import effects

    return chart(plots.gain_bars, effects.gains(grid, found, score), score, base)


def table(grid: str, found: list[dict]):
    """A grid in the paper's shape: mean ± standard deviation over seeds, beside it the paper's where there is one."""
    import pandas as pd
    from IPython.display import Markdown

    from dlip.experiments import ablation

    rows = ablation.table(grid, found)
    if not rows["runs"].sum():
        return Markdown(f"*Nothing to show yet: there is no run of the grid {grid}.*")
    columns = {}
    for score, name in ablation.SCORES.items():
        pairs = zip(rows[score], rows[f"{score}_sd"], strict=True)
        columns[name, "here"] = [_figure(mean, spread) for mean, spread in pairs]
        if rows.loc[rows["role"] != "teacher", f"paper_{score}"].notna().any():
            columns[name, "paper"] = [_figure(value) for value in rows[f"paper_{score}"]]
    columns["parameters", "M"] = [_figure(value, digits=2) for value in rows["params_m"]]
    return pd.DataFrame(columns, index=list(rows["name"]))


def measures(grid: str, found: list[dict], *columns: str):
    """Any columns of the records (dlip/records/read.py) by rows of a grid: mean ± standard deviation over seeds."""
    import pandas as pd
    from IPython.display import Markdown

    from dlip.experiments import ablation
    from dlip.records.compare import summary

    rows = summary(ablation.runs(grid, found)).set_index("name")
    if rows.empty:
        return Markdown(f"*Nothing to show yet: there is no run of the grid {grid}.*")
    rows = rows.reindex(["teacher", *(row.name for row in ablation.grid(grid).rows)])
    texts = {c: [_figure(*pair, 2) for pair in zip(rows[c], rows[f"{c}_sd"], strict=True)] for c in columns}
    return pd.DataFrame(texts, index=list(rows.index))


def _figure(mean: float, spread: float = math.nan, digits: int = 1) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.{digits}f}" + ("" if math.isnan(spread) else f"\u00a0±{spread:.{digits}f}")


def verdicts(found: list[dict], *numbers: int):
    """The paper's conclusions of these numbers, judged by the records (`dlip.experiments.conclusions`)."""
    from IPython.display import Markdown

    from dlip.experiments.conclusions import conclusions, figures
    from dlip.experiments.grids import UNLIKE

    rows, lines = conclusions(found), []
    rows = rows[rows["number"].isin(numbers)]
    for (number, statement, verdict), claims in rows.groupby(["number", "statement", "verdict"], sort=False):
        lines.append(f"**{number}. {statement}** → **{verdict}**\n")
        lines += [f"- {row['comparison']}: {figures(row)}" for _, row in claims.iterrows()] + [""]
    lines.append(f"An interval is one of 95% for all claims of its conclusion together. {UNLIKE}.")
    return Markdown("\n".join(lines))


def findings(*charts):
    """The titles of charts, which say what was found, as a list."""
    from IPython.display import Markdown

    titles = (fig.layout.title.text.replace("<br>", " ") for fig in charts if hasattr(fig, "layout"))
    return Markdown("\n".join(f"- {title}." for title in titles) or "*Nothing found yet: the records are missing.*")


def advice(found: list[dict], params_m: float):
    """The best student known with at most so many million parameters (`dlip.experiments.advise`)."""
    from IPython.display import Markdown

    from dlip.experiments.advise import advise, text

    if not found:
        return Markdown("*Nothing to advise yet: the records are missing.*")
    return Markdown(f"```\n{text(advise(found, {'params_m': params_m}))}\n```")
