"""The command line: words to options, faults to one line, and exit codes.

0 is success, 2 a user's mistake, 130 an interruption, 141 a closed standard output.
"""

import argparse
import io
import os
import select
import sys
import warnings
from pathlib import Path
from typing import Any

from dlip import __version__
from dlip.commands import COMMANDS, Command
from dlip.common.errors import UserError, is_out_of_memory
from dlip.common.files import is_replaceable
from dlip.common.options import add_options, build
from dlip.common.text import one_line
from dlip.training.recipes import RECIPES

RESUMABLE = ("demo", "train", "distill", "ablate")
"""Commands that resume from a checkpoint."""
INTERRUPTED, BROKEN_PIPE = 130, 141


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError instead of printing a usage."""

    def error(self, message: str):
        raise UserError(f"{message}; see {self.prog} --help")


def parse(words: list[str]) -> tuple[Command, Any]:
    """The command that is meant and its options. Raises UserError, and SystemExit after --help and --version."""
    words = [" ".join(words[:2]), *words[2:]] if " ".join(words[:2]) in COMMANDS and len(words) > 1 else words
    top = Parser(prog="dlip", description="Distill a light vision-language model from a heavy one.")
    top.add_argument("--version", action="version", version=f"dlip {__version__}")
    names = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        about = command.function.__doc__
        parser = names.add_parser(
            name, help=about.rstrip("."), description=about, epilog=f"{command.notes}example:\n  {command.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        if words[:1] == [name]:  # the options of one command alone, so that start-up is fast
            add_options(parser, command.options, name, command.defaults)
    typed, unknown = top.parse_known_args(words)
    if unknown:
        raise UserError(f"unrecognized arguments: {' '.join(unknown)}; see dlip {words[0]} --help")
    command = COMMANDS[words[0]]
    return command, build(command.options, command.name, with_recipe(command, vars(typed)))


def with_recipe(command: Command, typed: dict[str, Any]) -> dict[str, Any]:
    """What was typed over the options of its --recipe over the command's defaults."""
    if "steps" in typed and "epochs" in typed:
        raise UserError("--steps and --epochs both set the length of the run; pass one of them")
    recipe = RECIPES[typed["recipe"]].options(command.name) if "recipe" in typed else {}
    if "steps" in typed:
        recipe.pop("epochs", None)
    return command.defaults | recipe | typed


def check_outputs(options: Any, words: list[str]) -> None:
    """Raises UserError where --json or --results could not be written in the end, before any work is done."""
    paths = {name: getattr(options, name, None) for name in ("json", "results")}
    if paths["json"] == "-" or paths["json"] is None:
        del paths["json"]
    if getattr(options, "dry_run", False) or paths["results"] is None:  # no record is written
        del paths["results"]
    for word in words if "results" in paths else ():
        if word != word.encode(errors="replace").decode():
            raise UserError(f"a record cannot hold {word}, which is not UTF-8; rename it")
    for name, path in ((name, Path(path)) for name, path in paths.items()):
        place = next(place for place in (path, *path.parents) if place.exists())
        if path.is_dir() or (place != path and not place.is_dir()):
            raise UserError(f"--{name} {path} cannot be a file; choose another path")
        if name == "results" and place == path and not place.is_file():
            raise UserError(f"--results {path} is not a file on a disk, so it would keep nothing; choose another path")
        replaced = name == "json" and place.is_file() and is_replaceable(place)
        if not os.access(place.parent if replaced else place, os.W_OK):
            raise UserError(f"--{name} {path} is not writable; choose another path")


def describe(fault: OSError) -> str:
    """A system error as a sentence."""
    where = f" {fault.filename}" if fault.filename else ""
    return f"the system refuses{where} ({fault.strerror or fault}); choose another path, or make room"


def stdout_open() -> bool:
    """Whether standard output still has a reader; where it has none, what is buffered is discarded."""
    out = select.poll()
    out.register(sys.stdout.fileno(), 0)  # errors alone
    if closed := out.poll(0):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return not closed


def main(words: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = sys.argv[1:] if words is None else words
    warnings.formatwarning = lambda message, *_: f"dlip: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # its encoding may lack characters of a name
            stream.reconfigure(errors="backslashreplace")
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"  # one of a machine's processes
    if not speaks:
        warnings.simplefilter("ignore")

    def failed(sentence: str | Exception) -> int:
        if speaks:
            print(f"dlip: {sentence}", file=sys.stderr)
        return 2

    try:
        command, options = parse(words)
        check_outputs(options, words)
        command.function(options)
        sys.stdout.flush()
    except UserError as mistake:
        return failed(mistake)
    except OSError as fault:
        closed = isinstance(fault, BrokenPipeError) and not stdout_open()
        return BROKEN_PIPE if closed else failed(one_line(describe(fault)))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return failed("there is not enough memory for this; take a smaller --batch-size or --size")
    except KeyboardInterrupt:
        resumes = "; the same command resumes from the last checkpoint, if there is one" * (words[0] in RESUMABLE)
        print(f"dlip: interrupted{resumes}", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
