"""The commands. Each ends in an exit code: 0 done, 2 a user's mistake in one line, 130 interrupted."""

import argparse
import json
import os
import shlex
import sys
from pathlib import Path
from pkgutil import resolve_name

from dlip import __version__
from dlip.config import CACHE, PRESETS, TrainConfig, joins, weights
from dlip.errors import UserError

OPTIONS = (
    "steps", "batch_size", "accumulate", "lr", "schedule", "decay", "warmup", "weight_decay", "clip", "precision",
    "seed", "label_smoothing", "momentum", "queue", "alpha", "questions", "workers", "log_every", "save_every",
    "eval_every", "eval_items",
)  # fmt: skip
"""Fields of TrainConfig that are options of `train` and `distill` by the same name."""


DATA = '"scenes", a folder, shards (a folder or address of *.tar), hub:NAME, or several joined by +'


class Commands(argparse.ArgumentParser):
    """Of which some commands are two words: `data check`."""

    def parse_args(self, words=None, namespace=None):
        words = list(sys.argv[1:] if words is None else words)
        if words[:1] == ["data"] and words[1:2] in (["check"], ["shard"]):
            words[:2] = [" ".join(words[:2])]
        return super().parse_args(words, namespace)


def train_config(args: argparse.Namespace) -> TrainConfig:
    values = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    flags = {
        "cache": bool(args.cache),
        "augment": args.augment,
        "flip": args.flip,
        "gradient_checkpointing": args.gradient_checkpointing,
        "shard_teacher": args.shard_teacher,
        "learn_teacher_projection": not args.fixed_teacher_space,
        "center_states": args.center_states,
    }
    return TrainConfig(weights=weights(args.weights), joins=joins(args.joins), **values, **flags)


def show(value: dict, args: argparse.Namespace) -> None:
    """Figures to where `--json` says; to the terminal where it says nothing."""
    text = json.dumps(value, indent=1)
    if args.json and args.json != "-":
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(text + "\n")
    else:
        print(text)


# --- the commands; each imports what it needs, so that `dlip --help` is quick -----------------------------------------


def models(args: argparse.Namespace) -> None:
    from dlip.checkpoints import built_in_models
    from dlip.sizes import models_table, models_text

    table = models_table()
    if args.json:
        show({"models": json.loads(table.to_json(orient="index")), "built_in": built_in_models()}, args)
    else:
        print(models_text(table))
        print(f"\nTrained and shipped: {', '.join(built_in_models())}")


def data(args: argparse.Namespace) -> None:
    from dlip import data as data_sets

    counts, problems = {}, []
    for split in data_sets.splits(args.name):
        dataset = data_sets.open(args.name, split, on_error="skip")
        dataset.verify()
        counts[split] = dataset.counts()
        problems += dataset.problems
    if args.json:
        show({"data": args.name, "splits": counts, "problems": problems}, args)
        return
    for split, row in counts.items():
        print(f"{split:12} " + "  ".join(f"{count:>8,} {noun}" for noun, count in row.items()))
    print(f"{len(problems)} problems" + (":" if problems else ""), *problems, sep="\n  ")


def data_check(args: argparse.Namespace) -> None:
    from dlip.data import check

    found = check.check(args.name)
    if args.json:
        show(found, args)
    else:
        print(check.text(found))


def data_shard(args: argparse.Namespace) -> None:
    from dlip import data as data_sets
    from dlip.data.pack import write_shards

    opened = {}
    for split in args.splits.split(",") if args.splits else data_sets.splits(args.name):
        opened[split] = data_sets.open(args.name, split, on_error=args.on_error)
        opened[split].verify()
    written = write_shards(args.out, opened, args.pictures)
    if args.json:
        show(written, args)
        return
    print(
        *(f"{row['file']}  {row['pictures']:>6,} pictures  {row['bytes'] / 1e6:.1f} MB" for row in written["shards"]),
        sep="\n",
    )


