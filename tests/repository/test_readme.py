"""Every command of the README does what it says, as it stands there, on little data; the Python too."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from dlip import data
from dlip.cli import main, parser
from dlip.data.scenes.dataset import SPLITS
from dlip.evaluation.tasks.vqa import blind_baseline
from dlip.experiments import ablation
from dlip.experiments.conclusions import conclusions
from dlip.records import read
from dlip.records.write import append
from tests.helpers import ROOT, make_record

README = (ROOT / "README.md").read_text()
SMALL = ["--limit", "32", "--steps", "2", "--batch-size", "8", "--results", "records.jsonl"]
RUN = {
    "models": [], "data": [], "train": SMALL, "distill": SMALL, "evaluate": ["--latency-repeats", "1"], "advise": [],
    "bench": ["--rounds", "1"],
    "export": [], "demo": ["--steps", "2"],
}  # fmt: skip
"""Command -> options that make it short."""
NOT_RUN = {
    "dlip ablate": "a grid trains for minutes; tests/experiments/test_ablation.py does one of two steps",
    "dlip app": "serves until it is stopped; tests/app/test_app.py opens it",
    "dlip rerun": "trains as long as the record did; tests/experiments/test_rerun.py makes one of three steps again",
    "Salesforce/": "needs the hub; tests/checkpoints/test_blip.py reads small checkpoints of the same layouts",
}
"""Part of a command -> why it is only parsed here."""
PLACES = {"path/to/flickr8k": "photos", "path/to/folder": "photos", "runs/small": "runs/student"}
"""Names in the README -> what stands for them here."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("dlip ")]


def folder(path: Path) -> None:
    """Six pictures in Karpathy's layout."""
    (path / "images").mkdir(parents=True)
    images = []
    for i in range(6):
        Image.new("RGB", (60, 48), (40 * i, 90, 120)).save(path / "images" / f"{i}.jpg")
        images.append({"filename": f"{i}.jpg", "split": "train" if i < 4 else "val", "sentences": [{"raw": "a wall"}]})
    (path / "captions.json").write_text(json.dumps({"images": images}))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with what the README takes for granted."""
    path = tmp_path_factory.mktemp("readme")
    folder(path / "photos")
    append(make_record("teacher", "teacher", tr1=80.0, params=4.0), path / "results" / "ablations.jsonl")
    append(make_record("student", params=0.9, command="dlip distill"), path / "results" / "ablations.jsonl")
    return path


def test_every_command_works(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    for split, size in {"train-small": 64, "val": 16, "test": 16}.items():
        monkeypatch.setitem(SPLITS, split, size)
    asked = commands()
    assert len(asked) > 5
    for words in asked:
        line = shlex.join(words)
        parser().parse_args(words[1:])
        if any(part in line for part in NOT_RUN):
            continue
        assert words[1] in RUN, (
            f"README's {line!r} is neither known to tests/repository/test_readme.py nor in its NOT_RUN"
        )
        words = [PLACES.get(word, word) for word in words[1:]] + RUN[words[1]]
        assert main(words) == 0, f"{line}: {capsys.readouterr().err}"


def test_the_python_works(place, monkeypatch):
    monkeypatch.chdir(place)
    names: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    said = names["model"].caption(["picture.png"])
    assert "small orange diamond" in said[0]  # of the picture, as its own captions say
    assert names["model"].similarity(["picture.png"], ["a red circle"]).shape == (1, 1)


def test_the_table_of_conclusions_is_what_the_records_say():
    found = read(ROOT / "results" / "ablations.jsonl")
    for _, row in conclusions(found).drop_duplicates("number").iterrows():
        assert f"| {row['number']}. {row['statement']} | {row['verdict']} |" in README
    assert f"{len(found) - 1} runs" in README
    tables = {name: ablation.table(name, found).set_index("name")["tr1"].round(1) for name in ("modules", "data")}
    large, small = (f"image {size}, text {size}, distilled" for size in ("base", "small"))
    few, many = ([f"{count} pictures", f"{count} pictures, distilled"] for count in ("250", "20,000"))
    said = re.sub(r"\s+", " ", README)
    one, other = tables["modules"][[large, small]]
    assert f"a TR@1 of {one}, one with small encoders {other}" in said
    (a, b), (c, d) = tables["data"][few], tables["data"][many]
    assert f"lifts TR@1 from {a} to {b}, with 20,000 from {c} to {d}" in said


def test_what_guessers_that_see_no_picture_answer():
    said = [float(number) for number in re.findall(r"blind_baseline`[^)]*\)\s+answers ([\d.]+)%", README)]
    found = [blind_baseline(data.open("scenes", "train-small", 1000), data.open("scenes", "test"))]
    if (photos := ROOT.parent / "shared" / "data" / "coco_vqa").is_dir():
        found.insert(0, blind_baseline(*(data.open(photos, split, on_error="skip") for split in ("train", "val"))))
    assert [round(figures["accuracy"], 1) for figures in found] == said[-len(found) :]


def test_the_table_of_speed_is_the_latest_records():
    record = json.loads((ROOT / "results" / "bench" / "stock.jsonl").read_text().splitlines()[-1])
    rows = {row["name"]: row for row in record["rows"]}
    asked = {
        "a caption, BLIP-Base": ("blip-base, caption", "ratio"),
        "a caption, DLIP-Small": ("dlip-small, caption", "ratio"),
        "DLIP-Small here against stock BLIP-Base": ("dlip-small, caption", "base_ratio"),
        "a picture's states, BLIP-Base": ("blip-base, states", "ratio"),
        "a pair's score, BLIP-Base": ("blip-base, pair", "ratio"),
    }
    for title, (what, ratio) in asked.items():
        cells = re.search(rf"^\| {title} \|(.*)\|$", README, re.MULTILINE)[1].split("|")
        names = [f"{what} of {n}: here{way}" for n in (1, 8) for way in ("", ", packed", ", bf16", ", int8")]
        assert [cell.strip() for cell in cells] == [f"{rows[n][ratio]:.1f}" if n in rows else "" for n in names], title
