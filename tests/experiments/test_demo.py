"""The playground's main job in little: a student of a few steps beside the models that ship."""

import json
import re
from functools import partial

import pytest

from dlip.checkpoints.load import BUILT_IN
from dlip.cli import main
from dlip.common.files import read_json
from dlip.cost.latency import compare_latency
from dlip.data.scenes.dataset import SPLITS
from dlip.experiments.config import HeldOutConfig
from dlip.experiments.demo import COMPARED, LIVE
from dlip.records.schema import HEADLINE_SCORES


@pytest.fixture(autouse=True)
def little(monkeypatch):
    for split, size in {"train-small": 64, "val": 4, "test": 16}.items():
        monkeypatch.setitem(SPLITS, split, size)
    monkeypatch.setattr("dlip.experiments.demo.HeldOutConfig", partial(HeldOutConfig, latency_repeats=0))
    monkeypatch.setattr("dlip.experiments.demo.compare_latency", partial(compare_latency, repeats=2, warmup=1))
    monkeypatch.setattr("dlip.records.reading.count_test_images", lambda record: 16)  # shipped: 1,000


def test_the_demo_ends_with_a_table_and_a_report(tmp_path, capsys):
    assert main(["demo", "--steps", "6", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    shipped = [read_json(BUILT_IN / name / "record.json")["name"] for name in COMPARED]
    rows = [line for line in said.splitlines() if line.startswith((*shipped, LIVE)) and re.search(r"\d\.\d+M ", line)]
    assert len(rows) == 4 and any(row.startswith(LIVE) for row in rows)
    assert f"Report: {tmp_path / 'report.html'}" in said
    assert re.search(r"It needs \d+% of the FLOPs and is \d+\.\d times as fast\.", said)
    for column in ("params", "FLOPs", "TR@1", "IR@1", "CIDEr", "VQA"):
        assert column in said
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 12 and LIVE in page
    assert not re.search(r'<(script|img|link|iframe)\b[^>]*\b(src|href)="http', page)
    (record,) = map(json.loads, (tmp_path / "records.jsonl").read_text().splitlines())
    assert (record["name"], record["train_images"], record["losses"]["step"][-1]) == (LIVE, 64, 6)
    assert record["config"]["train"]["optimizer"] == "muon"
    learning, lines = record["evaluations"], [line for line in said.splitlines() if line.startswith("step ")]
    assert learning["scores"]["step"] == [int(line.split()[1]) for line in lines] == [1, 2, 3, 4, 5, 6]
    assert set(HEADLINE_SCORES) <= learning["scores"].keys() and set(HEADLINE_SCORES) <= learning["teacher"].keys()
    assert all(len(re.findall(r"[#.]{10} +\d+%", line)) == len(HEADLINE_SCORES) for line in lines)
    figures = json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)[1])
    for score in HEADLINE_SCORES:
        curves = [curve["x"] for curve in figures[f"learning/{score}"]["data"]]
        assert [1, 2, 3, 4, 5, 6] in curves and f'data-name="learning/{score}"' in page


@pytest.mark.slow
def test_the_demo_prints_only_its_records_as_json(tmp_path, capsys):
    assert main(["demo", "--steps", "2", "--out", str(tmp_path), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["records"]
    assert [record["role"] for record in found] == ["teacher", "undistilled", "distilled", "distilled"]
    assert all(record["efficiency"]["latency"]["p50_ms"] > 0 for record in found)  # measured here and now
