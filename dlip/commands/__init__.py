"""Each command's options as a dataclass and its function, which imports what is slow to import itself."""

import json
import shlex
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import Literal

from dlip.bench import BENCHES
from dlip.commands.figures import Figures
from dlip.common.errors import UserError
from dlip.common.fields import option
from dlip.common.options import comma_separated, to_argv
from dlip.experiments.config import DataConfig, EvaluationConfig, ExperimentConfig, MeasureConfig
from dlip.training.config import CACHE, CACHE_GB
from dlip.training.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Demo(Figures):
    out: str = option("runs/demo", metavar="FOLDER")
    """Folder of the run and its report."""
    steps: int = option(1500, least=1)
    """Optimizer steps of the student."""
    seed: int = option(0, least=0, most=2**32 - 1)
    """Seed of the student."""


def demo(options: Demo) -> None:
    """Distill a small student here and compare it with its teacher."""
    from dlip.experiments.demo import demo

    records = demo(Path(options.out), options.steps, options.seed, quiet=options.json == "-")
    if options.json:
        options.show({"records": records}, "")


def models(options: Figures) -> None:
    """List parameters and FLOPs of every size, beside the paper's figures."""
    from dlip.checkpoints.load import built_in_models
    from dlip.cost.sizes import models_table, models_text

    table, shipped = models_table(), built_in_models()
    figures = {"models": json.loads(table.to_json(orient="index")), "built_in": shipped}
    options.show(figures, lambda: f"{models_text(table)}\n\nTrained and shipped: {', '.join(shipped)}")


@dataclass(frozen=True, kw_only=True)
class Train(Figures):
    out: str = option(metavar="FOLDER")
    """Folder of the run; one that holds a checkpoint is resumed."""
    results: str = option("runs/records.jsonl", metavar="FILE")
    """File of records that the run's record is appended to."""
    recipe: str | None = option(None, choices=RECIPES)
    """The paper's options for this stage (docs/training.md); other options override them."""
    dry_run: bool = False
    """Only print the cost of the run: FLOPs, memory, hours."""
    cache_folder: str | None = option(None, flag="cache", const=CACHE, metavar="FOLDER", command="distill")
    """Compute the teacher's outputs once and keep them in FOLDER (by default runs/cache)."""
    cache_gb: float = option(CACHE_GB, above=0)
    """Maximum size of the folder of cached outputs, in GB."""
    report_to: tuple[str, ...] = option((), parse=comma_separated, metavar="A,B")
    """Trackers that get the run's log too, comma-separated: trackio, tensorboard, wandb."""
    experiment: ExperimentConfig
    """Experiment."""


def train(options: Train) -> None:
    """Train a model without a teacher."""
    from dlip.common import distributed
    from dlip.experiments import run
    from dlip.training import dry_run

    experiment = options.experiment
    if options.cache_folder:
        experiment = experiment.replace(train=experiment.train.replace(cache=True))
    if options.dry_run:
        cost = run.preview(experiment)
        return options.show(cost, lambda: dry_run.text(cost))
    record = run.run(
        experiment, options.out, options.results, progress=options.json != "-",
        cache=options.cache_folder or CACHE, cache_gb=options.cache_gb, report_to=options.report_to,
    )  # fmt: skip
    if distributed.rank() == 0:
        where = f"The model is in {options.out}, its record in {options.results}."
        options.show(record, lambda: f"{_with_teacher(record, experiment, options.results)}\n{where}")


def _with_teacher(record: dict, experiment: ExperimentConfig, results: str) -> str:
    """The table of a run beside its teacher, or how to get the teacher's record."""
    from dlip.experiments.history import teacher_record
    from dlip.reports.comparison import table

    if record["role"] != "distilled":
        return table([record])
    if teacher := teacher_record(record, results):
        return table([teacher, record])
    held = experiment.evaluation
    data = DataConfig(held.data or experiment.data.name, record["split"], held.limit, experiment.data.on_error)
    measure = MeasureConfig(held.candidates, held.latency_repeats, held.generate_limit)
    command = EvaluationConfig(experiment.teacher, data=data, measure=measure).command()
    return (
        f"{table([record])}\nThis records its teacher, for what it keeps:\n  {command} --results {shlex.quote(results)}"
    )


