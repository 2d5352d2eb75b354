"""Every notebook executed from a clean kernel, and the committed copies."""

import ast
import base64
import re
import shutil

import nbformat
import pytest

from dlip.notebook import execute
from dlip.notebook.controls import PLOTLY_MIME
from tests.helpers import ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ("01_playground", "02_module_wise", "03_modality_wise", "04_tradeoffs", "05_attention", "06_your_own_data")
ALL = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code(book) -> list:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def output_text(cell) -> str:
    """All text among the outputs of a cell."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {"text/plain": output.get("text", "")})
        parts += [str(content) for kind, content in data.items() if not kind.startswith("image/")]
    return "".join(parts).strip()


def charts(book) -> list[dict]:
    return [o["data"] for cell in code(book) for o in cell.outputs if PLOTLY_MIME in o.get("data", {})]


def test_all_notebooks_exist():
    assert tuple(path.stem for path in PATHS) == NAMES


IN_EVERY_RUN = ("01_playground", "06_your_own_data")
"""Notebooks with a live cell that trains; the others draw records and maps."""


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=() if path.stem in IN_EVERY_RUN else pytest.mark.slow) for path in PATHS],
)
def test_runs_from_a_clean_kernel(path, tmp_path, monkeypatch):
    monkeypatch.setenv("DLIP_QUICK", "1")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "results").symlink_to(ROOT / "results")
    copy = shutil.copy(path, tmp_path / "notebooks")
    book = execute.execute(copy, timeout=240)  # which raises where a cell does
    committed = nbformat.read(path, 4)
    for cell, before in zip(code(book), code(committed), strict=True):
        assert not [output for output in cell.outputs if output.output_type == "error"]
        assert bool(output_text(cell)) == bool(output_text(before)), f"{cell.source}\nhas {output_text(cell)[:500]!r}"


@ALL
def test_committed_copy_is_executed(path):
    book = nbformat.read(path, 4)
    assert path.stat().st_size < 1.5e6
    assert [cell.execution_count for cell in code(book)] == list(range(1, 1 + len(code(book))))
    assert all(output_text(cell) for cell in code(book))
    for data in charts(book):
        assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert execute.WIDGET_MIME not in path.read_text() and "widgets" not in book.metadata
    assert str(ROOT) not in path.read_text()
    if path.stem[:2] in ("02", "03", "04", "05"):
        assert len(charts(book)) > 2 and "Nothing to show" not in path.read_text()


@ALL
def test_structure_of_a_notebook(path):
    cells = nbformat.read(path, 4).cells
    assert cells[0].source.startswith(f"# {int(path.stem[:2])}. ")
    assert sum(execute.LIVE_TAG in cell.metadata.get("tags", ()) for cell in cells) == 1


@ALL
def test_notebooks_define_nothing(path):
    source = "\n".join(cell.source for cell in code(nbformat.read(path, 4)))
    tree = ast.parse(re.sub(r"^[!%].*$", "", source, flags=re.MULTILINE))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {"dlip", "pandas", "trackio", "transformers"}


@ALL
def test_names_of_the_api_exist(path):
    source = "\n".join(cell.source for cell in code(nbformat.read(path, 4)))
    tree = ast.parse(re.sub(r"^[!%].*$", "", source, flags=re.MULTILINE))
    names = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node), names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            assert hasattr(names[node.value.id], node.attr), ast.unparse(node)
