"""The comparison and its page: figures, self-containedness, escaping."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlip.common.errors import UserError
from dlip.records.schema import TABLE_SCORES
from dlip.reports.comparison import COSTS, comparison, conditions, finding, table
from dlip.reports.report import report
from tests.helpers import make_evaluations, make_record

SAMPLE = {
    "image_id": 7,
    "references": ["a red star", "a star"],
    "questions": ["what shape?", "how many?"],
    "truth": ["star", "1"],
}


def said(caption: str, *answers: str) -> list[dict]:
    return [{**SAMPLE, "caption": caption, "answers": list(answers)}]


@pytest.fixture
def records() -> list[dict]:
    teacher = make_record(
        "big", role="teacher", tr1=80.0, vqa=90.0, params=4.0, latency=50.0, images=200_000,
        samples=said("a red star", "star", "1"),
    )  # fmt: skip
    alone = [
        make_record("alone", "undistilled", seed=seed, tr1=60.0 + 2 * seed, vqa=80.0,
                    samples=said("a blue star", "star", "2"))
        for seed in range(3)
    ]  # fmt: skip
    losses = {"step": [1, 2], "lm": [2.0, 1.0], "kd.lm": [1.0, 0.5]}
    taught = [
        make_record("taught", seed=seed, tr1=76.0 + seed, vqa=81.0, losses=losses,
                    samples=said("a red star", "star", "1"), notes={"captioning.spice": "no models"})
        for seed in range(3)
    ]  # fmt: skip
    return [teacher, *alone, *taught]


class Page(HTMLParser):
    """Tags, attributes and text of a page, text of scripts apart."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.scripts, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)

    def shows(self) -> str:
        return " ".join(" ".join(self.text).split())


def page(records: list[dict], folder: Path, images: dict | None = None) -> Page:
    report(records, images or {}, folder / "report.html")
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_kept_is_the_minimum_over_scores(records: list[dict]):
    rows = comparison(records).set_index("name")
    assert list(rows.index) == ["big", "alone", "taught"]
    assert rows.loc["taught", "tr1_kept"] == pytest.approx(96.25)  # 77 of 80
    assert rows.loc["taught", "vqa_mean_kept"] == pytest.approx(90.0)
    assert rows.loc["taught", "kept"] == pytest.approx(90.0)
    assert rows.loc["alone", "kept"] == pytest.approx(60 / 78 * 100)  # IR@1
    assert rows.loc["alone", "params_m_kept"] == 25.0
    assert np.isnan(rows.loc["big", "kept"])


def test_finding_is_computed_from_the_records(records: list[dict]):
    kept, costs, gain = finding(records)
    assert "at least 90.0% of its teacher's IR@1, facts F1 and VQA with 25% of the parameters" in kept
    assert "25% of the FLOPs" in costs and "2.5 times as fast" in costs
    assert "at least 76.9%" in gain and "IR@1 by +15.0, facts F1 by +15.0 and VQA by +1.0" in gain
    assert "on all of them" in gain


def test_latencies_not_timed_in_alternation_are_not_compared(records: list[dict]):
    for record in records:
        del record["efficiency"]["latency"]["share"]
    assert "25% of the FLOPs" in finding(records)[1] and "fast" not in finding(records)[1]


def test_finding_when_distillation_does_not_help():
    def seeds(name: str, role: str, scores: tuple, vqa: float) -> list[dict]:
        return [make_record(name, role, seed=i, tr1=tr1, vqa=vqa) for i, tr1 in enumerate(scores)]

    teacher = make_record("t", role="teacher", tr1=80.0, vqa=90.0)
    alone = seeds("a", "undistilled", (60.0, 62.0, 64.0), 80.0)
    last = finding([teacher, *alone, *seeds("d", "distilled", (62.0, 64.0, 66.0), 70.0)])[-1]
    assert "IR@1 by +2.0" in last and "VQA by −10.0" in last  # 2.0 against a deviation of 2.8
    assert last.endswith("above the spread over seeds on none of them.")
    last = finding([teacher, alone[0], make_record("d", tr1=70.0)])[-1]
    assert last.endswith("from one seed, so without a spread.")


def test_finding_names_the_smallest_and_best_student(records: list[dict]):
    others = [make_record("weak", tr1=40.0), make_record("large", tr1=80.0, vqa=90.0, params=2.0, width=96)]
    said = finding([*records, *others])
    assert said[0].startswith("taught keeps at least 90.0%")
    assert said[-2:] == ["weak keeps at least 48.7% with 25% of the parameters.",
                         "large keeps at least 100.0% with 50% of the parameters."]  # fmt: skip


def test_finding_without_a_teacher_or_student(records: list[dict]):
    for some in (records[:1], records[1:]):
        assert "A comparison needs a teacher" in finding(some)[0]


def test_finding_skips_unmeasured_scores():
    captions_only = [make_record("t", role="teacher", vqa=None, tr1=80.0, params=4.0), make_record(vqa=None, tr1=72.0)]
    assert "IR@1 and facts F1 with" in finding(captions_only)[0]