def distill(options: Train) -> None:
    """Distill a student from a teacher."""
    train(options)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Figures):
    items: bool = False
    """Also print every caption, answer and rank."""
    results: str | None = option(None, metavar="FILE")
    """Append a record to FILE; a model from elsewhere, without a record of its run, counts as a teacher."""
    optimize: bool = False
    """Score the model as the fastest installed backends run it (docs/speed.md)."""
    evaluation: EvaluationConfig
    """Evaluation."""


def evaluate(options: Evaluate) -> None:
    """Evaluate a model on a data set."""
    from dlip.experiments.measure import evaluate_model

    config = options.evaluation
    others = {
        "rerank": config.rerank != "itm",
        "bounds": config.bounds,
        "precision": config.precision != "fp32",
    }
    refused = [name for name, given in (others | {"results": options.results}).items() if given]
    if options.optimize and refused:
        raise UserError(f"--optimize and --{refused[0]} exclude each other")
    metrics = evaluate_model(config, options.results, options.json != "-", options.optimize)
    if not options.items:
        del metrics["items"]
    options.show(metrics, lambda: json.dumps(metrics, indent=1))


@dataclass(frozen=True, kw_only=True)
class Ablate(Figures):
    grids: tuple[str, ...] = option((), positional=True, metavar="GRID")
    """Grids to run: objectives, modalities, attention, init, sizes, fusion, modules, data, or all."""
    seeds: int | None = option(None, least=1)
    """Runs of each row; by default 6 of rows that a conclusion compares, 2 of others; 1 with --quick."""
    jobs: int = option(1, least=1)
    """Number of parallel runs."""
    only: tuple[str, ...] = option((), metavar="ROW")
    """Run only this row; may be repeated."""
    quick: bool = False
    """Take minutes instead of hours; the scores mean nothing."""
    conclusions: bool = False
    """Test the paper's conclusions on the records."""
    train: bool = option(True, flag="no_train", inverse=True)
    """Train nothing; print what the records hold."""
    out: str = option("runs/ablate", metavar="FOLDER")
    """Folder of the runs."""
    results: str | None = option(None, metavar="FILE")
    """File of records; by default results/ablations.jsonl, or one in runs/ablate with --quick."""


def ablate(options: Ablate) -> None:
    """Run grids of students and print the paper's tables."""
    from dlip import records
    from dlip.experiments import ablation
    from dlip.experiments.analysis import conclusions
    from dlip.experiments.grids import FULL, QUICK

    plan = QUICK if options.quick else FULL
    results = options.results or (ablation.QUICK_RESULTS if options.quick else ablation.RESULTS)
    grids, failed = [], {}
    if options.conclusions and not options.grids and (options.only or options.seeds):
        raise UserError("--only and --seeds choose runs of a grid; name one, or drop them")
    if options.grids or not options.conclusions:
        grids = ablation.choose(options.grids, options.only)
    if grids and options.train:
        progress = options.json != "-"
        failed = ablation.ablate(grids, plan, options.seeds, options.jobs, options.out, results, progress)
    runs = records.read(results)
    tables = {grid.name: ablation.table(grid, runs, plan) for grid in grids}
    texts = [ablation.text(grid, tables[grid.name], plan) for grid in grids]
    figures = {"tables": {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}}
    figures |= {"failed": failed, "conclusions": None, "spreads": None}
    if options.conclusions:
        judged = {"conclusions": conclusions.conclusions(runs, plan), "spreads": conclusions.spreads(runs, plan)}
        texts.append(conclusions.text(*judged.values()))
        figures |= {name: json.loads(table.to_json(orient="records")) for name, table in judged.items()}
    options.show(figures, "\n\n".join(texts))
    if failed:
        (name, reason), *others = failed.items()
        more = f", and {len(others)} more did" if others else ""
        raise UserError(f"{name} failed ({reason}){more}; the same command tries again")


