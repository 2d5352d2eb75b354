"""Tables of records compared: over seeds, with the teacher, with an undistilled twin."""

import math

import pandas as pd

from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.records.outcomes import outcomes as outcomes  # read here, as the rest of a record
from dlip.records.schema import NUMBERS, ROLES

MEASURED = ["data", "split", "test_images"]
"""What records must share for their scores to be compared."""


def sources(df: pd.DataFrame) -> list[str]:
    """What the runs were measured on, each in words: `scenes test, 1,000 pictures`."""
    rows = df[MEASURED].drop_duplicates().itertuples(index=False)
    return [f"{data} {split}" + (f", {plural(count, 'picture')}" if count else "") for data, split, count in rows]


def latest(df: pd.DataFrame) -> pd.DataFrame:
    """Of runs that were repeated with the same name and seed, and measured on the same, the one made last."""
    return df.sort_values("created", kind="stable").drop_duplicates(["name", "role", *MEASURED, "seed"], keep="last")


def timed_alike(df: pd.DataFrame) -> pd.DataFrame:
    """`load`'s table with the latencies that can be compared alone, the others NaN.

    A student's is its share, timed by turns under the same conditions, of the teacher's least one: milliseconds of
    different days, with other work beside them, cannot be compared. Where no teacher was timed they stay as they are
    where they were timed as the first. df: with the teacher of its students alone.
    """
    out, timed = df.copy(), df[df["latency_ms"].notna()]
    teachers = timed[timed["role"] == "teacher"].sort_values("latency_ms")
    if len(teachers):
        out["latency_ms"] = df["latency_share"] / 100 * teachers["latency_ms"].iloc[0]
    first = pd.concat([teachers, timed])["timed"].head(1)
    out["latency_ms"] = out["latency_ms"].where(df["timed"].isin(first))
    return out


def retention(df: pd.DataFrame) -> pd.DataFrame:
    """`load`'s table with every score and cost as percent of the teacher's on the same pictures.

    The teacher's is its mean over seeds; without a teacher the percent is NaN. Raises UserError where two teachers
    were measured on the same data.
    """
    teachers = latest(df[df["role"] == "teacher"]).groupby(MEASURED)
    for (data, split, _), names in teachers["name"].unique().items():
        if len(names) > 1:
            raise UserError(f"{data} {split} has the teachers {', '.join(names)}; keep the records of one of them")
    theirs = teachers[NUMBERS].mean().reindex(pd.MultiIndex.from_frame(df[MEASURED]))
    out = df.copy()
    out[NUMBERS] = 100 * df[NUMBERS] / theirs.replace(0, math.nan).to_numpy()
    return out


def summary(df: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seeds: one row for each name, role and `MEASURED`; teachers first, then by size.

    Columns: name, role, data, split, test_images; train_images, model, init_from and command of the run made last; runs
    (how many seeds); each score and cost (mean) and <it>_sd (sample standard deviation; NaN of a single run). A
    repeated run counts once.
    """
    groups = latest(df).groupby(["name", "role", *MEASURED])
    about = groups[["train_images", "model", "init_from", "command"]].last()
    spread = groups[NUMBERS].std().add_suffix("_sd")
    out = pd.concat([about, groups.size().rename("runs"), groups[NUMBERS].mean(), spread], axis=1).reset_index()
    rank = out["role"].map(ROLES.index)
    order = pd.DataFrame({"student": rank > 0, "params": -out["params_m"], "rank": rank})
    return out.loc[order.sort_values(list(order), kind="stable").index].reset_index(drop=True)


def twin(rows: pd.DataFrame, student: pd.Series) -> pd.Series | None:
    """The undistilled row of a `summary` that is likest to a distilled one: in sizes, pictures, parameters.

    None where no such student began at the same weights.
    """
    alone = rows[(rows["role"] == "undistilled") & (rows["init_from"] == student["init_from"])]
    if alone.empty:
        return None
    unlike = [alone[column] != student[column] for column in ("model", "train_images")]
    unlike = pd.concat([*unlike, (alone["params_m"] - student["params_m"]).abs()], axis=1)
    return alone.loc[unlike.sort_values(list(unlike)).index[0]]
