"""The commands. Each ends in an exit code: 0 done, 2 a user's mistake in one line, 130 interrupted, 141 not read on."""

import argparse
import io
import math
import os
import select
import sys
import warnings
from pathlib import Path

from dlip import __version__, commands
from dlip.bench import BENCHES
from dlip.commands import OPTIONS
from dlip.common.errors import UserError, is_out_of_memory
from dlip.common.files import is_replaceable
from dlip.common.text import one_line
from dlip.experiments.config import LATENCY_REPEATS
from dlip.models.config import PRESETS
from dlip.training.config import CACHE, CACHE_GB, TrainConfig
from dlip.training.recipes import RECIPES, spelled_out

RESUMED = ("demo", "train", "distill", "ablate")
"""Commands that go on from a checkpoint."""
DATA = '"scenes", a folder, shards (a folder or address of *.tar), hub:NAME, or several joined by +'
ON_ERROR = "stop at faulty pictures and texts, or leave them out (default %(default)s)"


class Commands(argparse.ArgumentParser):
    """Of which some commands are two words, `data check`, and of whose options some stand for others, `--recipe`."""

    def parse_args(self, words=None, namespace=None):
        words = list(sys.argv[1:] if words is None else words)
        if words[:1] == ["data"] and words[1:2] in (["check"], ["shard"]):
            words[:2] = [" ".join(words[:2])]
        return super().parse_args(spelled_out(words), namespace)

    def error(self, message: str):
        """In one line, as every other mistake."""
        raise UserError(f"{message}; see {self.prog} --help")


