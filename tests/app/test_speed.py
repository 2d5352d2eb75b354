"""The Speed tab's functions: what is measured, under what settings, and how it is written; never how fast."""

import base64
import io
import json
import re

import pandas as pd
import pytest
import torch

from app.tabs import speed as page
from dlip.common.errors import UserError
from dlip.plots import COLORS

TEACHER, STUDENT = "scenes/teacher", "scenes/student-undistilled"


@pytest.fixture(scope="module")
def measured() -> dict:
    shares = []
    measured = page.speed(TEACHER, STUDENT, "vqa", 2, 2, 3, repeats=2, batches=[4, 1], with_memory=False,
                       progress=shares.append)  # fmt: skip
    assert shares == sorted(shares) and 0.79 < shares[-1] <= 0.8  # the rest is the memory's
    return measured


def test_measurements_have_their_settings(measured):
    json.dumps(measured)
    assert measured["models"] == {"teacher": TEACHER, "student": STUDENT}
    for side in measured["models"]:
        own = measured["latency"]["models"][side]
        assert 0 < own["p50_ms"] <= own["p95_ms"] and {"image", "fusion", "decoder"} <= own["modules"].keys()
        assert [own[k] for k in ("task", "batch", "beams", "tokens", "repeats", "warmup")] == ["vqa", 2, 2, 3, 2, 3]
        assert len(measured["throughput"][side]) == 2 and min(measured["throughput"][side]) > 0
    assert measured["batches"] == [1, 4] and measured["memory"] is None


def test_the_table_has_every_number(measured):
    table = page.table(measured)
    timed = measured["latency"]["models"]["student"]
    row = table.query("side == 'student' and part == 'fusion' and measure == 'p95'")
    assert row["value"].tolist() == [timed["modules"]["fusion"]["p95_ms"]] and row["unit"].tolist() == ["ms"]
    rates = table.query("side == 'teacher' and measure == 'throughput'")
    assert dict(zip(rates["batch"], rates["value"], strict=True)) == dict(
        zip(measured["batches"], measured["throughput"]["teacher"], strict=True)
    )
    parts = 1 + len(timed["modules"])
    assert len(table) == 2 * (2 * parts + 2)
    assert (table["threads"] == torch.get_num_threads()).all() and (table["beams"] == 2).all()


def test_the_page_states_every_setting_and_offers_the_files(measured):
    taken = {side: {"weights_mb": 12.34, "peak_mb": peak} for side, peak in (("teacher", 5.0), ("student", None))}
    full = {**measured, "memory": taken}
    shown = page.show(full)
    settings = ("vqa, batch 2", "2 beams", "3 new tokens", "2 rounds after 3 of warm-up", "float32", torch.__version__)
    assert all(setting in shown for setting in settings)
    assert f"{measured['latency']['models']['teacher']['p50_ms']:.1f} ms" in shown
    assert "12.3 MB" in shown and "not measured on this device" in shown and "undistilled" in shown
    files = dict(re.findall(r'download="([^"]+)" href="data:[^;]+;base64,([^"]+)"', shown))
    assert json.loads(base64.b64decode(files["speed.json"])) == full
    csv = pd.read_csv(io.BytesIO(base64.b64decode(files["speed.csv"])))
    assert csv["value"].tolist() == pytest.approx(page.table(full)["value"].tolist())
    assert csv.query("measure == 'memory'")["value"].tolist() == [12.34, 5.0, 12.34]


def test_the_same_speed_is_as_fast_as(measured):
    even = {**measured, "latency": {**measured["latency"], "speedup": {"teacher": 1.0, "student": 0.97}}}
    assert "The student is as fast as its teacher." in page.show(even)


def test_figures_of_missing_measurements_are_skipped(measured):
    (heading, bars), (rates_heading, rates), memory = page.figures(measured)
    assert "Most of the time goes to" in heading and bars.layout.title.text is None
    assert rates.data[1].line.color == COLORS["undistilled"] and "per second" in rates_heading
    assert memory == ("", None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(batch=0), "batch is 0"),
        (dict(beams=9), "beams is 9"),
        (dict(tokens=100), "tokens is 100"),
        (dict(repeats=1000), "repeats is 1000"),
        (dict(batches=[1, 500]), "batches is 500"),
        (dict(batch=None), "batch is None"),
        (dict(task="detection"), "task is 'detection'"),
    ],
)
def test_invalid_settings_are_refused_before_measuring(change, message, monkeypatch):
    monkeypatch.setattr("dlip.cost.latency._time", lambda *_: pytest.fail("measured"))
    with pytest.raises(UserError, match=message):
        page.speed(TEACHER, STUDENT, **change)
