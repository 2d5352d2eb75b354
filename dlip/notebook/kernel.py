"""The first cell of a notebook: working directory, display of figures and errors, versions."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from IPython import get_ipython
from IPython.display import Markdown

import dlip
from dlip.common.errors import UserError
from dlip.common.text import plural
from dlip.notebook.controls import mime_bundle

PACKAGES = ("torch", "transformers", "plotly")


def setup():
    """Prepare the notebook and return a line with the versions in use.

    Paths are relative to the repository, `!dlip` runs this environment's command, figures are displayed as plotly JSON
    only (no copy of plotly in the file, and no slow imports), and a UserError is shown as one sentence.
    """
    if Path.cwd().name == "notebooks":
        os.chdir("..")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers shows one for every file it writes
    shell = get_ipython()
    if shell is not None:
        shell.display_formatter.ipython_display_formatter.for_type_by_name("plotly.graph_objs._figure", "Figure", _show)
        shell.set_custom_exc((UserError,), _show_error)
    versions = " · ".join(f"{name} {version(name)}" for name in PACKAGES)
    short = " · short run: the live cell only shows that it works" * bool(os.getenv("DLIP_QUICK"))
    cores = plural(os.cpu_count(), "core")
    return Markdown(f"**dlip {dlip.__version__}** · {versions} · Python {platform.python_version()} · {cores}{short}")


def _show(figure) -> None:
    from IPython.display import display

    display(mime_bundle(figure), raw=True)


def _show_error(shell, kind, error, traceback, tb_offset=None) -> list[str]:
    """An IPython exception handler that prints the message only."""
    print(f"dlip: {error}", file=sys.stderr)
    return [str(error)]
