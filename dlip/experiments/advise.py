"""Choose the best student within a budget by its run records, and list what the records leave open."""

import math

import pandas as pd

from dlip.common.errors import UserError
from dlip.common.text import plural, three_digits
from dlip.plots.style import LABELS
from dlip.records import TABLE_SCORES, frame
from dlip.records.compare import (
    comparable_latencies,
    describe_test_sets,
    latest_runs,
    measured,
    retention,
    summary,
    warn_of_shared_names,
)
from dlip.records.schema import SCORES, headline_scores

COSTS = {"params_m": ("M parameters", "parameters"), "flops_g": ("GFLOPs", "FLOPs"), "latency_ms": ("ms", "latency")}
"""Cost -> (unit, name)."""


def advise(records: list[dict], budget: dict[str, float], metric: str = "all") -> dict:
    """The student that keeps most of its teacher's scores within `budget` (cost of `COSTS` -> maximum).

    records: as returned by `dlip.records.read`, of one test set. metric: of `SCORES`, or "all", the minimum kept over
    the `headline_scores` of the records. Latencies are those of `dlip.records.compare.comparable_latencies`.

    Returns {"budget", "metric", "latency_setup", "student", "runner_up", "cannot_tell"}: a student is None or {"name",
    "role", "model", "seeds", "costs", "costs_kept", "scores", "kept", "kept_sd", "command"}, where kept is in percent
    of the teacher's, by score and "all"; latency_setup says how latencies were measured, None if there are none;
    cannot_tell is a list of sentences. Raises UserError without a budget, for an unknown metric, and for records of
    several test sets or teachers.
    """
    if not budget:
        raise UserError("advice needs a budget; give --max-params, --max-gflops or --max-latency")
    if wrong := [limit for limit in budget.values() if not 0 < limit < math.inf]:
        raise UserError(f"the budget is {wrong[0]:g}; give a finite positive number")
    if metric not in (*SCORES, "all"):
        raise UserError(f"there is no metric {metric!r}; choose one of {', '.join(SCORES)} or all")
    records = [record for record in records if not record.get("quick")]
    every = frame(records)
    df = latest_runs(every)
    if len(test_sets := describe_test_sets(df)) > 1:
        raise UserError(f"the records are of {'; '.join(test_sets)}; choose with --data, --split and --test-images")
    df = comparable_latencies(df)
    warn_of_shared_names(every)
    rows, doubts = _students(df), []
    setup = next(iter(df.dropna(subset=["latency_ms"])["latency_setup"]), None)
    out = {
        "budget": budget,
        "metric": metric,
        "latency_setup": setup,
        "student": None,
        "runner_up": None,
        "cannot_tell": doubts,
    }
    if "latency_ms" in budget and (doubt := _latency_problem(df)):
        doubts.append(doubt)
        return out
    within = rows[(rows[list(budget)] <= (1 + 1e-9) * pd.Series(budget)).all(axis=1)]  # means over seeds are rounded
    if within.empty:
        doubts.append(f"no student in the records is within {_budget(budget)}" + _nearest(rows, budget))
        return out
    if not (df["role"] == "teacher").any():
        doubts.append("no record of the teacher, so what a student keeps of its scores is unknown")
        if metric == "all":
            doubts.append("scores of different kinds have no common scale without a teacher; choose one --metric")
            return out
        value, spread = metric, f"{metric}_sd"
    else:
        value, spread = f"{metric}_kept", f"{metric}_kept_sd"
    if unscored := int(within[value].isna().sum()):
        within_budget = f"{plural(len(within), 'student')} within the budget"
        doubts.append(f"the metric is missing from {unscored} of {within_budget}")
    ranked = within.dropna(subset=[value]).sort_values([value, "params_m"], ascending=[False, True])
    if ranked.empty:
        return out
    best = ranked.iloc[0]
    scores = list(TABLE_SCORES if metric == "all" else dict.fromkeys([*TABLE_SCORES, metric]))
    out["student"] = _describe(best, scores)
    if len(ranked) > 1:
        second = ranked.iloc[1]
        out["runner_up"] = _describe(second, scores)
        lead, noise = best[value] - second[value], math.hypot(best[spread], second[spread])
        if math.isnan(noise):
            doubts.append(f'whether it is better than "{second["name"]}" ({lead:+.1f} points): one has a single seed')
        elif lead <= noise:
            doubts.append(
                f'whether it is better than "{second["name"]}": the lead of {lead:.1f} points is within the spread '
                f"over seeds, {noise:.1f}"
            )
    return out