@dataclass(frozen=True, kw_only=True)
class Bench(Figures):
    name: str = option(positional=True, choices=(*BENCHES, "all"), metavar="NAME")
    """Benchmark to run, one of those below, or all; all includes reading only with --data."""
    data: str | None = option(None, metavar="FOLDER")
    """Folder of images with texts, for benchmarks that read one."""
    rounds: int | None = option(None, least=1)
    """Rounds, in each of which every alternative runs once; by default the benchmark's own number."""
    results: str | None = option(None, metavar="FILE")
    """File that the record is appended to; by default results/bench/NAME.jsonl."""


def bench(options: Bench) -> None:
    """Time alternatives side by side and keep the record."""
    from dlip import bench as benches
    from dlip.records.write import append

    passed = {name: value for name in ("data", "rounds") if (value := getattr(options, name)) is not None}
    command = shlex.join(["dlip", "bench", *to_argv(options, "bench", {})])
    records, failed = [], []
    for name, arguments in benches.every(passed).items() if options.name == "all" else [(options.name, passed)]:
        try:
            records.append(benches.bench(name, command, **arguments))
        except UserError as error:
            if options.name != "all":
                raise
            failed.append(f"{name}: {error}")
            continue
        append(records[-1], options.results or f"results/bench/{name}.jsonl")
        if not options.json:
            print(benches.text(records[-1]), flush=True)
    if options.json:
        options.show({"records": records} if options.name == "all" else records[0], "")
    if failed:
        raise UserError(f"not run: {'; '.join(failed)}")


@dataclass(frozen=True, kw_only=True)
class Export(Figures):
    model: str = option(positional=True, metavar="MODEL")
    """Model to export: a run folder, or a model's name."""
    to: Literal["dlip", "transformers", "onnx", "vit", "bert"] = "dlip"
    """Library that will run the model; dlip is this package. vit, bert: one side, for stock transformers."""
    fp16: bool = False
    """Store fp16 weights, for this package, which reads them as fp32; also of vit and bert."""
    bf16: bool = False
    """Store bf16 weights, for this package."""
    int8: bool = False
    """Store int8 weights, for onnx."""
    shard_mb: float | None = option(None, above=0)
    """Split weights over files of at most so many MB, for this package."""
    out: str | None = option(None, metavar="FOLDER")
    """Folder to write to; by default runs/export/MODEL."""
    push: str | None = option(None, metavar="REPO")
    """Upload to the hub, one repository per folder: REPO-retrieval and so on."""
    license: str | None = option(None, metavar="ID")
    """License of the weights, for the hub: apache-2.0, bsd-3-clause, ..."""


