"""What each command does. Each imports what it needs itself, so that `dlip --help` is quick."""

import argparse
import contextlib
import json
import shlex
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

from dlip.common.errors import UserError
from dlip.common.files import write_output
from dlip.common.text import one_line, plural
from dlip.training.config import CACHE, TrainConfig
from dlip.training.terms import joins, layers, weights

OPTIONS = (
    "steps", "batch_size", "accumulate", "lr", "schedule", "decay", "warmup", "weight_decay", "clip", "nonfinite",
    "precision", "seed", "label_smoothing", "momentum", "queue", "alpha", "questions", "workers", "log_every",
    "save_every", "eval_every", "eval_items",
)  # fmt: skip
"""Fields of TrainConfig that are options of `train` and `distill` by the same name."""


def train_config(args: argparse.Namespace) -> TrainConfig:
    values = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    flags = {
        "cache": bool(args.cache),
        "augment": bool(args.augment),
        "flip": bool(args.flip),
        "gradient_checkpointing": args.gradient_checkpointing,
        "compile": args.compile,
        "shard_teacher": args.shard_teacher,
        "learn_teacher_projection": not args.fixed_teacher_space,
        "center_states": args.center_states,
    }
    terms = {"weights": weights(args.weights), "joins": joins(args.joins)}
    terms["layers"] = layers(getattr(args, "layers", ""))  # which `train` does not have
    if args.epochs:
        values["steps"] = sys.maxsize  # until the data tell how many there are
    return TrainConfig(**terms, **values, **flags)


def show(value: dict, args: argparse.Namespace) -> None:
    """Figures to where `--json` says; to the terminal where it says nothing."""
    text = json.dumps(value, indent=1)
    if args.json in (None, "-"):
        print(text)
    else:
        write_output(Path(args.json), lambda path: path.write_text(text + "\n"))


def models(args: argparse.Namespace) -> None:
    from dlip.checkpoints.load import built_in_models
    from dlip.cost.sizes import models_table, models_text

    table = models_table()
    if args.json:
        show({"models": json.loads(table.to_json(orient="index")), "built_in": built_in_models()}, args)
    else:
        print(models_text(table))
        print(f"\nTrained and shipped: {', '.join(built_in_models())}")


def data(args: argparse.Namespace) -> None:
    from dlip import data as data_sets

    counts, faults = {}, []
    sets = data_sets.dataset_names(args.name)
    for part, split in [(one, split) for one in sets for split in data_sets.splits(one)]:
        dataset = data_sets.open(part, split, on_error="skip")
        dataset.verify()
        counts[split if len(sets) == 1 else f"{part} {split}"] = dataset.counts()
        faults += dataset.faults
    if args.json:
        show({"data": args.name, "splits": counts, "faults": faults}, args)
        return
    for split, row in counts.items():
        print(f"{split:12} " + "  ".join(f"{count:>8,} {noun}" for noun, count in row.items()))
    print(plural(len(faults), "fault") + (":" if faults else ""), *map(one_line, faults), sep="\n  ")


def data_check(args: argparse.Namespace) -> None:
    from dlip.data import audit

    found = audit.check(args.name)
    if args.json:
        show(found, args)
    else:
        print(audit.report(found))


def data_shard(args: argparse.Namespace) -> None:
    from dlip import data as data_sets
    from dlip.data.shards.write import check_empty, write_shards

    check_empty(args.out)
    opened = {}
    for split in args.splits.split(",") if args.splits else data_sets.splits(args.name):
        opened[split] = data_sets.open(args.name, split, on_error=args.on_error)
        opened[split].verify()
    written = write_shards(args.out, opened, args.pictures)
    if args.json:
        show(written, args)
        return
    print(
        *(f"{row['file']}  {row['images']:>6,} images  {row['bytes'] / 1e6:.1f} MB" for row in written["shards"]),
        sep="\n",
    )


