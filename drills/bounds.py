"""Runs all tests with the oldest and with the newest releases that pyproject.toml allows, each in a new environment."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from dlip.common.errors import UserError

RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
"""Environment -> uv's name of how its releases are chosen."""
RECORDED = ("torch", "transformers", "accelerate", "gradio", "pandas", "plotly", "numpy")


def run(times: int = 1) -> tuple[dict, dict, list[str]]:
    """Return the releases of `RECORDED`, the outcomes of `times` runs of the tests, and the names of failed tests.

    Raises UserError if uv fails.
    """
    releases, counts, faults = {}, {}, []
    with tempfile.TemporaryDirectory() as folder:
        for name, resolution in RESOLUTIONS.items():
            environment, report = Path(folder, name), Path(folder, f"{name}.xml")
            python = str(environment / "bin" / "python")
            uv("venv", "--python", "3.11", str(environment))
            uv("pip", "install", "--python", python, "--resolution", resolution, "--editable", ".[test]")
            installed = json.loads(uv("pip", "list", "--python", python, "--format", "json"))
            releases[name] = {p["name"]: p["version"] for p in installed if p["name"] in RECORDED}
            tests, counts[name] = [python, "-m", "pytest", "-n", "2", "--dist", "worksteal"], Counter()
            for _ in range(times):
                report.unlink(missing_ok=True)
                subprocess.run([*tests, f"--junitxml={report}"], env=os.environ | {"OMP_NUM_THREADS": "1"})
                outcomes, failed = read_report(report)
                counts[name] += outcomes
                faults += [f"{name}: {test}" for test in failed]
    return {"times": times, **releases}, counts, faults


def uv(*arguments: str) -> str:
    process = subprocess.run([sys.executable, "-m", "uv", *arguments], capture_output=True, text=True)
    if process.returncode:
        raise UserError(f"`uv {' '.join(arguments)}` failed: {process.stderr.strip()[-300:]}")
    return process.stdout


def read_report(path: Path) -> tuple[Counter, list[str]]:
    """Numbers of passed, skipped and failed tests in pytest's JUnit XML, and the names of the failed ones."""
    if not path.exists():
        return Counter(), ["the tests did not finish"]
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = Counter(passed=len(cases) - len(failed) - skipped, skipped=skipped, failed=len(failed))
    return counts, [f"{case.get('classname')}::{case.get('name')}" for case in failed]