def _students(df: pd.DataFrame) -> pd.DataFrame:
    """`dlip.records.compare.summary` of the students, with <figure>_kept and <figure>_kept_sd, also of "all"."""
    rows = summary(df)
    kept, headline = retention(df), [*headline_scores(measured(df))]
    kept["all"] = kept[headline].min(axis=1, skipna=False)
    groups = kept.groupby(["name", "role"])
    rows = rows.join(groups[[*SCORES, *COSTS]].mean().add_suffix("_kept"), on=["name", "role"])
    rows["all_kept"] = rows[[f"{score}_kept" for score in headline]].min(axis=1, skipna=False)
    rows = rows.join(groups[[*SCORES, "all", *COSTS]].std().add_suffix("_kept_sd"), on=["name", "role"])
    return rows[rows["role"] != "teacher"]


def _latency_problem(df: pd.DataFrame) -> str | None:
    """Why the latencies of runs cannot be compared."""
    setups = [setup for setup in df["latency_setup"].unique() if setup]
    if len(setups) > 1:
        return f"latencies were measured in different ways ({'; '.join(setups)}), and cannot be compared"
    if not setups:
        return "no record has a latency; dlip evaluate measures it"
    if df.loc[df["role"] != "teacher", "latency_ms"].isna().all():
        return "no student was timed beside its teacher, as dlip distill does, so latencies cannot be compared"
    return None


def _budget(budget: dict[str, float]) -> str:
    return " and ".join(f"{limit:g} {COSTS[cost][0]}" for cost, limit in budget.items())


def _nearest(rows: pd.DataFrame, budget: dict[str, float]) -> str:
    minima = {cost: rows[cost].min() for cost in budget if rows[cost].notna().any()}
    return "".join(f"; the minimum is {value:.6g} {COSTS[cost][0]}" for cost, value in minima.items())


def _describe(row: pd.Series, scores: list[str]) -> dict:
    def figures(columns, suffix: str = "") -> dict:
        values = {column: row[f"{column}{suffix}"] for column in columns}
        return {column: None if math.isnan(value) else float(value) for column, value in values.items()}

    return {
        "name": row["name"],
        "role": row["role"],
        "model": row["model"],
        "seeds": int(row["runs"]),
        "costs": figures(COSTS),
        "costs_kept": figures(COSTS, "_kept"),
        "scores": figures(scores),
        "kept": figures((*scores, "all"), "_kept"),
        "kept_sd": figures((*scores, "all"), "_kept_sd"),
        "command": row["command"],
    }


def text(advice: dict) -> str:
    """The result of `advise` for a terminal."""
    lines, best = [], advice["student"]
    if best:
        seeds = plural(best["seeds"], "seed")
        about = f'"{best["name"]}" ({best["role"]}, {seeds}; {best["model"]})'
        lines.append(f"Within {_budget(advice['budget'])}: {about}")
        for score, value in best["scores"].items():
            name, kept, spread = TABLE_SCORES.get(score, LABELS[score][0]), best["kept"][score], best["kept_sd"][score]
            cell = "not measured" if value is None else f"{value:.1f}"
            cell += "" if kept is None else f", {kept:.1f}%" + ("" if spread is None else f" ±{spread:.1f}") + " kept"
            lines.append(f"  {name:8} {cell}")
        for cost, (unit, name) in COSTS.items():
            if best["costs"][cost] is not None:
                share = best["costs_kept"][cost]
                relative = "" if share is None else f", {share:.0f}% of the teacher's {name}"
                setup = f" ({advice['latency_setup']})" if cost == "latency_ms" else ""
                lines.append(f"  {three_digits(best['costs'][cost])} {unit}{relative}{setup}")
        how = "measured" if best["command"].startswith("dlip evaluate") else "trained"
        lines.append(f"  {how} by: {best['command']}")
    lines += [f"The records cannot tell: {doubt}." for doubt in advice["cannot_tell"]]
    return "\n".join(lines)