def test_table_fits_a_terminal(records: list[dict]):
    records.append(make_record("a-name-that-is-much-too-long-for-a-table", tr1=100.0, params=123.4, latency=12345.6))
    lines = table(records).splitlines()
    assert max(map(len, lines)) <= 110
    assert lines[0].split() == [
        *("params", "FLOPs", "latency", "IR@1", "facts", "F1", "VQA", "TR@1", "CIDEr", "kept")
    ]  # fmt: skip
    row = next(i for i, line in enumerate(lines) if line.startswith("taught"))
    assert lines[row].split() == [
        *("taught", "1.00M", "0.100G", "20.0", "ms"),
        *("75.0", "±1.0", "77.0", "±1.0", "81.0", "±0.0", "77.0", "±1.0", "115.5", "±1.5", "90.0%"),
    ]  # fmt: skip
    assert lines[row + 1].split()[3:] == ["25%", "25%", "40%", "96.2%", "96.2%", "90.0%", "96.2%", "96.2%"]
    assert "123M" in table(records) and "a-name-that-is-much-…" in table(records)
    assert "batch 1, 3 beams, 20 tokens, 2 threads, cpu" in " ".join(lines)


def test_captions_without_facts_are_judged_by_cider(records: list[dict], tmp_path: Path):
    """As those of photographs."""
    for record in records:
        record["metrics"]["captioning"]["facts_f1"] = None
    lines = table(records).splitlines()
    assert lines[0].split() == ["params", "FLOPs", "latency", "IR@1", "VQA", "TR@1", "CIDEr", "kept"]
    assert comparison(records).set_index("name").loc["taught", "kept"] == pytest.approx(90.0)
    assert (
        "minimum of IR@1, CIDEr and VQA in % of the teacher's, as far as measured" in " ".join(lines)
        and "IR@1, CIDEr and VQA with 25%" in finding(records)[0]
    )
    assert "facts F1" not in page(records, tmp_path).shows()


def test_table_without_a_teacher_has_no_shares(records: list[dict]):
    assert "  of the teacher's" not in table(records[-1:]).splitlines()


def test_table_shows_comparable_latencies_only(records: list[dict]):
    """`alone` was timed with 8 threads; for `taught` the share of the teacher's latency counts."""
    assert "not timed this way" not in table(records)
    for record in records[1:4]:
        record["efficiency"]["latency"]["threads"] = 8
    lines = table(records).splitlines()
    row = next(i for i, line in enumerate(lines) if line.startswith("alone"))
    assert lines[row].split()[:4] == ["alone", "1.00M", "0.100G", "–"]
    assert lines[row + 1].split()[3:6] == ["25%", "25%", "76.9%"]
    assert any(line.startswith("taught") and "20.0 ms" in line for line in lines)
    note = "of a student its share of the teacher's, timed in alternation; – where it was not timed this way."
    assert note in " ".join(lines)


def test_several_test_sets_are_refused(records: list[dict]):
    with pytest.raises(UserError, match="of: scenes test; other test"):
        table([*records, make_record(data="other")])
    with pytest.raises(UserError, match="of: none"):
        table([])


