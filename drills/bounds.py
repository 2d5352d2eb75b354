"""The oldest and the newest releases that pyproject.toml admits: an environment of either, and every test in it."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from dlip.common.errors import UserError

ENDS = {"oldest": "lowest-direct", "newest": "highest"}
"""Which releases -> what uv calls them."""
TOLD = ("torch", "transformers", "accelerate", "gradio", "pandas", "plotly", "numpy")


def run(times: int = 1) -> tuple[dict, dict, list[str]]:
    """The releases of what matters most; how the tests, `times` over, came out; those that failed, by name.

    Raises UserError without uv.
    """
    releases, counts, faults = {}, {}, []
    with tempfile.TemporaryDirectory() as place:
        for end, resolution in ENDS.items():
            python, told = Path(place, end, "bin", "python"), Path(place, f"{end}.xml")
            uv("venv", "--python", "3.11", str(python.parent.parent))
            uv("pip", "install", "--python", str(python), "--resolution", resolution, "--editable", ".[test]")
            listed = json.loads(uv("pip", "list", "--python", str(python), "--format", "json"))
            releases[end] = {one["name"]: one["version"] for one in listed if one["name"] in TOLD}
            words, counts[end] = [python, "-m", "pytest", "-n", "2", "--dist", "worksteal"], Counter()
            for _ in range(times):
                told.unlink(missing_ok=True)
                subprocess.run([*words, f"--junitxml={told}"], env=os.environ | {"OMP_NUM_THREADS": "1"})
                found, failed = outcomes(told)
                counts[end] += found
                faults += [f"{end}: {name}" for name in failed]
    return {"times": times, **releases}, counts, faults


def uv(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "uv", *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`uv {' '.join(words)}` failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def outcomes(told: Path) -> tuple[Counter, list[str]]:
    """How many tests passed, were skipped and failed, and the names of the last, of what pytest tells in XML."""
    if not told.exists():
        return Counter(), ["the tests did not come to an end"]
    cases = list(ElementTree.parse(told).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = Counter(passed=len(cases) - len(failed) - skipped, skipped=skipped, failed=len(failed))
    return counts, [f"{case.get('classname')}::{case.get('name')}" for case in failed]
