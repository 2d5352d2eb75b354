"""Grids of runs: each run is done once, resumes where it was interrupted, and is read back as the paper's tables."""

import hashlib
import json
import math
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from dlip import records
from dlip.checkpoints.init_from import parse_source
from dlip.checkpoints.load import locate, model_folder
from dlip.common.errors import UserError, check_at_least
from dlip.common.files import exclusive_lock, read_json
from dlip.common.text import mean_and_spread, plural
from dlip.cost.count import task_macs
from dlip.data.scenes.dataset import Scenes
from dlip.experiments import history, run
from dlip.experiments.analysis import claims
from dlip.experiments.config import DataConfig, EvaluationConfig
from dlip.experiments.grids import FULL, GRIDS, STUDENT, TEACHER_ROW, UNLIKE_PAPER, Grid, Plan, Row, grid
from dlip.experiments.measure import measure_model, remeasured_record
from dlip.models.config import ModelConfig, preset
from dlip.models.fast.precision import native_bf16
from dlip.models.tasks import TASKS
from dlip.records import TABLE_SCORES
from dlip.training.config import TrainConfig
from dlip.training.weights import weights
from dlip.vlm import VLM

RESULTS = "results/ablations.jsonl"
QUICK_RESULTS = "runs/ablate/quick.jsonl"
RUN_MINUTES = {True: 3.0, False: 4.5}
"""Core-minutes of a run of the student's size, all included, by whether the processor has instructions for bf16."""
MEASURE_MINUTES = 4.0
"""Core-minutes in which the teacher is measured."""
NOT_IN_IDENTITY = ("seed", "precision", "workers", "log_every", "save_every", "eval_every", "eval_items")
"""Fields of TrainConfig that do not decide the result, the precision, which is bf16 where the processor has it, and
the seed, which records have apart."""


# --- which run is which -----------------------------------------------------------------------------------------------


def identity(row: Row, plan: Plan) -> str:
    """SHA-256 of everything that decides a row's result except the seed.

    A field of the configuration at its default is skipped, so that a field added later changes no identity. The teacher
    counts for undistilled students too: their records compare their attention with its.
    """
    folder = str(model_folder(plan.teacher))
    teacher = read_json(Path(folder) / "config.json")["model"]
    parts = {
        "teacher": [
            _changed(ModelConfig(), teacher),
            *(_sha256(folder, f) for f in ("tokenizer.json", "model.safetensors")),
        ],
        "test": [_test_fingerprint(plan.test_split), plan.test_images, plan.measure.candidates],
    }
    if plan.measure.generate_limit:
        parts["test"].append(plan.measure.generate_limit)
    if row.precision != "fp32":
        parts["precision"] = f"{row.precision} graphs"
    if row.weights:
        train = _changed(TrainConfig(), row.train(plan, 0).to_dict())
        parts |= {
            "model": _changed(ModelConfig(), preset(row.size).to_dict()),
            "train": {name: value for name, value in train.items() if name not in NOT_IN_IDENTITY},
            "start": [
                [part, _sha256(str(locate(name)), "model.safetensors")]
                for part, name in map(parse_source, row.init_from)
            ],
            "data": ["scenes", row.split, row.images],
        }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _changed(default: ModelConfig | TrainConfig, values: dict) -> dict:
    return {name: value for name, value in values.items() if getattr(default, name) != value}


@cache
def _sha256(folder: str, name: str) -> str:
    return hashlib.sha256(Path(folder, name).read_bytes()).hexdigest()


@cache
def _test_fingerprint(split: str) -> str:
    return Scenes(split).fingerprint()


