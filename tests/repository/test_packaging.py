"""Set-up: what is declared, what is imported, and what a newcomer meets before anything is installed."""

import ast
import csv
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
OPTIONAL = [requirement for extra in EXTRAS.values() for requirement in extra]


def name_of(requirement: str) -> str:
    """`Torch_x>=2` -> `torch-x`"""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def imports(files, everywhere: bool) -> dict[str, str]:
    """Third-party distribution -> one file that imports it: at its top level, or `everywhere` in it."""
    owners, found = packages_distributions(), {}
    own = sys.stdlib_module_names | {"dlip", "app", "drills", "tests"} | {file.stem for file in files}
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


def test_everything_imported_is_declared():
    needed = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    declared = needed | {name_of(requirement) for requirement in OPTIONAL}
    package = sorted((ROOT / "dlip").rglob("*.py"))
    rest = [file for folder in ("app", "drills", "tests") for file in sorted((ROOT / folder).rglob("*.py"))]
    at_import, anywhere = imports(package, everywhere=False), imports(package + rest, everywhere=True)
    assert "torch" in at_import and "pytest" in anywhere
    assert {k: v for k, v in at_import.items() if k not in needed} == {}
    assert {k: v for k, v in anywhere.items() if k not in declared} == {}


def test_environment_installs_what_pyproject_declares():
    """Names and ranges reach conda through `-e .[...]`: none can differ. Its own are Python, pip and Java."""
    *conda, last = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert {name_of(entry) for entry in conda} == {"python", "pip", "openjdk"}
    (editable,) = last["pip"]
    extras = re.fullmatch(r"-e \.\[([\w,]+)\]", editable)[1].split(",")
    assert sorted(extras) == sorted(EXTRAS)
    (python,) = (entry for entry in conda if name_of(entry) == "python")
    assert PROJECT["requires-python"] == python.replace("python=", ">=")


def test_every_dependency_has_a_lower_bound_and_no_pin():
    loose_range = re.compile(r"[\w-]+>=[\d.]+(,<[\d.]+)?")
    assert [r for r in PROJECT["dependencies"] + OPTIONAL if not loose_range.fullmatch(r)] == []


def test_the_locked_releases_are_ones_that_are_admitted():
    lines = (ROOT / "requirements.lock").read_text().split()
    locked = dict(line.split("==") for line in lines)
    assert len(locked) == len(lines) > 100 and not [version for version in locked.values() if "+" in version]
    for requirement in [*PROJECT["dependencies"], *OPTIONAL]:
        least, has = requirement.partition(">=")[2].split(",")[0], locked[name_of(requirement)]
        assert [int(n) for n in re.findall(r"\d+", has)] >= [int(n) for n in least.split(".")], requirement


def test_every_dependency_has_its_licence_told():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|", (ROOT / "docs" / "licenses.md").read_text(), re.M)[1:]
    told = {name for names, licence in rows for name in names.split(", ") if licence.strip()}
    assert told == {name_of(requirement) for requirement in PROJECT["dependencies"] + OPTIONAL}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_locked_release_has_its_licence_told():
    """But those that a GPU needs, of which docs/licenses.md speaks."""
    rows = list(csv.DictReader((ROOT / "docs" / "licenses.csv").open()))
    told = {row["Name"]: row["License"] for row in rows}
    locked = set((ROOT / "requirements.lock").read_text().lower().split())
    releases = {f"{plain(row['Name'])}=={row['Version'].partition('+')[0]}" for row in rows}
    lacking = {plain(release.partition("==")[0]) for release in locked - releases}
    assert {name for name in lacking if not name.startswith(("cuda-", "nvidia-"))} <= {"triton"}
    assert {name for name, licence in told.items() if licence in ("", "UNKNOWN")} <= {"pycocoevalcap"}  # told by hand


def test_version_needs_no_torch():
    command = [sys.executable, "-X", "importtime", Path(sysconfig.get_path("scripts")) / "dlip", "--version"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0 and dlip.__version__ in run.stdout
    imported = {line.rpartition("|")[2].strip() for line in run.stderr.splitlines()}
    assert "dlip.cli" in imported
    assert not imported & {"torch", "transformers", "numpy", "pandas", "plotly"}


@pytest.mark.parametrize("name", dlip.__all__)
def test_lazy_names_lead_to_functions(name):
    assert callable(getattr(dlip, name))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'dlip' has no attribute 'nothing'"):
        dlip.nothing  # noqa: B018


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("exit 1", "is not Python 3.11 or newer"),
        ('case "$2" in *ensurepip*) exit 1; esac', "sudo apt install python3-venv"),
    ],
    ids=["old", "without-venv"],
)
def test_make_says_what_python_lacks(tmp_path, body, words):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    run = subprocess.run(["make", "demo", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True)
    said = [line for line in run.stderr.splitlines() if not line.startswith("make")]
    assert run.returncode and len(said) == 1 and words in said[0]
    assert not (tmp_path / ".venv").exists()


CALLS = r"""
import pkgutil, sys
asked = []
sys.addaudithook(lambda event, args: asked.append((event, args)) if event in (
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
print("asked:", asked)
"""


def test_nothing_is_asked_of_other_machines(tmp_path):
    """Neither on importing every module nor by a run, what it is measured by, or the page."""
    done = subprocess.run([sys.executable, "-c", CALLS], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("asked: []\n")