def train(args: argparse.Namespace) -> None:
    from dlip.common import distributed
    from dlip.experiments import run
    from dlip.training import dry_run

    if args.steps and args.epochs:
        raise UserError("--steps and --epochs both say how long; give one of them")
    names = ("size", "teacher", "tokenizer", "start", "data", "split", "limit", "on_error", "epochs", "test_data",
             "test_split", "test_limit")  # fmt: skip
    asked = {name: getattr(args, name) for name in names} | {"config": train_config(args)}
    if args.dry_run:
        cost = run.preview(**asked)
        if args.json:
            show(cost, args)
        else:
            print(dry_run.text(cost))
        return
    record = run.run(
        **asked,
        name=args.name,
        folder=args.out,
        results=args.results,
        command=shlex.join(["dlip", *args.words]),
        role=args.role,
        progress=args.json != "-",
        cache=args.cache or CACHE,
        cache_gb=args.cache_gb,
        candidates=args.candidates,
        latency_repeats=args.latency_repeats,
    )
    if distributed.rank():  # of several processes the main one tells
        return
    if args.json:
        show(record, args)
    else:
        from dlip.reports.comparison import table

        print(table([record]))
        print(f"The model is in {args.out}, its record in {args.results}.")


def evaluate(args: argparse.Namespace) -> None:
    from dlip import data as data_sets
    from dlip import records
    from dlip.data.folders.vqa2 import read_answers
    from dlip.evaluation.tasks import check_tasks
    from dlip.experiments import history, run
    from dlip.vlm import VLM

    if args.results:
        history.made(args.model)  # before anything is measured in vain
    vlm, tasks = VLM.load(args.model), tuple(args.tasks.split(","))
    check_tasks(tasks)
    answers = read_answers(args.answers) if args.answers else None
    split = args.split or run.held_out(args.data, "--")
    dataset = data_sets.open(args.data, split, args.limit, args.on_error)
    left_out = {dataset.split: len(data_sets.verify(dataset))}
    figures, items = run.measure(
        vlm, dataset, args.latency_repeats, args.json != "-",
        tasks=tasks, k=args.candidates, num_beams=args.beams, answers=answers,
    )  # fmt: skip
    if any(left_out.values()):
        figures.setdefault("notes", {})["data"] = run.left_out_text(left_out)
    if args.results:
        command = shlex.join(["dlip", *args.words])
        records.append(run.again(args.model, vlm, command, figures, items, dataset), args.results)
    show({**figures, **({"items": items} if args.items else {})}, args)


def demo(args: argparse.Namespace) -> None:
    from dlip.experiments.demo import demo

    records = demo(Path(args.out), args.steps, args.seed, quiet=args.json == "-")
    if args.json:
        show({"records": records}, args)


def ablate(args: argparse.Namespace) -> None:
    from dlip import records
    from dlip.experiments import ablation, conclusions
    from dlip.experiments.grids import FULL, QUICK

    plan = QUICK if args.quick else FULL
    results = args.results or (ablation.QUICK_RESULTS if args.quick else ablation.RESULTS)
    grids = ablation.choose(args.grids, args.only) if args.grids or not args.conclusions else []
    failed = {}
    if grids:
        failed = ablation.ablate(grids, plan, args.seeds, args.workers, args.out, results, args.json != "-")
    found = records.read(results)
    tables = {grid.name: ablation.table(grid, found, plan) for grid in grids}
    verdicts = conclusions.conclusions(found, plan) if args.conclusions else None
    if args.json:
        rows = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        judged = None if verdicts is None else json.loads(verdicts.to_json(orient="records"))
        show({"tables": rows, "failed": failed, "conclusions": judged}, args)
    else:
        texts = [ablation.text(grid, tables[grid.name], plan) for grid in grids]
        print("\n\n".join([*texts, *([] if verdicts is None else [conclusions.text(verdicts)])]))
    if failed:
        (name, reason), *others = failed.items()
        more = f", and {len(others)} more did" if others else ""
        raise UserError(f"{name} failed ({reason}){more}; the same command tries again")


def advise(args: argparse.Namespace) -> None:
    from dlip.experiments import advise as advice
    from dlip.records import read

    asked = {"params_m": args.max_params, "flops_g": args.max_gflops, "latency_ms": args.max_latency}
    found = advice.advise(read(args.records), {k: v for k, v in asked.items() if v is not None}, args.metric)
    if args.json:
        show(found, args)
    else:
        print(advice.text(found))


