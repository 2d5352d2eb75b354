"""README and documentation: commands parse and run, Python runs, tables equal their records."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dlip import data
from dlip.cli import main, parse
from dlip.data.batch import Example
from dlip.data.scenes.dataset import SPLITS, Scenes
from dlip.data.scenes.questions import questions
from dlip.evaluation.tasks.vqa import blind_baseline
from dlip.experiments.analysis.claims import COMPOSITE, CONCLUSIONS
from dlip.experiments.grids import GRIDS
from dlip.records import TABLE_SCORES
from dlip.records.schema import SCORES
from dlip.records.write import append
from tests.bench import backend_tables as tables
from tests.helpers import ROOT, make_record

PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
README = PAGES["README.md"]
SMALL = ["--limit", "32", "--steps", "2", "--batch-size", "8", "--results", "records.jsonl", "--latency-repeats", "0"]
RUN = {
    "data": [], "train": SMALL, "distill": SMALL, "evaluate": ["--latency-repeats", "1"], "advise": [],
    "bench": ["--rounds", "1"], "export": [],
}  # fmt: skip
"""Command -> options that shorten it."""
NOT_RUN = {
    "dlip ablate": "trains a grid for minutes; tests/experiments/test_ablation.py runs one of two steps",
    "dlip app": "serves until it is stopped; tests/app/test_app.py opens it",
    "dlip rerun": "trains as long as the record did; tests/experiments/test_rerun.py reruns one of three steps",
    "exports/small-onnx": "traces graphs as `dlip export runs/mine --to onnx` does, which is run",
    "openai/": "needs the hub; tests/checkpoints/test_dual_encoders.py reads small checkpoints of the same layout",
    "google/": "needs the hub; tests/checkpoints/test_dual_encoders.py reads small checkpoints of the same layouts",
    "Salesforce/": "needs the hub; tests/checkpoints/test_blip.py reads small checkpoints of the same layouts",
}
"""Part of a command -> why it is only parsed."""
PATHS = {"path/to/flickr8k": "photos", "path/to/folder": "photos", "runs/small": "runs/student"}
"""Path in the pages -> what replaces it here."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """Every line of a page's blocks that calls dlip, split into words."""
    text = "\n".join(blocks(page, "bash") + blocks(page, "sh") + blocks(page, "text")).replace("\\\n", " ")
    lines = re.findall(r"^(?:\$ )?(?:\.venv/bin/)?(dlip .*|accelerate launch .*)$", text, re.MULTILINE)
    found = [shlex.split(line, comments=True) for line in lines]
    return [["dlip", *words[words.index("dlip") + 1 :]] if words[0] == "accelerate" else words for words in found]


