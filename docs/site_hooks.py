"""Adds the repository's own files to the documentation site, and points the pages' links at them."""

import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Page at the repository's root -> page of the site."""
LINKED_FILES = ("requirements.lock", "CITATION.cff", "LICENSE", "deploy/nginx.conf")
RESULTS, RECORDS = "results/", "records/"
"""Folder of the repository -> folder of the site, where `results/` is the page of that name."""


@event_priority(100)  # before the plugin that renders notebooks
def on_files(files, config):
    """Adds README, notebooks, records and the other files that pages link to."""
    added = {page: ROOT / source for source, page in PAGES.items()}
    added |= {name: ROOT / name for name in LINKED_FILES}
    records = (ROOT / RESULTS).rglob("*.jsonl")
    added |= {RECORDS + path.relative_to(ROOT / RESULTS).as_posix(): path for path in records}
    for name, path in added.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File(f"notebooks/{path.name}", str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links such as `../results/a.jsonl` (docs) and `docs/data.md` (root) to the site's paths."""
    return re.sub(r"(\]\()(?!\w+:|#)([^)#\s]+)", lambda link: link[1] + _site_path(link[2]), markdown)


def _site_path(target: str) -> str:
    path = target.removeprefix("../").removeprefix("docs/")
    if path.startswith(RESULTS):
        return RECORDS + path.removeprefix(RESULTS)
    return PAGES.get(path, path)