@dataclass(frozen=True)
class Job:
    """One run of a row."""

    name: str
    """Name in the records, the same in all grids that share the run."""
    row: Row
    seed: int
    plan: Plan
    hash: str
    """`identity` of the row."""
    out: str
    """Folder of all run folders."""
    results: str
    """File that its record is appended to."""

    @property
    def folder(self) -> Path:
        return Path(self.out) / f"{self.hash[:16]}-{self.seed}"

    @property
    def key(self) -> tuple[str, int]:
        return self.hash, self.seed

    @property
    def minutes(self) -> float:
        """Estimated core-minutes: those of the student's size, by FLOPs of the size and steps."""
        if not self.row.weights:
            return MEASURE_MINUTES
        steps = self.row.train(self.plan, self.seed).steps / FULL.train.steps
        return RUN_MINUTES[native_bf16()] * steps * _flops(self.row.size) / _flops(STUDENT)


@cache
def _flops(size: str) -> int:
    """FLOPs of an image, encoded once, with its caption, read and written, and a question."""
    passes = {}
    for task in TASKS:
        for part, macs in task_macs(preset(size), task).items():
            passes[part if part == "image" else (task, part)] = macs.flops
    return sum(passes.values())


def jobs(grids: Sequence[Grid], plan: Plan, seeds: int | None, out: str | Path, results: str | Path) -> list[Job]:
    """The runs of grids, each once: the teacher first, then the first seed of every row of all grids before any second.

    seeds: of every row; None for the plan's.
    """
    first = {}  # a run that grids share has the name of the first of them, whichever are run
    for grid_ in (*GRIDS.values(), *grids):
        for row in grid_.rows:
            first.setdefault(_content(row), (f"{grid_.name}: {row.name}", row))
    runs_ = [
        (*first[_content(row)], seed)
        for seed in range(seeds or max(plan.seeds, plan.other_seeds))
        for grid_ in grids
        for row in grid_.rows
        if row.weights and seed < (seeds or planned_seeds(row, plan))
    ]
    teacher_seed = history.model_record(plan.teacher)["seed"]
    evaluated = [first[_content(row)] for grid_ in grids for row in grid_.rows if not row.weights]
    teachers = [(name, row, teacher_seed) for name, row in [("teacher", TEACHER_ROW), *evaluated]]
    unique = {}
    for name, row, seed in [*teachers, *runs_]:
        job = Job(name, row, seed, plan, identity(row, plan), str(out), str(results))
        unique.setdefault(job.key, job)
    return list(unique.values())


def planned_seeds(row: Row, plan: Plan) -> int:
    """The plan's number of seeds of a row: more where a conclusion compares the same run in any grid."""
    return plan.seeds if _content(row) in _claimed_contents() else plan.other_seeds


@cache
def _claimed_contents() -> frozenset[tuple]:
    claimed = claims.claimed_rows()
    return frozenset(_content(row) for one in GRIDS.values() for row in one.rows if (one.name, row.name) in claimed)


def _content(row: Row) -> tuple:
    settings = tuple(sorted(row.settings.items()))
    losses = tuple(sorted(weights(row.weights).items()))
    return preset(row.size), losses, row.trained, row.images, row.precision, settings


def choose(names: Sequence[str], only: Sequence[str] = ()) -> list[Grid]:
    """The grids of these names ("all": every one), or their rows named in `only`. Raises UserError for an unknown."""
    grids = [grid(one) for one in dict.fromkeys(one for name in names for one in (GRIDS if name == "all" else [name]))]
    if not grids:
        raise UserError(f"there is no grid to run; choose one of {', '.join(GRIDS)} or all")
    if not only:
        return grids
    rows = {one.name: tuple(row for row in one.rows if row.name in only) for one in grids}
    if missing := [name for name in only if not any(row.name == name for chosen in rows.values() for row in chosen)]:
        listed = "; ".join(row.name for one in grids for row in one.rows)
        raise UserError(f"there is no row {missing[0]!r} in {', '.join(rows)}; choose one of {listed}")
    return [replace(one, rows=rows[one.name]) for one in grids if rows[one.name]]


# --- running them -----------------------------------------------------------------------------------------------------


