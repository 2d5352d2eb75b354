"""A folder that runs as a Gradio Space: `python -m app.space build/space`, then push it to the Space's repository."""

import shutil
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAIN = '''"""What the Space runs; there only the shipped models can be chosen."""

from app.page import serve

serve()
'''
ABOUT = """---
title: DLIP Workbench
emoji: 🔍
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: space.py
license: apache-2.0
short_description: A small vision-language student beside its teacher
---

Teacher and student of [DLIP](https://arxiv.org/abs/2308.12956) side by side: words, attention, speed.
"""


def write(folder: Path) -> None:
    """The packages, the records, what to install, what to run, and the card that names it."""
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("dlip", "app", "results"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["app"]]
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n")
    (folder / "space.py").write_text(MAIN)
    (folder / "README.md").write_text(ABOUT.format(gradio=version("gradio")))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