def whole(least: int, most: float = math.inf):
    """Reads whole numbers within these bounds."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or not least <= int(text) <= most:
            upper = f" to {most:,}" if most < math.inf else " or more"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of {least}{upper}")
        return int(text)

    return read


def named(text: str) -> str:
    """Reads names, which must not be empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def parser() -> argparse.ArgumentParser:
    top = Commands(prog="dlip", description="Distil a light vision-language model out of a heavy one.")
    top.add_argument("--version", action="version", version=f"dlip {__version__}")
    kinds = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        function, help_: str, example: str, name: str | None = None, figures: bool = True
    ) -> argparse.ArgumentParser:
        new = kinds.add_parser(
            name or function.__name__, help=help_, description=f"{help_}.", epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        new.set_defaults(function=function)
        if figures:
            new.add_argument("--json", metavar="PATH", help="write the figures there as JSON; - for standard output")
        return new

    new = command(
        commands.demo, "Distil a small student here and compare it with its teacher", "dlip demo --out runs/demo"
    )
    new.add_argument("--out", default="runs/demo", help="folder of the run and its report (default %(default)s)")
    new.add_argument("--steps", type=whole(1), default=600, help="steps of the live student (default %(default)s)")
    new.add_argument("--seed", type=whole(0, 2**32 - 1), default=0)

    command(
        commands.models,
        "Parameters and FLOPs of every size, beside the paper's figures",
        "dlip models --json sizes.json",
    )

    new = command(commands.data, "Count the pictures and texts of a data set", "dlip data path/to/flickr8k")
    new.add_argument("name", metavar="DATA", help=DATA)
    new = command(
        commands.data_check, "Find what is wrong with a data set", "dlip data check path/to/flickr8k", "data check"
    )
    new.add_argument("name", metavar="DATA", help=DATA)
    new = command(
        commands.data_shard,
        "Pack a data set into shards",
        "dlip data shard path/to/flickr8k --out flickr8k-shards",
        "data shard",
    )
    new.add_argument("name", metavar="DATA", help=DATA)
    new.add_argument("--out", required=True, metavar="FOLDER", help="where the shards and their index go")
    new.add_argument("--splits", metavar="A,B", help="only these")
    new.add_argument("--pictures", type=whole(1), default=1000, metavar="N", help="in a shard (default %(default)s)")
    new.add_argument("--on-error", default="fatal", choices=("fatal", "skip"), help=ON_ERROR)

    for name, help_, example in (
        ("train", "Train a model without a teacher", "dlip train --size scenes-student --out runs/alone"),
        ("distill", "Train a student under a teacher",
         "dlip distill --teacher scenes/teacher --size scenes-student --out runs/student --weights vlp,hr,at,kd"),
    ):  # fmt: skip
        training_options(command(commands.train, help_, example, name), distils=name == "distill")

    new = command(commands.evaluate, "Measure a model on a data set", "dlip evaluate --model scenes/student --json -")
    new.add_argument("--model", required=True, help="a built-in model, a run's folder, or a published BLIP")
    data_options(new, "test where there is one, else val")
    new.add_argument("--tasks", default="retrieval,captioning,vqa", help="default %(default)s")
    new.add_argument(
        "--answers", action="append", metavar="FILE",
        help="rank these answers too: VQA's annotations of training, or a text, one a line (may be repeated)",
    )  # fmt: skip
    new.add_argument(
        "--beams", type=whole(1, 100), default=3, help="beams of captions and answers (default %(default)s)"
    )
    new.add_argument("--items", action="store_true", help="add every caption, answer and rank")
    new.add_argument("--results", metavar="FILE", help="add a record; the model's own has to lie beside the model")

    new = command(
        commands.ablate, "Run grids of students and print the paper's tables", "dlip ablate fusion --workers 2"
    )
    new.add_argument(
        "grids", nargs="*", metavar="GRID", help='names of dlip/experiments/grids.py, as "modules", or all'
    )
    new.add_argument("--seeds", type=whole(1), metavar="N", help="runs of each row (default: the grids' own, 3)")
    new.add_argument("--workers", type=whole(1), default=1, metavar="N", help="runs at a time (default %(default)s)")
    new.add_argument("--only", action="append", default=[], metavar="ROW", help="this row alone (may be repeated)")
    new.add_argument("--quick", action="store_true", help="minutes, not hours: shows that it works, not what it finds")
    new.add_argument("--conclusions", action="store_true", help="judge the paper's conclusions by the records")
    new.add_argument("--out", default="runs/ablate", help="folder of the runs (default %(default)s)")
    new.add_argument("--results", metavar="PATH", help="records (default results/ablations.jsonl; quick ones apart)")

    about = "; ".join(f"{name}: {what}" for name, what in BENCHES.items())
    new = command(commands.bench, "Time things side by side and keep the record", "dlip bench captioning")
    new.add_argument("name", choices=(*BENCHES, "all"), help=f"all, but reading without --data, or one: {about}")
    new.add_argument("--data", help="a folder of pictures with texts, where the benchmark reads one")
    new.add_argument("--rounds", type=whole(1), metavar="N", help="in each of which all sides take a turn")
    new.add_argument("--results", metavar="PATH", help="where the record goes (default results/bench/NAME.jsonl)")

    new = command(commands.export, "Write a model for other programs", "dlip export runs/student --to transformers")
    new.add_argument("model", metavar="MODEL", help="a run's folder or another model's name")
    new.add_argument("--to", choices=("transformers", "onnx"), help="what runs it (default this package itself)")
    low = new.add_mutually_exclusive_group()
    for precision, runs in (("bf16", "this package"), ("int8", "this package and onnx")):
        help_ = f"in {precision}, where {runs} will run it"
        low.add_argument(f"--{precision}", dest="precision", action="store_const", const=precision, help=help_)
    new.add_argument("--out", metavar="FOLDER", help="where its folders go (default runs/export/MODEL)")
    new.add_argument("--push", metavar="REPO", help="upload to the hub as REPO-retrieval and so on, by folder")

    new = command(
        commands.rerun, "Make a record again by its own command", "dlip rerun results/playground.jsonl --name student"
    )
    new.add_argument("records", metavar="PATH", help="a file of records, or a folder of them")
    new.add_argument("--name", help="of the record (default: the latest of all)")
    new.add_argument("--seed", type=whole(0), metavar="N", help="of the record (default: the latest)")
    new.add_argument("--out", default="runs/rerun", help="folder of the run (default %(default)s)")
    new.add_argument("--results", default="runs/rerun.jsonl", help="where its record goes (default %(default)s)")

    new = command(
        commands.advise, "Name the best student known within a budget", "dlip advise --max-params 0.5 --metric cider"
    )
    new.add_argument("--max-params", type=float, metavar="M", help="millions of parameters")
    new.add_argument("--max-gflops", type=float, metavar="G", help="GFLOPs of a picture and a text")
    new.add_argument("--max-latency", type=float, metavar="MS", help="median latency of the timed task")
    new.add_argument(
        "--metric", default="all", help="tr1, ir1, cider, vqa or all, the least kept of them (default %(default)s)"
    )
    new.add_argument(
        "--results", dest="records", metavar="PATH", default="results/ablations.jsonl",
        help="a file of records, or a folder of them (default %(default)s)",
    )  # fmt: skip

    new = command(
        commands.app, "Open teacher and student side by side in a browser", "dlip app --port 7860", figures=False
    )
    new.add_argument("--port", type=whole(1, 65535), help="default: the first free one from 7860")
    new.add_argument("--share", action="store_true", help="a public address, through Gradio's servers")
    new.add_argument("--models", metavar="A,B", help="only these can be chosen, the first two at the start")
    return top


def data_options(new: argparse.ArgumentParser, split: str) -> None:
    new.add_argument("--data", default="scenes", help=f"{DATA} (default %(default)s)")
    new.add_argument("--split", help=f"default: {split}")
    new.add_argument("--limit", type=int, metavar="N", help="use the first N pictures only")
    new.add_argument("--on-error", default="fatal", choices=("fatal", "skip"), help=ON_ERROR)
    new.add_argument(
        "--candidates", type=whole(0), metavar="K",
        help="how many of each picture or caption ITM ranks anew in retrieval (default 16 of scenes, else 128)",
    )  # fmt: skip
    new.add_argument(
        "--latency-repeats", type=whole(0), default=LATENCY_REPEATS, metavar="N",
        help="times that the model's latency is measured; 0 for none (default %(default)s)",
    )  # fmt: skip


def training_options(new: argparse.ArgumentParser, distils: bool) -> None:
    new.add_argument(
        "--out", required=True, type=named, help="folder of the run; one that holds a checkpoint is resumed"
    )
    new.add_argument("--name", type=named, help="name in the records (default: that of the folder)")
    new.add_argument(
        "--size", required=True, help=f"one of {', '.join(PRESETS)}; with changes, scenes-student:text_layers=3"
    )
    if distils:
        new.add_argument("--teacher", required=True, help="a model's name, or several joined by +")
        new.add_argument(
            "--cache", nargs="?", const=CACHE, metavar="FOLDER",
            help="keep what the teacher says there and read it from then on (default there: %(const)s)",
        )  # fmt: skip
        new.add_argument("--cache-gb", type=float, default=CACHE_GB, metavar="GB", help="at most (default %(default)s)")
        new.set_defaults(tokenizer=None, role="distilled")
    else:
        new.set_defaults(teacher=None, cache=None, cache_gb=CACHE_GB)
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
    data_options(new, "train, of the scenes train-small")
    new.add_argument("--test-data", metavar="DATA", help="measured on at the end (default: --data)")
    new.add_argument("--test-split", help="of it (default: test where there is one, else val)")
    new.add_argument("--test-limit", type=whole(1), metavar="N", help="measure on the first N pictures of it only")
    new.add_argument("--results", default="runs/records.jsonl", help="where the record goes (default %(default)s)")
    default = "vlp,hr,at" if distils else "vlp"
    new.add_argument("--weights", default=default, help="terms, as in vlp,hr,kd.lm=0.5 (default %(default)s)")
    new.add_argument("--joins", default="", help="terms that join later, and after how many steps: vlp=500,itm=900")
    if distils:
        new.add_argument(
            "--layers", default="", help="layers that hr.* and at.* compare, teacher:student, as in fusion=5:1+3:0"
        )
    new.add_argument("--epochs", type=float, metavar="X", help="instead of --steps: how often each picture is seen")
    new.add_argument(
        "--recipe", choices=RECIPES, help="the paper's options for this stage (docs/training.md); those typed here win"
    )
    new.add_argument("--dry-run", action="store_true", help="only tell what it would cost: FLOPs, memory, hours")
    group = new.add_argument_group("training", "see TrainConfig in dlip/models/config.py for each")
    defaults = TrainConfig()
    for option in OPTIONS:
        value = getattr(defaults, option)
        group.add_argument(f"--{option.replace('_', '-')}", type=type(value), metavar="X", help=f"default {value}")
    group.add_argument("--augment", action=argparse.BooleanOptionalAction, help="vary the training pictures")
    group.add_argument("--flip", action=argparse.BooleanOptionalAction, help="with --augment, mirror photos too")
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time: see there")
    group.add_argument("--compile", action="store_true", help="compile the layers: slow to start, then faster on GPUs")
    group.add_argument("--shard-teacher", action="store_true", help="each process keeps a part of the teacher")
    group.add_argument("--fixed-teacher-space", action="store_true", help="hr.* leaves the teacher's space as it is")
    group.add_argument("--center-states", action="store_true", help="hr.* compares how states differ from their mean")


def check_places(args: argparse.Namespace) -> None:
    """Raises UserError where figures or records could not be written in the end, before any work is done."""
    asked = {option: getattr(args, option, None) for option in ("json", "results")}
    if asked["json"] == "-":  # standard output
        del asked["json"]
    if getattr(args, "dry_run", False):  # which leaves no record
        del asked["results"]
    if asked.get("results") and (
        odd := [word for word in args.words if word != word.encode(errors="replace").decode()]
    ):
        raise UserError(f"a record holds no names of bytes that are no UTF-8, as {odd[0]} has; rename it")
    for option, path in ((option, Path(path)) for option, path in asked.items() if path is not None):
        place = next(place for place in (path, *path.parents) if place.exists())
        if path.is_dir() or (place != path and not place.is_dir()):
            raise UserError(f"--{option} {path} cannot be a file; name another place")
        if option == "results" and place == path and not place.is_file():
            raise UserError(f"--results {path} keeps nothing, as it is no file on a disk; name another place")
        replaced = option == "json" and place.is_file() and is_replaceable(place)
        if not os.access(place.parent if replaced else place, os.W_OK):
            raise UserError(f"--{option} {path} may not be written; name another place")


def told(fault: OSError) -> str:
    """What the system says of a file, as a sentence."""
    where = f" {fault.filename}" if fault.filename else ""
    return f"the system refuses{where} ({fault.strerror or fault}); name another place, or make room"


INTERRUPTED, UNHEARD = 130, 141
"""What a command ends with that was stopped by Ctrl-C, or whose reader has gone; one with a mistake ends with 2."""


def heard() -> bool:
    """Whether somebody reads standard output; what is left to be said goes nowhere where nobody does."""
    out = select.poll()
    out.register(sys.stdout.fileno(), 0)  # errors alone
    if gone := out.poll(0):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return not gone


def main(words: list[str] | None = None) -> int:
    words = sys.argv[1:] if words is None else words
    warnings.formatwarning = lambda message, *_: f"dlip: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # of few characters perhaps, where names may be of odd bytes
            stream.reconfigure(errors="backslashreplace")
    tells = os.environ.get("LOCAL_RANK", "0") == "0"  # of a machine's several processes one does
    if not tells:
        warnings.simplefilter("ignore")
    try:
        args = parser().parse_args(words)
        args.words = words
        check_places(args)
        args.function(args)
        sys.stdout.flush()
    except (UserError, OSError) as mistake:
        if isinstance(mistake, BrokenPipeError) and not heard():
            return UNHEARD
        if tells:
            print(f"dlip: {mistake if isinstance(mistake, UserError) else one_line(told(mistake))}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if tells:
            print("dlip: there is not enough memory for this; take a smaller --batch-size or --size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "; the same command goes on from the last checkpoint, if there is one" * (words[0] in RESUMED)
        print(f"dlip: interrupted{kept}", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