def train(args: argparse.Namespace) -> None:
    from dlip import experiment, parallel

    record = experiment.run(
        name=args.name,
        size=args.size,
        teacher=args.teacher,
        tokenizer=args.tokenizer,
        start=args.start,
        data=args.data,
        split=args.split,
        limit=args.limit,
        on_error=args.on_error,
        test_split=args.test_split,
        config=train_config(args),
        folder=args.out,
        results=args.results,
        command=shlex.join(["dlip", *args.words]),
        role=args.role,
        progress=args.json != "-",
        cache=args.cache or CACHE,
    )
    if parallel.rank():  # of several processes the main one tells
        return
    if args.json:
        show(record, args)
    else:
        from dlip.report import table

        print(table([record]))
        print(f"The model is in {args.out}, its record in {args.results}.")


def evaluate(args: argparse.Namespace) -> None:
    from dlip import data as data_sets
    from dlip import experiment
    from dlip.vlm import VLM

    dataset = data_sets.open(args.data, args.split, args.limit, args.on_error)
    figures, items = experiment.measure(
        VLM.load(args.model), dataset, args.latency_repeats, args.json != "-",
        tasks=tuple(args.tasks.split(",")), k=args.candidates, num_beams=args.beams,
    )  # fmt: skip
    show({**figures, **({"items": items} if args.items else {})}, args)


def demo(args: argparse.Namespace) -> None:
    from dlip.demo import demo

    records = demo(Path(args.out), args.steps, args.seed, quiet=args.json == "-")
    if args.json:
        show({"records": records}, args)


def ablate(args: argparse.Namespace) -> None:
    from dlip import ablation, conclusions, records
    from dlip.grids import FULL, QUICK

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
    from dlip import advise as advice
    from dlip.records import read

    asked = {"params_m": args.max_params, "flops_g": args.max_gflops, "latency_ms": args.max_latency}
    found = advice.advise(read(args.results), {k: v for k, v in asked.items() if v is not None}, args.metric)
    if args.json:
        show(found, args)
    else:
        print(advice.text(found))


def app(args: argparse.Namespace) -> None:
    try:
        serve = resolve_name("app.page:serve")  # by its name: nothing of dlip depends on the app
    except ModuleNotFoundError as missing:
        raise UserError(f"the app needs {missing.name}, which is not installed; run pip install 'dlip[app]'") from None
    serve(args.port, args.share, args.models.split(",") if args.models else None)


def export(args: argparse.Namespace) -> None:
    from dlip.export import push, to_transformers

    if args.to == "onnx":
        from dlip.onnx_export import to_onnx as write
    else:
        write = to_transformers
    out = args.out or Path("runs/export") / args.model.strip("/").replace("/", "-")
    folders, left_out = write(args.model, out)
    hub = push(folders, args.push) if args.push else []
    if args.json:
        show({"folders": {task: str(path) for task, path in folders.items()}, "left_out": left_out, "hub": hub}, args)
        return
    lines = [f"{task:10} {path}" for task, path in folders.items()]
    lines += [f"{task:10} left out: {reason}" for task, reason in left_out.items()]
    print(*lines, *(f"on the hub as {name}" for name in hub), sep="\n")


