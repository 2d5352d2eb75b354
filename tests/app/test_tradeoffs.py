"""The Trade-offs tab against records."""

import json

import pytest

from app.tabs import shipped
from app.tabs import tradeoffs as page
from dlip.common.errors import UserError
from dlip.records import frame
from tests.helpers import ONE_PAIR, make_record

SAMPLE = {"image_id": 0, "caption": "a <blue> star", "references": ["a star"],
          "questions": ["what shape?", "how many?"], "answers": ["star", "<2>"], "truth": ["star", "1"]}  # fmt: skip


OTHERS = ["scenes <val>", "scenes test, 1 image"]


@pytest.fixture
def records(tmp_path, monkeypatch) -> list[dict]:
    """Of a folder results: a teacher, two students with seeds, and a run that is too short to mean anything."""
    made = [make_record("big", role="teacher", tr1=80.0, params=4.0)]
    made += [make_record("good", seed=seed, tr1=70.0 + seed, params=1.0, samples=[SAMPLE]) for seed in range(3)]
    made += [
        make_record("<bad>", "undistilled", tr1=50.0, params=2.0),
        make_record("short", tr1=99.0) | {"quick": True},
    ]
    made += [
        make_record("far", tr1=99.0) | {"split": "<val>"},
        make_record("row", tr1=99.0) | {"ablation": {"hash": "x"}},
    ]
    made += [make_record("of one picture", tr1=99.0, items=ONE_PAIR)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(record) + "\n" for record in made))
    monkeypatch.setattr(shipped, "RESULTS", tmp_path)
    monkeypatch.setattr(shipped, "built_in_models", list)
    return made


def test_points_average_over_seeds_and_know_the_pareto_front(records):
    points = page.tradeoffs(score="tr1")
    assert [(p["name"], p["cost"], p["score"], p["runs"], p["front"]) for p in points] == [
        ("good", 1.0, 71.0, 3, True), ("<bad>", 2.0, 50.0, 1, False), ("big", 4.0, 80.0, 1, True),
    ]  # fmt: skip
    assert points[0]["score_sd"] == 1.0 and points[1]["score_sd"] is None
    assert "5 of the 8 runs" in page.description(points)
    assert page.point_names(points) == ["big", "good", "<bad>"]
    json.dumps(points)


def test_a_point_shows_its_run(records):
    result = page.run("good", score="tr1")
    last = max((r for r in records if r["name"] == "good"), key=lambda r: r["created"])
    assert (result["command"], result["config"], result["seeds"]) == (last["command"], last["config"], [0, 1, 2])
    assert result["figures"]["tr1"] == 71.0 and result["samples"] == [SAMPLE]
    shown = page.show(result)
    assert "&lt;blue&gt;" in shown and "<blue>" not in shown and "<b>&lt;2&gt;</b> (true: 1)" in shown
    assert "(true: star)" not in shown and ">71.0<" in shown
    assert "no samples" in page.show(page.run("<bad>")) and "<bad>" not in page.show(page.run("<bad>"))


def test_samples_are_those_of_the_latest_run_that_has_some(records, tmp_path):
    kept = [
        make_record("again", seed=seed, samples=[{**SAMPLE, "caption": f"{seed}"}] * (seed < 2)) for seed in (1, 0, 2)
    ]
    dated = [record | {"created": f"2026-01-0{record['seed'] + 1}T00:00:00+00:00"} for record in kept]
    (tmp_path / "more.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in (dated[1], dated[0], dated[2]))
    )
    assert page.run("again")["samples"][0]["caption"] == "1"


def test_hover_texts_omit_the_command(records):
    texts = [message for trace in page.chart_of(None, "params_m", "tr1").data for message in trace.hovertext or ()]
    assert any("<b>good</b>" in message for message in texts) and not any("dlip train" in message for message in texts)


def test_invalid_groups_axes_and_names_are_refused(records):
    for call, message in (
        (lambda: page.tradeoffs("all grids"), "no runs called 'all grids'; choose one of scenes test; scenes <val>; "),
        (lambda: page.tradeoffs(None, "tr1"), "'tr1' is not an axis"),
        (lambda: page.tradeoffs(None, "params_m", "spice"), "choose other axes"),
        (lambda: page.tradeoffs("fusion"), "none of these runs has both"),
        (lambda: page.run("nobody"), "no point 'nobody'"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert page.groups() == ["scenes test", *OTHERS]


def test_runs_on_other_data_are_another_group(records):
    assert [p["name"] for p in page.tradeoffs(OTHERS[0], score="tr1")] == ["far"]
    assert "measured on scenes &lt;val&gt;; " in page.description(page.tradeoffs(OTHERS[0], score="tr1"), OTHERS[0])
    assert page.run("far", OTHERS[0])["figures"]["tr1"] == 99.0


def test_a_score_of_the_teacher_alone_is_no_choice(monkeypatch):
    made = [make_record("teacher", role="teacher"), make_record("a", vqa=None)]
    monkeypatch.setattr(page, "table", lambda group: frame(made))
    assert "tr1" in (columns := [column for _, column in page.axes("any", page.SCORES)]) and "vqa" not in columns


def test_runs_of_the_same_cost_are_rows(monkeypatch):
    """In a grid beside a teacher of any cost, elsewhere without one."""
    made = [make_record(name, tr1=score, params=params) for name, score, params in (("a", 1, 2.0), ("b", 3, 2.05))]
    teacher = make_record("big", "teacher", tr1=9, params=8.0)
    monkeypatch.setattr(page, "table", lambda group: frame(made))
    made.append(teacher)
    fig = page.chart_of("fusion", "params_m", "tr1")
    assert list(fig.data[0].y) == ["b", "a"] == list(fig.data[0].customdata) and list(fig.data[0].x) == [3, 1]
    (points,) = page.chart_of("any", "params_m", "tr1").select_traces(dict(name="distilled"))
    assert sorted(points.x) == [2.0, 2.05]
    made.remove(teacher)
    assert list(page.chart_of("any", "params_m", "tr1").data[0].y) == ["b", "a"]


def test_the_runs_of_a_grid_are_named_after_its_rows(records, monkeypatch):
    monkeypatch.setattr(
        shipped, "matched", lambda grid, result: {"teacher": result[:1], "a row": result[1:3], "none": []}
    )
    assert [p["name"] for p in page.tradeoffs("fusion", score="tr1")] == ["a row", "teacher"]
    assert page.run("a row", "fusion")["seeds"] == [0, 1] and "fusion" in page.groups()


def test_a_point_shows_the_run_that_is_drawn(records, tmp_path):
    """Not a later one of that name, which lacks one of the axes."""
    later = make_record("good", vqa=None, command="later") | {"created": "2999-01-01T00:00:00+00:00"}
    with open(tmp_path / "some.jsonl", "a") as file:
        file.write(json.dumps(later) + "\n")
    assert page.run("good", score="tr1")["command"] == "later" != page.run("good")["command"]
