"""Write a folder that runs as a Gradio Space: `python -m app.space build/space`, then push it to the Space."""

import argparse
import shutil
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from dlip.common.errors import UserError

ROOT = Path(__file__).parent.parent
MAIN = '''"""Main program of the Space; only the shipped models can be chosen."""

from app.page import serve

serve()
'''
CARD = """---
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
LFS = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
"""A Space accepts files above 10 MB by Git LFS alone."""
COPIED = ("dlip", "app", "results")
EMPTY_CLONE = {".git", ".gitattributes", "README.md"}
"""Contents of a clone of a new Space."""


def write(folder: Path) -> None:
    """Write the packages, the records, the requirements, the main program and the Space's card.

    In a folder written before, these are replaced and other files stay. Raises UserError for any other folder, and
    outside a checkout.
    """
    if not (ROOT / "pyproject.toml").is_file():
        raise UserError("a Space is written from a checkout of the repository; clone it first")
    contents = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    main = folder / "space.py"
    if folder.is_file() or (contents - EMPTY_CLONE and not (main.is_file() and main.read_bytes() == MAIN.encode())):
        raise UserError(f"{folder} is not empty and not a Space; name a new folder, or the clone of a Space")
    if any(folder.resolve().is_relative_to(ROOT / part) for part in COPIED):
        raise UserError(f"{folder} lies in a folder that is copied into the Space; name another")
    for part in COPIED:
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["app"]]
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    main.write_text(MAIN)
    (folder / ".gitattributes").write_text(LFS)
    (folder / "README.md").write_text(CARD.format(gradio=version("gradio")))


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m app.space", description="Write a folder that runs as a Gradio Space.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder, or the clone of a Space")
    try:
        write(parser.parse_args(arguments).folder)
    except (UserError, OSError) as error:
        print(f"app.space: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