def do(job: Job) -> None:
    """One run, from nothing or from its last checkpoint to its record."""
    extra = {"ablation": {"hash": job.hash}} | ({"quick": True} if job.plan.quick else {})
    if not job.row.weights:
        records.append(_measured_teacher(job) | extra, job.results)
        return
    run.run(
        job.row.experiment(job.plan, job.seed, job.name),
        job.folder,
        job.results,
        progress=False,
        cache=Path(job.out).parent / "cache",
        extra=extra,
    )
    for checkpoint in job.folder.glob("checkpoint-*"):
        checkpoint.unlink()


def _measured_teacher(job: Job) -> dict:
    """The teacher's record in the row's precision, with its metrics on the grids' test images; in fp32 with bounds."""
    plan = job.plan
    config = EvaluationConfig(
        model=plan.teacher,
        precision=job.row.precision,
        data=DataConfig(split=plan.test_split, limit=plan.test_images),
        bounds=job.row.role == "teacher",
        measure=plan.measure,
    )
    record = remeasured_record(config, *measure_model(config, False, VLM.load(plan.teacher)))
    return record | {"name": job.name, "role": job.row.role}


def ablate(
    grids: Sequence[Grid],
    plan: Plan = FULL,
    seeds: int | None = None,
    workers: int = 1,
    out: str | Path = "runs/ablate",
    results: str | Path = RESULTS,
    progress: bool = True,
) -> dict[str, str]:
    """Run what `results` lacks of the grids, and return the runs that failed: name and seed -> reason.

    Interrupted at any moment, it resumes from the last checkpoints when it is called again; a failed run is tried
    again. Raises UserError where another process runs grids in `out`.
    """
    check_at_least(1, workers=workers, seeds=seeds)
    busy = f"another process runs grids in {out}; wait for it, or choose another --out"
    with exclusive_lock(Path(out) / "lock", busy):
        earlier = records.read(results) if Path(results).exists() else []
        done = {(r["ablation"]["hash"], r["seed"]) for r in earlier if "ablation" in r}
        todo = [job for job in jobs(grids, plan, seeds, out, results) if job.key not in done]
        return _run(todo, workers, Path(out), progress) if todo else {}


def _run(todo: list[Job], workers: int, out: Path, progress: bool) -> dict[str, str]:
    """Each job in one of `workers` processes; a failed one leaves a line in the records and ends no other.

    The processor's threads are divided evenly, even where jobs are fewer, because last digits depend on them.
    """
    failed: dict[str, str] = {}
    if progress:
        hours = sum(job.minutes for job in todo) / 60
        print(f"{plural(len(todo), 'run')}, about {hours:.1f} core-hours", file=sys.stderr)
    start = max(1, torch.get_num_threads() // workers), out
    with (
        ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, start) as pool,
        tqdm(total=len(todo), unit="run", smoothing=0, disable=not progress) as bar,
    ):
        running = {pool.submit(do, job): job for job in todo}
        try:
            for future in as_completed(running):
                job, error = running[future], future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise UserError("a worker process was killed, perhaps for memory; the same command resumes")
                if error:
                    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                    failed[f"{job.name}, seed {job.seed}"] = reason
                    bar.set_postfix(failed=len(failed))
                    about = job.name, job.row.role, job.seed, {"hash": job.hash}
                    records.append(records.failed_run(*about, reason), job.results)
                bar.update()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return failed


