"""Executes notebooks in place from a clean kernel, with a still picture beside each interactive chart.

`python -m dlip.notebook.execute notebooks/*.ipynb`, which is `make notebooks`. The pictures need Chrome or Chromium;
where there is none they are left out, and a sentence says so.
"""

import base64
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from dlip.notebook.page import PLOTLY

WIDGET = "application/vnd.jupyter.widget-view+json"
CONTROLS = "Controls: run this cell in Jupyter to change what is shown below."
WIDTH, SCALE = 800, 1.5
"""px of a picture's width, and how many of its pixels stand for one."""
LIVE = "live"
"""Tag of the cell before which a notebook has shown its results."""


def execute(path: str | Path, timeout: int = 3600):
    """The notebook of `path` with its outputs, from a clean kernel in its folder; the file stays as it is.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient

    path = Path(path)
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    return client.execute()


def seconds(notebook, before_live: bool = False) -> float:
    """Wall time of an executed notebook's cells, all or those before the live one; its kernel's start apart."""
    whole = 0.0
    for cell in notebook.cells:
        if before_live and LIVE in cell.metadata.get("tags", ()):
            break
        times = cell.metadata.get("execution", {})
        if "iopub.execute_input" in times and "shell.execute_reply" in times:
            begin, end = (datetime.fromisoformat(times[f"{key}"].replace("Z", "+00:00"))
                          for key in ("iopub.execute_input", "shell.execute_reply"))  # fmt: skip
            whole += (end - begin).total_seconds()
    return whole


def tidy(notebook) -> None:
    """Leaves out what differs from one execution to the next, and widgets, which nothing shows without a kernel."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if WIDGET in output.get("data", {}):
                output["data"] = {"text/plain": CONTROLS}
    notebook.metadata.pop("widgets", None)


def add_pictures(notebook) -> int:
    """Adds a PNG to every chart that has none, and returns how many charts still lack one."""
    charts = [
        output["data"] for cell in notebook.cells for output in cell.get("outputs", ())
        if PLOTLY in output.get("data", {}) and "image/png" not in output["data"]
    ]  # fmt: skip
    if not charts:
        return 0
    import plotly.graph_objects as go
    import plotly.io as pio

    figures = [go.Figure(data[PLOTLY]) for data in charts]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.png" for i in range(len(figures))]
        try:
            pio.write_images(figures, files, width=WIDTH, height=[f.layout.height or 450 for f in figures], scale=SCALE)
        except RuntimeError as error:  # no browser, or no kaleido to drive it
            print(f"no pictures of charts: {str(error).strip().splitlines()[0]}")
            return len(charts)
        for data, file in zip(charts, files, strict=True):
            data["image/png"] = base64.b64encode(file.read_bytes()).decode()
    return 0


def main(paths: list[str]) -> None:
    import nbformat

    for path in paths:
        began = time.perf_counter()
        notebook = execute(path)
        opened, whole = seconds(notebook, before_live=True), seconds(notebook)
        tidy(notebook)
        lacking = add_pictures(notebook)
        nbformat.write(notebook, path)
        print(
            f"{path}: results after {opened:.1f} s of its kernel, all after {whole:.0f} s, "
            f"{time.perf_counter() - began:.0f} s with start and pictures, {Path(path).stat().st_size / 1e6:.2f} MB"
        )
        if lacking:
            print(f"  {lacking} charts have no picture; they need Chrome or Chromium and dlip[notebooks]")


if __name__ == "__main__":
    main(sys.argv[1:])
