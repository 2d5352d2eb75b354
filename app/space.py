"""A folder that runs as a Gradio Space: `python -m app.space build/space`, then push it to the Space's repository."""

import argparse
import shutil
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from dlip.common.errors import UserError

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


LARGE = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
"""A Space's repository takes files above 10 MB by Git LFS alone."""
PARTS = ("dlip", "app", "results")
FRESH = {".git", ".gitattributes", "README.md"}
"""What a clone of a new Space holds."""


def write(folder: Path) -> None:
    """The packages, the records, what to install, what to run, and the card that names it.

    Of an earlier Space these are replaced, and what else is in the folder stays. Raises UserError for a folder that
    holds something else.
    """
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    main = folder / "space.py"
    if folder.is_file() or (there - FRESH and not (main.is_file() and main.read_text() == MAIN)):
        raise UserError(f"{folder} holds something else than a Space; name a new folder, or the clone of a Space")
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["app"]]
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n")
    main.write_text(MAIN)
    (folder / ".gitattributes").write_text(LARGE)
    (folder / "README.md").write_text(ABOUT.format(gradio=version("gradio")))


def run(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m app.space", description="Write a folder that runs as a Gradio Space.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new one, or the clone of a Space")
    try:
        write(parser.parse_args(words).folder)
    except (UserError, OSError) as mistake:
        print(f"app.space: {mistake}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
