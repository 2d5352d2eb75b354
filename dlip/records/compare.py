"""Compare records: over seeds, with their teacher, with an undistilled twin."""

import math
import warnings
from collections.abc import Iterable, Mapping

import pandas as pd

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.records.schema import FIGURES, HEADLINE_SCORES, ROLES, SCORES, value_at

TEST_SET = ["data", "split", "test_images"]
"""Columns that records must share for their scores to be comparable."""


def describe_test_sets(df: pd.DataFrame) -> list[str]:
    """The test sets of the runs in words: `scenes test, 1,000 images`."""
    rows = df[TEST_SET].drop_duplicates().itertuples(index=False)
    return [f"{data} {split}" + (f", {plural(count, 'image')}" if count else "") for data, split, count in rows]


def latest_runs(df: pd.DataFrame) -> pd.DataFrame:
    """The last of all runs with the same name, role, test set and seed."""
    return df.sort_values("created", kind="stable").drop_duplicates(["name", "role", *TEST_SET, "seed"], keep="last")


def warn_of_shared_names(df: pd.DataFrame) -> None:
    """Warn where runs of one name have different configurations: of one seed only the last counts, and the mean over
    several may say little."""
    configurations = df.groupby(["name", "role", *TEST_SET])["config_hash"].nunique()
    for name in configurations[configurations > 1].index.unique("name"):
        warnings.warn(
            f"runs named {name} have different configurations; if more differs than seeds and folders, give each its "
            "own --name",
            stacklevel=3,
        )


def comparable_latencies(df: pd.DataFrame) -> pd.DataFrame:
    """`load`'s table with comparable latencies only; the others are NaN.

    Milliseconds measured on different days, beside other processes, cannot be compared. A student's latency is
    therefore its share of the teacher's, both timed in alternation, times the lowest that the teacher had in its own
    runs and beside distilled students. Without a timed teacher the latencies with the same setup as the first one are
    kept as they are. df: one teacher and its students.
    """
    out, timed = df.copy(), df[df["latency_ms"].notna()]
    teachers = timed[timed["role"] == "teacher"].sort_values("latency_ms")
    same = df["latency_setup"].isin(pd.concat([teachers, timed])["latency_setup"].head(1))
    if len(teachers):
        share = df["latency_share"] / 100
        beside_teacher = same & df["role"].isin(("teacher", "distilled"))  # others may have been timed beside another
        out["latency_ms"] = share * (df["latency_ms"] / share)[beside_teacher].min()
    out["latency_ms"] = out["latency_ms"].where(same)
    return out


def measured(df: pd.DataFrame) -> list[str]:
    """The scores that any row has."""
    return [score for score in SCORES if df[score].notna().any()]


def retention(df: pd.DataFrame) -> pd.DataFrame:
    """`load`'s table with every figure in percent of the teacher's on the same test set.

    The teacher's figure is its mean over seeds; without a teacher the result is NaN. Raises UserError if a test set has
    two teachers.
    """
    teachers = latest_runs(df[df["role"] == "teacher"]).groupby(TEST_SET)
    for (data, split, _), names in teachers["name"].unique().items():
        if len(names) > 1:
            raise UserError(f"{data} {split} has the teachers {', '.join(names)}; keep the records of one of them")
    means = teachers[FIGURES].mean().reindex(pd.MultiIndex.from_frame(df[TEST_SET]))
    out = df.copy()
    out[FIGURES] = 100 * df[FIGURES] / means.replace(0, math.nan).to_numpy()
    return out


def floors(record: dict) -> dict[str, float]:
    """Column -> what a blind guesser scores on the test set of a record; empty if it was not measured."""
    floor = {"metrics": value_at(record, "bounds", "floor")}
    found = {column: value_at(floor, *path) for column, path in SCORES.items()}
    return {column: value for column, value in found.items() if value is not None}


def composite(scores: Mapping, teacher: Mapping, floor: Mapping, columns: Iterable[str] = tuple(HEADLINE_SCORES)):
    """Mean over `columns` of the share of the range from floor to teacher, in percent: the floor is 0, the teacher 100.

    The others map columns to values, numbers or arrays that broadcast. Raises KeyError if one lacks a column.
    """
    shares = [(scores[name] - floor[name]) / (teacher[name] - floor[name]) for name in columns]
    return 100 * sum(shares) / len(shares)


def summary(df: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over seeds: one row per name, role and `TEST_SET`; teachers first, then by size.

    Columns: name, role, data, split, test_images; train_images, model, init_from and command of the latest run; runs
    (number of seeds); each figure (mean) and <figure>_sd (sample standard deviation; NaN of a single run). A repeated
    run counts once.
    """
    groups = latest_runs(df).groupby(["name", "role", *TEST_SET])
    about = groups[["train_images", "model", "init_from", "command"]].last()
    spread = groups[FIGURES].std().add_suffix("_sd")
    out = pd.concat([about, groups.size().rename("runs"), groups[FIGURES].mean(), spread], axis=1).reset_index()
    rank = out["role"].map(ROLES.index)
    order = pd.DataFrame({"student": rank > 0, "params": -out["params_m"], "rank": rank})
    return out.loc[order.sort_values(list(order), kind="stable").index].reset_index(drop=True)


def undistilled_twin(rows: pd.DataFrame, student: pd.Series) -> pd.Series | None:
    """The undistilled row of a `summary` with a distilled one's sizes, initial weights and training images, if any."""
    same = ["model", "init_from", "train_images"]
    twins = rows[(rows["role"] == "undistilled") & (rows[same] == student[same]).all(axis=1)]
    return None if twins.empty else twins.iloc[0]