def parser() -> argparse.ArgumentParser:
    top = Commands(prog="dlip", description="Distil a light vision-language model out of a heavy one.")
    top.add_argument("--version", action="version", version=f"dlip {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        function, help_: str, example: str, name: str | None = None, figures: bool = True
    ) -> argparse.ArgumentParser:
        new = commands.add_parser(
            name or function.__name__, help=help_, description=f"{help_}.", epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        new.set_defaults(function=function)
        if figures:
            new.add_argument("--json", metavar="PATH", help="write the figures there as JSON; - for standard output")
        return new

    new = command(demo, "Distil a small student here and compare it with its teacher", "dlip demo --out runs/demo")
    new.add_argument("--out", default="runs/demo", help="folder of the run and its report (default %(default)s)")
    new.add_argument("--steps", type=int, default=600, help="steps of the live student (default %(default)s)")
    new.add_argument("--seed", type=int, default=0)

    command(models, "Parameters and FLOPs of every size, beside the paper's figures", "dlip models --json sizes.json")

    new = command(data, "Count the pictures and texts of a data set", "dlip data path/to/flickr8k")
    new.add_argument("name", metavar="DATA", help=DATA)
    new = command(data_check, "Find what is wrong with a data set", "dlip data check path/to/flickr8k", "data check")
    new.add_argument("name", metavar="DATA", help=DATA)
    new = command(
        data_shard,
        "Pack a data set into shards",
        "dlip data shard path/to/flickr8k --out flickr8k-shards",
        "data shard",
    )
    new.add_argument("name", metavar="DATA", help=DATA)
    new.add_argument("--out", required=True, metavar="FOLDER", help="where the shards and their index go")
    new.add_argument("--splits", metavar="A,B", help="only these")
    new.add_argument("--pictures", type=int, default=1000, metavar="N", help="of a shard (default %(default)s)")
    new.add_argument("--on-error", default="fatal", choices=("fatal", "skip"), help="what a faulty item does")

    for name, help_, example in (
        ("train", "Train a model without a teacher", "dlip train --size scenes-student --out runs/alone"),
        ("distill", "Train a student under a teacher",
         "dlip distill --teacher scenes/teacher --size scenes-student --out runs/student --weights vlp,hr,at,kd"),
    ):  # fmt: skip
        training_options(command(train, help_, example, name), distils=name == "distill")

    new = command(evaluate, "Measure a model on a data set", "dlip evaluate --model scenes/student --json -")
    new.add_argument("--model", required=True, help="a built-in model, a run's folder, or a published BLIP")
    data_options(new, "test")
    new.add_argument("--tasks", default="retrieval,caption,vqa", help="default %(default)s")
    new.add_argument("--candidates", type=int, metavar="K", help="candidates that ITM ranks anew")
    new.add_argument("--beams", type=int, default=3, help="beams of captions and answers (default %(default)s)")
    new.add_argument("--latency-repeats", type=int, default=20, help="timed captions; 0 for none (default %(default)s)")
    new.add_argument("--items", action="store_true", help="add every caption, answer and rank")

    new = command(ablate, "Run grids of students and print the paper's tables", "dlip ablate fusion --workers 2")
    new.add_argument("grids", nargs="*", metavar="GRID", help='names of dlip/grids.py, as "modules", or all')
    new.add_argument("--seeds", type=int, metavar="N", help="runs of each row (default: the grids' own, 3)")
    new.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time (default %(default)s)")
    new.add_argument("--only", action="append", default=[], metavar="ROW", help="this row (may be repeated)")
    new.add_argument("--quick", action="store_true", help="minutes, not hours: shows that it works, not what it finds")
    new.add_argument("--conclusions", action="store_true", help="judge the paper's conclusions by the records")
    new.add_argument("--out", default="runs/ablate", help="folder of the runs (default %(default)s)")
    new.add_argument("--results", metavar="PATH", help="records (default results/ablations.jsonl; quick ones apart)")

    new = command(export, "Write a model for other programs", "dlip export runs/student --to transformers")
    new.add_argument("model", metavar="MODEL", help="a run's folder or another model's name")
    new.add_argument("--to", required=True, choices=("transformers", "onnx"), help="what runs it")
    new.add_argument("--out", metavar="FOLDER", help="where its folders go (default runs/export/MODEL)")
    new.add_argument("--push", metavar="REPO", help="upload to the hub as REPO-retrieval and so on, by folder")

    new = command(advise, "Name the best student known within a budget", "dlip advise --max-params 0.5 --metric cider")
    new.add_argument("--max-params", type=float, metavar="M", help="millions of parameters")
    new.add_argument("--max-gflops", type=float, metavar="G", help="GFLOPs of a picture and a text")
    new.add_argument("--max-latency", type=float, metavar="MS", help="median latency of the timed task")
    new.add_argument(
        "--metric", default="all", help="tr1, ir1, cider, vqa or all, the least kept of them (default %(default)s)"
    )
    new.add_argument("--results", default="results/ablations.jsonl", help="records (default %(default)s)")

    new = command(app, "Open teacher and student side by side in a browser", "dlip app --port 7860", figures=False)
    new.add_argument("--port", type=int, help="default: the first free one from 7860")
    new.add_argument("--share", action="store_true", help="a public address, through Gradio's servers")
    new.add_argument("--models", metavar="A,B", help="only these can be chosen, the first two at the start")
    return top


def data_options(new: argparse.ArgumentParser, split: str | None) -> None:
    new.add_argument("--data", default="scenes", help=f"{DATA} (default %(default)s)")
    new.add_argument("--split", default=split, help=f"default {split or 'train, of the scenes train-small'}")
    new.add_argument("--limit", type=int, metavar="N", help="use the first N pictures only")
    new.add_argument("--on-error", default="fatal", choices=("fatal", "skip"), help="what a faulty item does")


def training_options(new: argparse.ArgumentParser, distils: bool) -> None:
    new.add_argument("--out", required=True, help="folder of the run; one that holds a checkpoint is resumed")
    new.add_argument("--name", help="name in the records (default: that of the folder)")
    new.add_argument(
        "--size", required=True, help=f"one of {', '.join(PRESETS)}; with changes, scenes-student:text_layers=3"
    )
    if distils:
        new.add_argument("--teacher", required=True, help="a model's name, or several joined by +")
        new.add_argument(
            "--cache", nargs="?", const=CACHE, metavar="FOLDER",
            help="keep what the teacher says there and read it from then on (default there: %(const)s)",
        )  # fmt: skip
        new.set_defaults(tokenizer=None, role="distilled")
    else:
        new.set_defaults(teacher=None, cache=None)
        new.add_argument(
            "--tokenizer", metavar="MODEL", help="whose words to take (default: those of the training texts)"
        )
        new.add_argument(
            "--role", choices=("teacher", "undistilled"), default="undistilled", help="default %(default)s"
        )
    new.add_argument(
        "--start", action="append", default=[], metavar="[PART=]MODEL",
        help="begin at the weights of a model or of a BERT, whole or one part: image=runs/teacher (may be repeated)",
    )  # fmt: skip
    data_options(new, None)
    new.add_argument("--test-split", help="measured at the end (default: test where there is one, else val)")
    new.add_argument("--results", default="runs/records.jsonl", help="where the record goes (default %(default)s)")
    default = "vlp,hr,at" if distils else "vlp"
    new.add_argument("--weights", default=default, help="terms, as in vlp,hr,kd.lm=0.5 (default %(default)s)")
    new.add_argument("--joins", default="", help="terms that join later, and after how many steps: vlp=500,itm=900")
    group = new.add_argument_group("training", "see TrainConfig in dlip/config.py for each")
    defaults = TrainConfig()
    for option in OPTIONS:
        value = getattr(defaults, option)
        group.add_argument(f"--{option.replace('_', '-')}", type=type(value), metavar="X", help=f"default {value}")
    group.add_argument("--augment", action="store_true", help="vary the training pictures")
    group.add_argument("--flip", action="store_true", help="with --augment, mirror photos too")
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time: see there")
    group.add_argument("--shard-teacher", action="store_true", help="each process keeps a part of the teacher")
    group.add_argument("--fixed-teacher-space", action="store_true", help="hr.* leaves the teacher's space as it is")
    group.add_argument("--center-states", action="store_true", help="hr.* compares how states differ from their mean")


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    args = parser().parse_args(words)
    args.words = words
    try:
        args.function(args)
    except UserError as mistake:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of a machine's several processes one tells
            print(f"dlip: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dlip: interrupted; the last checkpoint is kept, the same command goes on from it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
