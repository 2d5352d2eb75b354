"""Grids of runs: each done once, wherever the work was stopped, and read back as the paper's tables."""

import hashlib
import json
import math
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from dlip import data, records
from dlip.checkpoints.load import model_folder
from dlip.common.errors import UserError
from dlip.common.files import exclusive_lock, read_json
from dlip.cost.count import task_macs
from dlip.data.scenes.dataset import SPLITS, Scenes
from dlip.experiments import history, run
from dlip.experiments.config import LATENCY_REPEATS
from dlip.experiments.grids import FULL, GRIDS, PICTURES, UNLIKE, WHOLE, Grid, Plan, Row, grid
from dlip.experiments.workers import work
from dlip.models.config import ModelConfig, preset
from dlip.models.fast.precision import warn_if_emulated
from dlip.models.tasks import TASKS
from dlip.training.config import TrainConfig
from dlip.training.run_folder import Run
from dlip.training.terms import weights
from dlip.vlm import VLM

RESULTS = "results/ablations.jsonl"
QUICK_RESULTS = "runs/ablate/quick.jsonl"
HOUSEKEEPING = ("seed", "workers", "log_every", "save_every", "eval_every", "eval_items")
"""Fields of TrainConfig that do not decide what is learnt, but for the seed, which is told apart."""
SCORES = {"tr1": "TR@1", "ir1": "IR@1", "cider": "CIDEr", "vqa": "VQA"}


# --- which run is which -----------------------------------------------------------------------------------------------


def identity(row: Row, plan: Plan) -> str:
    """SHA-256 of everything that decides a row's result but the seed.

    A field of the configuration at its default is left out, so that one which is added later changes nothing. The
    teacher counts for students that learn alone too: their records hold how far their attention is from its.
    """
    folder = str(model_folder(plan.teacher))
    theirs = read_json(Path(folder) / "config.json")["model"]
    about = {
        "teacher": [
            _changed(ModelConfig(), theirs),
            *(_sha(folder, f) for f in ("tokenizer.json", "model.safetensors")),
        ],
        "test": [_test_pictures(), plan.test_images, plan.candidates],
    }
    if row.role != "teacher":
        train = _changed(TrainConfig(), row.train(plan, 0).to_dict())
        about |= {
            "model": _changed(ModelConfig(), preset(row.size).to_dict()),
            "train": {k: v for k, v in train.items() if k not in HOUSEKEEPING},
            "start": row.start,
            "data": ["scenes", row.split, row.pictures],
        }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _changed(default: ModelConfig | TrainConfig, values: dict) -> dict:
    return {name: value for name, value in values.items() if getattr(default, name) != value}


@cache
def _sha(folder: str, name: str) -> str:
    return hashlib.sha256(Path(folder, name).read_bytes()).hexdigest()


@cache
def _test_pictures() -> str:
    return Scenes("test").fingerprint()


def command(row: Row, plan: Plan, seed: int) -> str:
    """The command that makes a row's student."""
    words = {"distilled": ["distill", "--teacher"], "undistilled": ["train", "--tokenizer"]}[row.role]
    words = ["dlip", *words, plan.teacher, "--size", row.size, "--weights", row.weights]
    words += [word for part in row.start for word in ("--start", f"{part}={plan.teacher}")]
    words += ["--split", row.split] + (["--limit", str(row.pictures)] if row.pictures < SPLITS[row.split] else [])
    words += ["--test-limit", str(plan.test_images), *measuring(plan)]
    words += row.train(plan, seed).options()
    return shlex.join([*words, "--out", f"runs/{row.name.replace(', ', '-').replace(' ', '-')}-{seed}"])


def measuring(plan: Plan) -> list[str]:
    """The options that say how a plan's models are measured."""
    repeats = plan.latency_repeats
    timed = [] if repeats == LATENCY_REPEATS else ["--latency-repeats", str(repeats)]
    return ["--candidates", str(plan.candidates), *timed]


@dataclass(frozen=True)
class Job:
    """One run of a row."""

    name: str
    """In the records, the same in all grids that share it."""
    row: Row
    seed: int
    plan: Plan
    hash: str
    out: str
    results: str

    @property
    def folder(self) -> Path:
        return Path(self.out) / f"{self.hash[:16]}-{self.seed}"

    @property
    def key(self) -> tuple[str, int]:
        return self.hash, self.seed

    def cost(self) -> tuple[float, float]:
        """FLOPs of training and of measuring, roughly."""
        pair = _flops(self.row.size if self.row.role != "teacher" else "scenes-teacher")
        shown = self.plan.train.steps * self.plan.train.batch_size * (self.row.role != "teacher")
        trained = 3 * shown * pair
        if self.row.role == "distilled" and not self.row.train(self.plan, self.seed).cache:
            trained += shown * _flops("scenes-teacher")
        return trained, 20 * self.plan.test_images * pair  # candidates of a picture and of its texts; words are short

    def done(self) -> float:
        """FLOPs done so far, by the last line of the run's log."""
        trained, _ = self.cost()
        rows = Run(self.folder).rows()
        return trained * rows[-1]["step"] / self.plan.train.steps if rows else 0.0