def test_page_needs_no_network(records: list[dict], tmp_path: Path):
    made = page(records, tmp_path, {7: Image.new("RGB", (48, 48), "red")})
    links = [
        value for _, attributes in made.tags for name, value in attributes.items() if name in ("src", "href", "srcset")
    ]
    assert links and all(link.startswith("data:image/") for link in links)
    assert not any(tag in ("link", "iframe", "object") for tag, _ in made.tags)
    styles = re.search(r"<style>(.*?)</style>", (tmp_path / "report.html").read_text(), re.S)[1]
    assert "url(" not in styles and "@import" not in styles
    policy = next(a["content"] for tag, a in made.tags if tag == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert sum("plotly.js v" in script for script in made.scripts) == 1


def test_page_contents(records: list[dict], tmp_path: Path):
    made = page(records, tmp_path)
    shown = made.shows()
    for part in (*finding(records), "200,000 images, 1 seed", "4,000 images, 3 seeds", "77.0 ±1.0",
                 "captioning.spice: no models", "dlip train", "seed 2, 1.0 minutes", records[0]["torch"]):  # fmt: skip
        assert part in shown, part
    payload = next(a for tag, a in made.tags if a.get("id") == "figures")
    assert payload["type"] == "application/json"
    figures = json.loads(next(s for s in made.scripts if s.startswith('{"params_m/ir1"')))
    assert figures.keys() == {
        *(f"{cost}/{score}" for cost in COSTS for score in TABLE_SCORES),
        "lm", "kd.lm",
    }  # fmt: skip
    assert all(figure["data"] and figure["title"] for figure in figures.values())
    charts = [a["data-name"] for _, a in made.tags if a.get("class") == "chart"]
    assert charts == ["ir1", "facts_f1", "vqa_mean", "tr1", "cider", "lm", "kd.lm"]


def test_page_has_the_learning_curve_of_runs_that_were_evaluated(records: list[dict], tmp_path: Path):
    assert "Learning curve" not in page(records, tmp_path).shows()
    records[-1]["evaluations"] = make_evaluations([1, 2], {"ir1": 80.0}, ir1=[40.0, 60.0], ir5=[50.0, 80.0])
    made = page(records, tmp_path)
    assert "100 images of scenes val" in made.shows()
    assert [a["data-name"] for _, a in made.tags if a.get("data-name", "").startswith("learning/")] == ["learning/ir1"]
    figures = json.loads(next(s for s in made.scripts if s.startswith('{"params_m/ir1"')))
    (curve,) = figures["learning/ir1"]["data"]
    assert (curve["x"], curve["y"]) == ([1, 2], [50.0, 75.0])


def test_cost_of_the_teacher_only_is_no_axis(records: list[dict], tmp_path: Path):
    records[0]["efficiency"]["latency"]["threads"] = 8
    made = page(records, tmp_path)
    assert [a["value"] for tag, a in made.tags if tag == "input" and a["name"] == "cost"] == ["params_m", "flops_g"]


def test_examples_group_equal_texts_and_mark_differences(records: list[dict], tmp_path: Path):
    page(records, tmp_path)
    text = (tmp_path / "report.html").read_text()
    article = re.search(r"<article>.*?</article>", text, re.S)[0]
    assert text.count("<article>") == 1
    assert article.count("a red star<small>big, taught</small>") == 1
    assert "a <mark>blue</mark> star<small>alone</small>" in article
    records[-1]["samples"] = records[-2]["samples"] = records[-3]["samples"] = said("a star in a sky", "star", "1")
    page(records, tmp_path)
    shown = 'a <mark title="red">\xa0</mark> star <mark>in a sky</mark><small>taught'
    assert shown in (tmp_path / "report.html").read_text()
    assert "<mark>2</mark>" in article and "<mark>1</mark>" not in article and "<mark>star</mark>" not in article
    assert "2 references" in article and "no image" in article


@pytest.mark.parametrize(("answer", "marked"), [("One", False), ("the 1", False), ("two", True)])
def test_wrong_answers_are_marked(answer, marked, tmp_path: Path):
    page([make_record(samples=said("a red star", "star", answer))], tmp_path)
    assert (f"<mark>{answer}</mark>" in (tmp_path / "report.html").read_text()) == marked


def test_images_are_embedded(records: list[dict], tmp_path: Path):
    large = Image.new("RGB", (640, 480), "blue")
    for image, kind in ((Image.new("L", (48, 48)), "png"), (np.zeros((48, 48, 3), np.uint8), "png"), (large, "jpeg")):
        made = page(records, tmp_path, {7: image})
        (tag,) = [a for tag, a in made.tags if tag == "img"]
        assert tag["src"].startswith(f"data:image/{kind};base64,")


def test_texts_are_escaped(tmp_path: Path):
    evil = "<script>alert(1)</script><img/src=x/onerror=alert(1)>\"'&"

    def runs(text: str) -> list[dict]:
        said = {"caption": text, "references": [text], "questions": [text], "answers": [text], "truth": [text]}
        return [
            make_record(text + role, role, command=text, data=text, notes={text: text}, weights={text: 1.0},
                        losses={"step": [1], text: [1.0], f"{text}.b": [1.0]}, samples=[{"image_id": 1, **said}],
                        evaluations=make_evaluations([1], ir1=[1.0]) | {"data": text, "split": text})
            for role in ("teacher", "undistilled", "distilled")
        ]  # fmt: skip

    made, harmless = page(runs(evil), tmp_path), page(runs("plain"), tmp_path)
    assert [tag for tag, _ in made.tags] == [tag for tag, _ in harmless.tags]
    assert not [name for _, attributes in made.tags for name in attributes if name.startswith("on")]
    assert made.shows().count("<script>alert(1)</script>") > 10
    figures = json.loads(next(s for s in made.scripts if s.startswith('{"params_m/ir1"')))
    assert not any("<script" in figure["title"] or "<img" in json.dumps(figure) for figure in figures.values())


def test_unwritable_page(records: list[dict], tmp_path: Path):
    with pytest.raises(UserError, match="cannot be written"):
        report(records, {}, tmp_path)


def test_the_gallery_has_the_images_with_captions_only():
    ranked = [dict(image=i, rank=0, joint_rank=0) for i in range(2)]
    asked = [dict(image=i, accuracy=1.0, type="x") for i in range(3)]
    assert "retrieval: among 2 images" in conditions([make_record(items={"ir": ranked, "vqa": asked})])
    assert "retrieval:" not in conditions([make_record(items={"vqa": asked})])


def test_runs_that_replace_another_of_their_name_are_noted(records: list[dict]):
    """Only the last of one name and seed counts, also where both were different experiments."""
    other = next(record for record in records if record["role"] == "distilled") | {"id": "x", "config_hash": "other"}
    with pytest.warns(UserWarning, match="have different configurations"):
        comparison([*records, other])
