"""Adds the repository's own files to the documentation site, and points the pages' links at them."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Page of the repository's root -> page of the site."""
FOLDERS = {"results/": "records/", "notebooks/": "notebooks/"}
"""Folder of the repository -> folder of the site. The page `results` has the first one's name already."""


def on_files(files, config):
    """Adds README, notebooks, records and the other files that pages link to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for name in ("requirements.lock", "CITATION.cff", "LICENSE"):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    for folder, place in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.*")):
            name = place + path.relative_to(ROOT / folder).as_posix()
            if path.suffix in (".jsonl", ".ipynb") and ".ipynb_checkpoints" not in name:
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links such as `../results/a.jsonl` (docs) and `docs/data.md` (root) to the site's paths."""
    return re.sub(r"(\]\()(?!\w+:|#)([^)#\s]+)", lambda link: link[1] + _site_path(link[2]), markdown)


def _site_path(target: str) -> str:
    path = target.removeprefix("../").removeprefix("docs/")
    for folder, place in FOLDERS.items():
        if path.startswith(folder):
            return place + path.removeprefix(folder)
    return PAGES.get(path, path)