def _flops(size: str) -> int:
    """Of a picture, which is encoded once, with its caption, which is read and written, and a question."""
    passes = {
        part if part == "image" else (task, part): macs.flops
        for task in TASKS for part, macs in task_macs(preset(size), task).items()
    }  # fmt: skip
    return sum(passes.values())


def jobs(grids: Sequence[Grid], plan: Plan, seeds: int, out: str | Path, results: str | Path) -> list[Job]:
    """The runs of grids, each once, the teacher first; of a grid the first seed of every row before any second."""
    first = {}  # a run that two grids share is in every call the one that the first of them describes
    for some in (*GRIDS.values(), *grids):
        for row in some.rows:
            first.setdefault(_content(row), (f"{some.name}: {row.name}", row))
    asked = [(*first[_content(row)], seed) for some in grids for seed in range(seeds) for row in some.rows]
    made = history.made(plan.teacher)["seed"]
    found = {}
    for name, row, seed in [("teacher", WHOLE, made), *asked]:
        job = Job(name, row, seed, plan, identity(row, plan), str(out), str(results))
        found.setdefault(job.key, job)
    return list(found.values())


def _content(row: Row) -> tuple:
    return preset(row.size), tuple(sorted(weights(row.weights).items())), row.start, row.pictures


def choose(names: Sequence[str], only: Sequence[str] = ()) -> list[Grid]:
    """The grids of these names ("all": every one), or their rows named in `only`. Raises UserError for an unknown."""
    grids = [some for name in names for some in (GRIDS.values() if name == "all" else [grid(name)])]
    if not grids:
        raise UserError(f"there is no grid to run; choose one of {', '.join(GRIDS)} or all")
    if not only:
        return grids
    rows = {some.name: tuple(row for row in some.rows if row.name in only) for some in grids}
    if missing := [name for name in only if not any(row.name == name for some in rows.values() for row in some)]:
        listed = "; ".join(row.name for some in grids for row in some.rows)
        raise UserError(f"there is no row {missing[0]!r} in {', '.join(rows)}; choose one of {listed}")
    return [replace(some, rows=rows[some.name]) for some in grids if rows[some.name]]


# --- doing them -------------------------------------------------------------------------------------------------------


def do(job: Job) -> None:
    """One run, from nothing or from its last checkpoint to its record."""
    extra = {"ablation": {"hash": job.hash}} | ({"quick": True} if job.plan.quick else {})
    if job.row.role == "teacher":
        records.append(_measured(job) | extra, job.results)
        return
    distils = job.row.role == "distilled"
    limit = job.row.pictures if job.row.pictures < SPLITS[job.row.split] else None
    run.run(
        name=job.name, size=job.row.size, teacher=job.plan.teacher if distils else None,
        tokenizer=None if distils else job.plan.teacher, start=[f"{part}={job.plan.teacher}" for part in job.row.start],
        data="scenes", split=job.row.split, limit=limit, on_error="fatal", test_split="test",
        config=job.row.train(job.plan, job.seed), folder=job.folder, results=job.results,
        command=command(job.row, job.plan, job.seed), role=job.row.role, progress=False,
        cache=Path(job.out).parent / "teacher-cache", test_limit=job.plan.test_images,
        candidates=job.plan.candidates, latency_repeats=job.plan.latency_repeats, extra=extra,
    )  # fmt: skip
    for checkpoint in job.folder.glob("checkpoint-*"):
        checkpoint.unlink()


def _measured(job: Job) -> dict:
    """The teacher's record with its figures on the grids' test pictures."""
    plan = job.plan
    test, teacher = data.open("scenes", "test", plan.test_images), VLM.load(plan.teacher)
    figures, items = run.measure(
        teacher, test, plan.latency_repeats, progress=False, teacher=teacher, k=plan.candidates
    )
    words = ["dlip", "evaluate", "--model", plan.teacher, "--limit", str(plan.test_images), *measuring(plan)]
    record = run.again(plan.teacher, teacher, shlex.join(words), figures, items, test)
    return record | {"name": job.name}


def ablate(
    grids: Sequence[Grid],
    plan: Plan = FULL,
    seeds: int | None = None,
    workers: int = 1,
    out: str | Path = "runs/ablate",
    results: str | Path = RESULTS,
    progress: bool = True,
) -> dict[str, str]:
    """Does the runs of grids that `results` lacks, and returns those that failed: name and seed -> why.

    Stopped at any moment, it goes on from the last checkpoints when it is called again; a run that failed is tried
    again. Raises UserError where another process is at it.
    """
    if workers < 1 or (seeds is not None and seeds < 1):
        raise UserError(f"{seeds} seeds by {workers} workers is no work; give both as positive whole numbers")
    busy = f"another process runs grids in {out}; wait for it, or choose another --out"
    with exclusive_lock(Path(out) / "lock", busy):
        warn_if_emulated(plan.train.precision, "grids train in bf16, --quick ones do not")
        done = {(r["ablation"]["hash"], r["seed"]) for r in _read(results) if "ablation" in r}
        todo = [job for job in jobs(grids, plan, seeds or plan.seeds, out, results) if job.key not in done]
        return _run(todo, workers, Path(out), progress) if todo else {}