def make_folder(path: Path) -> None:
    """Twelve images in Karpathy's layout."""
    (path / "images").mkdir(parents=True)
    images = []
    for i in range(12):
        Image.new("RGB", (60, 48), (20 * i, 90, 120)).save(path / "images" / f"{i}.jpg")
        images.append({"filename": f"{i}.jpg", "split": "train" if i < 8 else "val", "sentences": [{"raw": "a wall"}]})
    (path / "captions.json").write_text(json.dumps({"images": images}))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A folder with the data and records that the pages assume."""
    path = tmp_path_factory.mktemp("readme")
    make_folder(path / "photos")
    append(make_record("teacher", "teacher", tr1=80.0, params=4.0), path / "results" / "ablations.jsonl")
    append(make_record("student", params=0.9, command="dlip distill"), path / "results" / "ablations.jsonl")
    return path


@pytest.mark.parametrize("page", PAGES)
def test_commands_parse(page):
    for words in commands(page):
        parse(words[1:])


def test_commands_run(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    for split, size in {"train-small": 64, "val": 16, "test": 16, "test-5k": 16}.items():
        monkeypatch.setitem(SPLITS, split, size)
    trained_first = sorted(PAGES, key=lambda page: page != "training.md")
    lines = dict.fromkeys(shlex.join(words) for page in trained_first for words in commands(page))
    assert len(lines) > 10
    for line in lines:
        if any(part in line for part in NOT_RUN):
            continue
        words = shlex.split(line)[1:]
        assert words[0] in RUN, f"add {line!r} to RUN or NOT_RUN of tests/repository/test_readme.py"
        words = [PATHS.get(word, word) for word in words] + RUN[words[0]]
        assert main(words) == 0, f"{line}: {capsys.readouterr().err}"


def test_python_runs(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    for split, size in {"train-small": 96, "test": 16}.items():
        monkeypatch.setitem(SPLITS, split, size)
    for page in PAGES:
        names: dict = {}
        for block in blocks(page, "python"):
            exec(compile(block.replace("steps=800", "steps=1"), page, "exec"), names)
        if page == "README.md":
            check_readme(names)


def check_readme(names: dict) -> None:
    assert names["run"].log["step"].tolist() == [1] and {"hr.image", "at.self"} <= {*names["run"].log}
    assert "small blue circle with large lime moon" in names["model"].caption(["image.png"])[0]
    assert names["model"].similarity(["image.png"], ["a red circle"]).shape == (1, 1)


def test_readme_is_short():
    assert len(README.split()) <= 1200
    prose = re.sub(r"^```.*?^```|^\|.*?$|^#.*?$", "", README, flags=re.DOTALL | re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n|\n- ", re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", prose))
    sentences = [sentence for text in paragraphs for sentence in re.split(r"(?<=[.?!])\s", text)]
    assert max(len(sentence.split()) for sentence in sentences) <= 30


def test_relative_links_lead_to_files():
    for name, text in {**PAGES, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text()}.items():
        folder = ROOT if (ROOT / name).exists() else ROOT / "docs"
        for target in re.findall(r"\]\((?!\w+:|#)([^)#]+)", text):
            assert (folder / target).is_file(), f"{name} links to {target}"


def test_images_are_small():
    assert all(path.stat().st_size < 300_000 for path in (ROOT / "docs" / "images").iterdir())


# --- tables equal their records -----------------------------------------------------------------------------------


def test_ablations_page_lists_the_grids():
    for grid in GRIDS.values():
        assert f"| `{grid.name}` | {grid.question} | {len(grid.rows)} |" in PAGES["ablations.md"]


def test_ablations_page_states_every_claim():
    table = PAGES["ablations.md"].partition("### Claims")[2].partition("\n- ")[0]
    claims = [(conclusion.number, claim) for conclusion in CONCLUSIONS for claim in conclusion.claims if claim.decides]
    for number, claim in claims:
        score = "composite" if claim.score == COMPOSITE else "their difference"
        claimed = (
            f"between {claim.low:g} and {claim.high:g}"
            if math.isfinite(claim.low + claim.high)
            else (f"above {claim.low:g}" if math.isfinite(claim.low) else f"below {claim.high:g}")
        )
        assert f"| {number} | {claim.comparison} | `{claim.grid}` | {score} | {claimed} |" in table
    assert table.count("\n| ") == 1 + len(claims)


def test_blind_baselines_equal_their_computation():
    numbers = re.findall(r"blind_baseline`[^)]*\)\s+(?:answers )?(\d+\.\d)", PAGES["results.md"])
    train, test = (map(Scenes(split).scene, range(1000)) for split in ("train-small", "test"))  # no image is drawn
    found = [blind_baseline(*([Example(None, 0, [], questions(scene)) for scene in some] for some in (train, test)))]
    if (photos := ROOT.parent / "shared" / "data" / "coco_vqa").is_dir():
        found.append(blind_baseline(*(data.open(photos, split, on_error="skip") for split in ("train", "val"))))
    assert [f"{figures['accuracy']:.1f}" for figures in found] == numbers[: len(found)]


def test_tables_of_backends_equal_the_latest_record():
    record = json.loads((ROOT / "results" / "bench" / "backends.jsonl").read_text().splitlines()[-1])
    shown = {"speed.md": (tables.picks, tables.over_stock), "backends.md": (tables.times, tables.footprints)}
    for page, makers in shown.items():
        for table in makers:
            assert table(record) in PAGES[page], table.__name__


def test_table_of_optimized_models_equals_the_latest_record():
    record = json.loads((ROOT / "results" / "bench" / "precision.jsonl").read_text().splitlines()[-1])
    rows, count = record["rows"], 0
    for fp32, optimized in zip(rows, rows[1:], strict=False):
        if "again" in optimized:
            scores = [f"{optimized[name]:.1f} ({fp32[name]:.1f})" for name in ("ir1", "cider")]
            kept = {name: 100 * optimized[name] / fp32[name] for name in SCORES if name in fp32}
            least = min(kept, key=kept.get)
            where = "" if kept[least] >= 100 else f" ({TABLE_SCORES[least]})"
            cells = [f"`{fp32['name']}`", f"{optimized['ms']:.1f}", f"{optimized['ratio']:.1f}", *scores]
            cells += [f"{optimized['kept']:.{1 if where else 0}f}{where}", f"{optimized['again']:.2f}"]
            assert f"| {' | '.join(cells)} |" in PAGES["speed.md"]
            count += 1
    assert count == 6