def export(options: Export) -> None:
    """Export a model for other programs."""
    from dlip.export.encoders import STOCK_ENCODERS, to_encoder
    from dlip.export.transformers import push, to_dlip, to_transformers

    chosen = [precision for precision in ("fp16", "bf16", "int8") if getattr(options, precision)]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]} exclude each other; choose one")
    precision = chosen[0] if chosen else "fp32"
    if options.shard_mb and options.to != "dlip":
        raise UserError(f"--to {options.to} has no shards; drop --shard-mb")
    if options.to == "onnx" and precision in ("fp32", "int8"):
        from dlip.export.onnx_export import to_onnx

        write = partial(to_onnx, int8=options.int8)
    elif options.to == "dlip" and precision != "int8":
        write = partial(to_dlip, precision=precision, shard_mb=options.shard_mb)
    elif options.to in STOCK_ENCODERS and precision in ("fp32", "fp16"):
        write = partial(to_encoder, kind=options.to, half=options.fp16)
    elif precision != "fp32":
        raise UserError(f"--to {options.to} has no {precision}; drop --{precision}")
    else:
        write = to_transformers
    parts = [part for part in Path(options.model).parts if part not in ("/", "..")]
    out = options.out or Path("runs/export") / ("-".join(parts) or Path(options.model).resolve().name)
    folders, skipped = write(options.model, out, license=options.license)
    hub = push(folders, options.push) if options.push else []
    lines = [f"{task:10} {path}" for task, path in folders.items()]
    lines += [f"{task:10} skipped: {reason}" for task, reason in skipped.items()]
    lines += [f"on the hub as {name}" for name in hub]
    paths = {task: str(path) for task, path in folders.items()}
    options.show({"folders": paths, "skipped": skipped, "hub": hub}, "\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class Rerun(Figures):
    records: str = option(positional=True, metavar="PATH")
    """File of records, or a folder of them."""
    name: str | None = None
    """Name of the record; by default the latest one."""
    seed: int | None = option(None, least=0)
    """Seed of the record; by default that of the latest one."""
    out: str = option("runs/rerun", metavar="FOLDER")
    """Folder of the run."""
    results: str = option("runs/rerun.jsonl", metavar="FILE")
    """File of records that the new one is appended to."""


def rerun(options: Rerun) -> None:
    """Repeat the run of a record and compare the figures."""
    import torch

    from dlip.experiments.rerun import circumstances, difference, find_record, repeat, text

    before = find_record(options.records, options.name, options.seed)
    torch.set_num_threads(before["threads"])
    after = repeat(before, options.out, options.results, progress=options.json != "-")
    compared, changed = difference(before, after), circumstances(before, after)
    options.show(compared | {"circumstances": changed}, text(compared, changed))


@dataclass(frozen=True, kw_only=True)
class Advise(Figures):
    max_params: float | None = option(None, metavar="M")
    """Budget in millions of parameters."""
    max_gflops: float | None = option(None, metavar="G")
    """Budget in GFLOPs of one image and one text."""
    max_latency: float | None = option(None, metavar="MS")
    """Budget in ms of median latency of the timed task."""
    metric: str = "all"
    """Score to keep: ir1, facts_f1, vqa_mean, tr1, cider, ..., or all, the minimum kept of the headline scores."""
    records: str = option("results/ablations.jsonl", flag="results", metavar="PATH")
    """File of records, or a folder of them."""
    data: str | None = option(None, metavar="DATA")
    """Test data of the records to choose from, where they are of several."""
    split: str | None = None
    """Their split."""
    test_images: int | None = option(None, metavar="N", least=1)
    """Number of images that they measure."""


def advise(options: Advise) -> None:
    """Name the best student known within a budget."""
    from dlip.experiments import advise as advice
    from dlip.records import frame, read
    from dlip.records.compare import TEST_SET, describe_test_sets

    budget = {"params_m": options.max_params, "flops_g": options.max_gflops, "latency_ms": options.max_latency}
    budget = {cost: value for cost, value in budget.items() if value is not None}
    chosen = {key: value for key in TEST_SET if (value := getattr(options, key)) is not None}
    found = read(options.records)
    rows = frame(found)
    records = [one for one, row in zip(found, rows.to_dict("records"), strict=True) if chosen.items() <= row.items()]
    if found and not records:
        wanted, test_sets = " ".join(map(str, chosen.values())), "; ".join(describe_test_sets(rows))
        raise UserError(f"no record is of {wanted}; choose one of {test_sets}")
    answer = advice.advise(records, budget, options.metric)
    options.show(answer, lambda: advice.text(answer))


@dataclass(frozen=True, kw_only=True)
class App:
    port: int | None = option(None, least=1, most=65535)
    """Port to listen on; by default the first free one from 7860."""
    share: bool = False
    """Create a public link through Gradio's servers."""
    models: tuple[str, ...] = option((), parse=comma_separated, metavar="A,B")
    """Offer only these models, comma-separated; the first two are preselected."""
    gallery: str | None = option(None, metavar="FOLDER")
    """Folder of images, with or without captions, for the Search tab; or another data set (default: shipped images)."""
    optimize: bool = False
    """Run captions and rankings by each model's fastest backends (docs/speed.md); the first start takes minutes."""


def app(options: App) -> None:
    """Serve a page with teacher and student side by side."""
    package = "dlip._app" if find_spec("dlip._app") else "app"  # of an installed wheel, of a checkout
    try:
        serve = resolve_name(f"{package}.page:serve")  # by name, because dlip does not depend on the app
    except ModuleNotFoundError as missing:
        raise UserError(f"the app needs {missing.name}, which is not installed; run pip install 'dlip[app]'") from None
    serve(options.port, options.share, list(options.models) or None, options.gallery, options.optimize)