def bench(args: argparse.Namespace) -> None:
    from dlip import bench as benches
    from dlip.records.write import append

    asked = {"data": args.data, "rounds": args.rounds}
    asked = {name: value for name, value in asked.items() if value is not None}
    records = []
    for name, options in benches.every(asked).items() if args.name == "all" else [(args.name, asked)]:
        records.append(benches.bench(name, shlex.join(["dlip", *args.words]), **options))
        append(records[-1], args.results or f"results/bench/{name}.jsonl")
        if not args.json:
            print(benches.text(records[-1]), flush=True)
    if args.json:
        show({"records": records} if args.name == "all" else records[0], args)


def app_package() -> str:
    """Import name of the app: `dlip._app` in an installed wheel, `app` in a checkout."""
    return "dlip._app" if find_spec("dlip._app") else "app"


def app(args: argparse.Namespace) -> None:
    try:
        serve = resolve_name(f"{app_package()}.page:serve")  # by its name: nothing of dlip depends on the app
    except ModuleNotFoundError as missing:
        raise UserError(f"the app needs {missing.name}, which is not installed; run pip install 'dlip[app]'") from None
    names = [name.strip() for name in args.models.split(",")] if args.models else None
    if names and not all(names):
        raise UserError(f"--models {args.models} has an empty name; give names with one comma between them")
    serve(args.port, args.share, names)


def rerun(args: argparse.Namespace) -> None:
    import torch

    from dlip import records
    from dlip.cli import INTERRUPTED, main
    from dlip.experiments import rerun as again

    before = again.chosen(args.records, args.name, args.seed)
    again.check_history(before)
    words = again.command(before, args.out, args.results)
    command = shlex.join(["dlip", *words])
    kept = records.record_of_run(Path(args.out)) if "--out" in words else {}
    if kept and (kept["command"] != command or records.contains(args.results, kept)):
        raise UserError(f"{args.out} holds a finished run, which would not be trained again; choose another --out")
    if not args.json:
        print(one_line(command))
    if before.get("threads"):
        torch.set_num_threads(before["threads"])
    with contextlib.redirect_stdout(sys.stderr if args.json == "-" else sys.stdout):
        if (code := main(words)) == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            raise UserError(f"the command of the record {before['name']} ended with a mistake, told above")
    after = [record for record in records.read(args.results) if record["command"] == command][-1]
    found, changed = again.difference(before, after), again.circumstances(before, after)
    if args.json:
        show(found | {"circumstances": changed}, args)
        return
    for name, value in found["before"].items():
        print(f"{name:6} {value:8.2f} then {found['after'][name]:8.2f} now {found['difference'][name]:+8.2f}")
    if found["losses"] is not None:
        print("losses", "the same to the last digit" if found["losses"] else "not the same to the last digit")
    for what, (then, now) in changed.items():
        print(one_line(f"{what}: {then} then, {now} now"))


def export(args: argparse.Namespace) -> None:
    from dlip.export.transformers import push, to_precision, to_transformers

    if args.to == "onnx" and args.precision != "bf16":
        from dlip.export.onnx_export import to_onnx

        write = partial(to_onnx, int8=args.precision == "int8")
    elif args.to and args.precision:
        raise UserError(f"--to {args.to} knows no {args.precision}; leave --{args.precision} out")
    elif args.to:
        write = to_transformers
    elif args.precision:
        write = partial(to_precision, precision=args.precision)
    else:
        raise UserError("nothing says what to write; add --to transformers, --to onnx, --bf16 or --int8")
    parts = [part for part in Path(args.model).parts if part not in ("/", "..")]
    out = args.out or Path("runs/export") / ("-".join(parts) or Path(args.model).resolve().name)
    folders, left_out = write(args.model, out)
    hub = push(folders, args.push) if args.push else []
    if args.json:
        show({"folders": {task: str(path) for task, path in folders.items()}, "skipped": left_out, "hub": hub}, args)
        return
    lines = [f"{task:10} {path}" for task, path in folders.items()]
    lines += [f"{task:10} skipped: {reason}" for task, reason in left_out.items()]
    print(*lines, *(f"on the hub as {name}" for name in hub), sep="\n")