def _run(todo: list[Job], workers: int, out: Path, progress: bool) -> dict[str, str]:
    failed, ended, worth = {}, 0.0, 0
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left"
    begun = sum(job.done() for job in todo)  # in earlier sessions
    total = sum(sum(job.cost()) for job in todo)
    with tqdm(total=total, initial=begun, smoothing=0, bar_format=layout, disable=not progress) as bar:

        def show(running: list[Job]) -> None:
            bar.set_description(f"{worth} of {len(todo)} runs" + f", {len(failed)} failed" * bool(failed), False)
            bar.n = max(bar.n, ended + sum(job.done() for job in running))
            bar.refresh()

        show([])
        for job, reason in work(do, todo, workers, out, show):
            worth += 1
            if reason is None:
                ended += sum(job.cost())
            else:
                bar.total -= sum(job.cost())
                failed[f"{job.name}, seed {job.seed}"] = reason
                about = job.name, job.row.role, job.seed, {"hash": job.hash}
                records.append(records.failed_run(*about, reason), job.results)
    return failed


def _read(results: str | Path) -> list[dict]:
    return records.read(results) if Path(results).exists() else []


# --- reading them back ------------------------------------------------------------------------------------------------


def matched(some: str | Grid, found: list[dict], plan: Plan = FULL) -> dict[str, list[dict]]:
    """The teacher and a grid's rows by name -> their runs among records."""
    some, by_hash = grid(some) if isinstance(some, str) else some, defaultdict(list)
    for record in found:
        by_hash[record.get("ablation", {}).get("hash")].append(record)
    return {row.name: by_hash[identity(row, plan)] for row in (WHOLE, *some.rows)}


def runs(some: str | Grid, found: list[dict], plan: Plan = FULL) -> pd.DataFrame:
    """A grid's runs as `dlip.records.frame` gives them, under the names of its rows."""
    by_row = matched(some, found, plan)
    return records.frame([{**record, "name": name} for name, made in by_row.items() for record in made])


def table(some: str | Grid, found: list[dict], plan: Plan = FULL) -> pd.DataFrame:
    """A grid as the paper prints it, one row each of the teacher and the grid's rows, NaN where there is no run yet.

    Columns: name, role; runs (how many seeds); tr1, ir1, cider and vqa (mean), <it>_sd (standard deviation over seeds),
    paper_<it>; params_m, flops_g; wall_s (seconds of training, mean).
    """
    some = grid(some) if isinstance(some, str) else some
    rows, df = (WHOLE, *some.rows), runs(some, found, plan)
    means = records.summary(df).set_index("name").reindex([row.name for row in rows])
    out = pd.DataFrame({"name": means.index, "role": [row.role for row in rows]}, index=means.index)
    out["runs"] = means["runs"].fillna(0).astype(int)
    for i, score in enumerate(SCORES):
        out[score], out[f"{score}_sd"] = means[score], means[f"{score}_sd"]
        out[f"paper_{score}"] = [math.nan if row.paper[i] is None else row.paper[i] for row in rows]
    out[["params_m", "flops_g"]] = means[["params_m", "flops_g"]]
    out["wall_s"] = records.latest_runs(df).groupby("name")["wall_s"].mean().astype(float)
    return out.reset_index(drop=True)


def text(some: Grid, rows: pd.DataFrame, plan: Plan = FULL) -> str:
    """A `table` to read in a terminal, at most 120 columns wide."""
    width = max(len(name) for name in rows["name"]) + 1
    head = "".join(f"{name:>12}{'paper':>7}" for name in SCORES.values())
    lines = [f"{some.name}: {some.question}", f"{'':{width}}{head}{'runs':>6}"]
    for _, row in rows.iterrows():
        cells = ""
        for score in SCORES:
            mean, spread, paper = row[score], row[f"{score}_sd"], row[f"paper_{score}"]
            mine = "–" if math.isnan(mean) else f"{mean:.1f}" + ("" if math.isnan(spread) else f" ±{spread:.1f}")
            cells += f"{mine:>12}{'' if math.isnan(paper) else f'{paper:.1f}':>7}"
        lines.append(f"{row['name']:{width}}{cells}{row['runs']:>6}")
    train, worth = plan.train, "too few to mean anything" if plan.quick else "±: standard deviation over seeds"
    lines.append(
        f"{train.steps} steps of {train.batch_size} pictures, {PICTURES:,} to learn from if not said otherwise, "
        f"{plan.test_images:,} to test on; {worth}"
    )
    minutes = (rows["wall_s"] * rows["runs"])[rows["role"] != "teacher"].sum() / 60
    lines.append(f"trained for {minutes:,.0f} minutes in all")
    unlike = UNLIKE if any("hr" in row.weights for row in some.rows) else ""
    return "\n".join([*lines, *filter(None, [some.note, unlike])])
