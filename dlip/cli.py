"""The command line: the table of commands, arguments to options, errors to one line, and exit codes.

0 is success, 2 a user's mistake, 130 an interruption, 141 a closed standard output.
"""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlip import __version__, commands
from dlip.bench import BENCHES
from dlip.commands import data_sets
from dlip.common.errors import UserError, is_out_of_memory
from dlip.common.files import is_replaceable
from dlip.common.options import add_options, build
from dlip.common.text import one_line
from dlip.experiments.config import command_defaults
from dlip.training.recipes import RECIPES
from dlip.training.weights import terms_help

RESUMABLE = ("demo", "train", "distill", "ablate", "data recaption")
"""Commands that resume from a checkpoint."""
INTERRUPTED, BROKEN_PIPE = 130, 141


@dataclass(frozen=True)
class Command:
    """One command of `dlip`."""

    function: Callable[[Any], None]
    """Its docstring is the command's help."""
    options: type
    example: str
    notes: str = ""
    """Printed before the example."""

    @property
    def name(self) -> str:
        return self.function.__name__.replace("_", " ")

    @property
    def defaults(self) -> dict[str, Any]:
        """Defaults of its options where they are not those of the dataclass."""
        return command_defaults(self.name)


COMMANDS = {
    command.name: command
    for command in (
        Command(commands.demo, commands.Demo, "dlip demo --out runs/demo"),
        Command(commands.models, commands.Figures, "dlip models --json sizes.json"),
        Command(data_sets.data, data_sets.Data, "dlip data path/to/flickr8k"),
        Command(data_sets.data_check, data_sets.Data, "dlip data check path/to/flickr8k"),
        Command(
            data_sets.data_recaption, data_sets.DataRecaption,
            "dlip data recaption path/to/photos --writer Salesforce/blip-image-captioning-base --out runs/written",
        ),
        Command(commands.train, commands.Train, "dlip train --size scenes-student --out runs/alone"),
        Command(
            commands.distill, commands.Train,
            "dlip distill --teacher scenes/teacher --size scenes-student --out runs/student --weights vlp,hr,at,kd",
        ),
        Command(commands.evaluate, commands.Evaluate, "dlip evaluate --model scenes/student --json -"),
        Command(commands.ablate, commands.Ablate, "dlip ablate fusion --jobs 2"),
        Command(
            commands.bench, commands.Bench, "dlip bench captioning",
            "benchmarks:\n" + "".join(f"  {name:11} {what}\n" for name, what in BENCHES.items()) + "\n",
        ),
        Command(commands.export, commands.Export, "dlip export runs/student --to transformers"),
        Command(commands.rerun, commands.Rerun, "dlip rerun results/playground.jsonl --name student"),
        Command(commands.advise, commands.Advise, "dlip advise --max-params 1 --metric cider"),
        Command(commands.app, commands.App, "dlip app --port 7860"),
    )
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError instead of printing a usage."""

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")


def parse(argv: list[str]) -> tuple[Command, Any]:
    """The command and its options. Raises UserError, and SystemExit after --help and --version."""
    if (subcommand := " ".join(argv[:2])) in COMMANDS:  # as in `dlip data check`
        argv = [subcommand, *argv[2:]]
    top = Parser(prog="dlip", description="Distill a light vision-language model from a heavy one.")
    top.add_argument("--version", action="version", version=f"dlip {__version__}")
    names = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        about, notes = command.function.__doc__, command.notes
        if command.options is commands.Train and argv[:1] == [name]:
            notes = f"terms of --weights, their groups and what they need of the data:\n{terms_help()}\n"
        parser = names.add_parser(
            name, help=about.rstrip("."), description=about, epilog=f"{notes}example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        if argv[:1] == [name]:  # the options of one command alone, so that start-up is fast
            add_options(parser, command.options, name, command.defaults)
    typed, unknown = top.parse_known_args(argv)
    if unknown:
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}; see dlip {argv[0]} --help")
    command = COMMANDS[argv[0]]
    return command, build(command.options, command.name, with_recipe(command, vars(typed)))


def with_recipe(command: Command, typed: dict[str, Any]) -> dict[str, Any]:
    """The command's defaults, updated by the options of --recipe, updated by what was typed."""
    if "steps" in typed and "epochs" in typed:
        raise UserError("--steps and --epochs both set the length of the run; pass one of them")
    recipe = RECIPES[typed["recipe"]].options(command.name) if "recipe" in typed else {}
    if "steps" in typed:
        recipe.pop("epochs", None)
    return command.defaults | recipe | typed


def check_outputs(options: Any) -> None:
    """Raise UserError, before any work is done, if --json or --results cannot be written or are one file."""
    paths = {name: getattr(options, name, None) for name in ("json", "results")}
    if paths["json"] == "-" or paths["json"] is None:
        del paths["json"]
    if getattr(options, "dry_run", False) or paths["results"] is None:  # no record is written
        del paths["results"]
    if len({Path(path).resolve() for path in paths.values()}) < len(paths):
        raise UserError(f"--json would replace the records of --results {paths['results']}; choose another path")
    for name, path in ((name, Path(path)) for name, path in paths.items()):
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if path.is_dir() or (existing != path and not existing.is_dir()):
            raise UserError(f"--{name} {path} cannot be a file; choose another path")
        if name == "results" and existing == path and not existing.is_file():
            raise UserError(f"--results {path} is not a file on a disk, so it would keep nothing; choose another path")
        replaced = name == "json" and existing.is_file() and is_replaceable(existing)
        if not os.access(existing.parent if replaced else existing, os.W_OK):
            raise UserError(f"--{name} {path} is not writable; choose another path")


def process_suffix() -> str:
    """Suffix of messages that names this process, such as ` (process 3)`; empty for a single process."""
    if "LOCAL_RANK" not in os.environ:  # importing torch takes seconds
        return ""
    from dlip.common import distributed

    return f" (process {distributed.rank()})" if distributed.world_size() > 1 else ""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    warnings.formatwarning = lambda message, *_: f"dlip: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack characters of a name
            stream.reconfigure(errors="backslashreplace")
    main_process = os.environ.get("LOCAL_RANK", "0") == "0"
    if not main_process:
        warnings.simplefilter("ignore")

    def failed(message: str, error: BaseException) -> int:
        """The first process reports an error that all of them raise; others report their own."""
        suffix = "" if hasattr(error, "shared") else process_suffix()
        if main_process or suffix:
            print(f"dlip{suffix}: {message}", file=sys.stderr)
        return 2

    try:
        command, options = parse(argv)
        check_outputs(options)
        command.function(options)
        sys.stdout.flush()
    except UserError as mistake:
        return failed(str(mistake), mistake)
    except BrokenPipeError:  # the reader of standard output is gone; what is buffered is discarded
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return failed(one_line(f"{path}{error.strerror or error}; choose another path, or free disk space"), error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        smaller = (
            "use a smaller --batch-size or --size"
            if argv[0] in ("train", "distill")
            else "use a smaller model or fewer images"
        )
        return failed(f"not enough memory; {smaller}", error)
    except KeyboardInterrupt:
        resumable = {argv[0], " ".join(argv[:2])} & {*RESUMABLE}
        resumes = "; the same command resumes from the last checkpoint, if there is one" * bool(resumable)
        print(f"dlip: interrupted{resumes}", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
