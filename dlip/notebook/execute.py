"""Executes notebooks in place from a clean kernel and adds a PNG of each interactive chart.

`make notebooks` runs `python -m dlip.notebook.execute notebooks/*.ipynb`. The PNGs need Chrome or Chromium; without
either they are skipped with a message.
"""

import base64
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import plotly.io as pio
from nbclient import NotebookClient

from dlip.common.errors import first_line
from dlip.notebook.controls import PLOTLY_MIME

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
CONTROLS_TEXT = "Controls: run this cell in Jupyter to change what is shown below."
DASHBOARD_TEXT = "Dashboard: run this cell in Jupyter to see it."
WIDTH, SCALE = 800, 1.5
"""Width of a PNG in px, and its pixels per px."""
LIVE_TAG = "live"
"""Tag of the cell that trains or measures; the results come before it."""


def execute(path: str | Path, timeout: int = 3600):
    """The notebook with its outputs, executed by a clean kernel in its folder; the file is not changed.

    Raises nbclient's CellExecutionError if a cell fails.
    """
    path = Path(path)
    notebook = nbformat.read(path, 4)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    return client.execute()


def seconds(notebook, before_live: bool = False) -> float:
    """Wall time of an executed notebook's cells, all or those before the live one, without the start of the kernel."""
    total = 0.0
    for cell in notebook.cells:
        if before_live and LIVE_TAG in cell.metadata.get("tags", ()):
            break
        times = cell.metadata.get("execution", {})
        if "iopub.execute_input" in times and "shell.execute_reply" in times:
            begin, end = (datetime.fromisoformat(times[key]) for key in ("iopub.execute_input", "shell.execute_reply"))
            total += (end - begin).total_seconds()
    return total


def tidy(notebook) -> None:
    """Remove execution times, which differ between executions, and widgets and dashboards, which need a kernel."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", ()):
            if WIDGET_MIME in output.get("data", {}):
                output["data"] = {"text/plain": CONTROLS_TEXT}
            elif "//127.0.0.1:" in output.get("data", {}).get("text/html", ""):
                output["data"] = {"text/plain": DASHBOARD_TEXT}
    notebook.metadata.pop("widgets", None)


def add_images(notebook) -> int:
    """Add a PNG to every chart without one; return how many charts still lack one."""
    charts = [
        output["data"] for cell in notebook.cells for output in cell.get("outputs", ())
        if PLOTLY_MIME in output.get("data", {}) and "image/png" not in output["data"]
    ]  # fmt: skip
    if not charts:
        return 0
    figures = [go.Figure(data[PLOTLY_MIME]) for data in charts]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.png" for i in range(len(figures))]
        try:
            pio.write_images(figures, files, width=WIDTH, height=[f.layout.height or 450 for f in figures], scale=SCALE)
        except RuntimeError as error:  # no browser, or no kaleido to drive it
            print(f"no images of charts: {first_line(error)}")
            return len(charts)
        for data, file in zip(charts, files, strict=True):
            data["image/png"] = base64.b64encode(file.read_bytes()).decode()
    return 0


def main(paths: list[str]) -> None:
    for path in paths:
        start = time.perf_counter()
        notebook = execute(path)
        results, total = seconds(notebook, before_live=True), seconds(notebook)
        tidy(notebook)
        missing = add_images(notebook)
        nbformat.write(notebook, path)
        print(
            f"{path}: results after {results:.1f} s, all cells after {total:.0f} s, "
            f"{time.perf_counter() - start:.0f} s with kernel and images, {Path(path).stat().st_size / 1e6:.2f} MB"
        )
        if missing:
            print(f"  {missing} charts have no image; install Chrome or Chromium and dlip[notebooks]")


if __name__ == "__main__":
    main(sys.argv[1:])