def _start_worker(threads: int, folder: Path) -> None:
    """Write to `folder`/worker-PID.log, compute in so many threads, and end with the parent, even if it is killed."""

    def end_with_parent() -> None:
        connection.wait([parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    with open(folder / f"worker-{os.getpid()}.log", "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(threads)


# --- reading them back ------------------------------------------------------------------------------------------------


def matched(grid_: str | Grid, run_records: list[dict], plan: Plan = FULL) -> dict[str, list[dict]]:
    """The teacher and a grid's rows by name -> their records."""
    by_hash = defaultdict(list)
    for record in run_records:
        by_hash[record.get("ablation", {}).get("hash")].append(record)
    return {row.name: by_hash[identity(row, plan)] for row in (TEACHER_ROW, *grid(grid_).rows)}


def runs(grid_: str | Grid, run_records: list[dict], plan: Plan = FULL) -> pd.DataFrame:
    """A grid's runs as `dlip.records.frame` gives them, with the names of its rows."""
    by_row = matched(grid_, run_records, plan)
    return records.frame([{**record, "name": name} for name, own in by_row.items() for record in own])


def table(grid_: str | Grid, run_records: list[dict], plan: Plan = FULL) -> pd.DataFrame:
    """A grid as the paper prints it: a row for the teacher and each of the grid's rows, NaN where there is no run yet.

    Columns: name, role; runs (number of seeds); the scores of `TABLE_SCORES` and vqa (mean), <score>_sd (standard
    deviation over seeds), paper_<score> (`Row.paper_score`); params_m, flops_g; wall_s (seconds of training, mean).
    """
    rows, df = (TEACHER_ROW, *grid(grid_).rows), runs(grid_, run_records, plan)
    means = records.summary(df).set_index("name").reindex([row.name for row in rows])
    out = pd.DataFrame({"name": means.index, "role": [row.role for row in rows]}, index=means.index)
    out["runs"] = means["runs"].fillna(0).astype(int)
    for score in (*TABLE_SCORES, "vqa"):
        out[score], out[f"{score}_sd"] = means[score], means[f"{score}_sd"]
        out[f"paper_{score}"] = [row.paper_score(score) for row in rows]
    out[["params_m", "flops_g"]] = means[["params_m", "flops_g"]]
    out["wall_s"] = records.latest_runs(df).groupby("name")["wall_s"].mean().astype(float)
    return out.reset_index(drop=True)


def has_paper_score(rows: pd.DataFrame, score: str) -> bool:
    """Whether the paper has a score of any student of a `table`."""
    return bool(rows.loc[rows["role"] != "teacher", f"paper_{score}"].notna().any())


def text(grid_: Grid, rows: pd.DataFrame, plan: Plan = FULL) -> str:
    """A `table` for a terminal."""
    columns = [["", *rows["name"]]]
    for score in (score for score in TABLE_SCORES if rows[score].notna().any()):
        columns.append([TABLE_SCORES[score], *map(mean_and_spread, rows[score], rows[f"{score}_sd"])])
        if has_paper_score(rows, score):
            paper = rows[f"paper_{score}"]
            columns.append(["paper", *("" if math.isnan(value) else f"{value:.1f}" for value in paper)])
    columns.append(["runs", *map(str, rows["runs"])])
    widths = [max(map(len, column)) for column in columns]
    lines = [f"{grid_.name}: {grid_.question}"]
    for name, *cells in zip(*columns, strict=True):
        numbers = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([f"{name:{widths[0]}}", *numbers]))
    train, counts = plan.train, sorted({row.images for row in grid_.rows if row.weights})
    images = " to ".join(f"{count:,}" for count in dict.fromkeys(counts[:1] + counts[-1:]))
    limit = plan.measure.generate_limit
    texts = f", captions and answers of the first {limit:,}" if limit else ""
    caveat = "too few to mean anything" if plan.quick else "±: standard deviation over seeds"
    lines.append(
        f"{train.steps} steps of {train.batch_size} images, {images or 'no'} training images; {caveat}\n"
        f"{plan.test_images:,} test images{texts}"
    )
    trained = rows["name"].isin([row.name for row in grid_.rows if row.weights])
    minutes = (rows["wall_s"] * rows["runs"])[trained].sum() / 60
    lines.append(f"trained for {minutes:,.0f} minutes in all")
    unlike = UNLIKE_PAPER if any("hr" in row.weights for row in grid_.rows) else ""
    return "\n".join([*lines, *filter(None, [grid_.note, unlike])])
