"""Advice from made-up records: the best within the budget, and what the records cannot tell."""

import pytest

from dlip.common.errors import UserError
from dlip.experiments.advise import advise, text
from tests.helpers import make_record

SEEDS = (-1.0, 0.0, 1.0)


def student(name: str, tr1: float, params: float, vqa: float | None = 45.0, latency: float = 20.0) -> list[dict]:
    return [
        make_record(name, seed=seed, tr1=tr1 + noise, vqa=vqa, params=params, latency=latency, command=f"make {name}")
        for seed, noise in enumerate(SEEDS)
    ]


TEACHER = [make_record("teacher", "teacher", tr1=80.0, vqa=90.0, params=4.0, latency=50.0)]
SMALL, LARGE = student("small", 40.0, 0.5, latency=10.0), student("large", 60.0, 1.0)
KNOWN = [*TEACHER, *SMALL, *LARGE]


def test_the_best_within_the_budget():
    advice = advise(KNOWN, {"params_m": 2.0}, "tr1")
    best = advice["student"]
    assert (best["name"], best["seeds"], best["command"]) == ("large", 3, "make large")
    assert best["kept"]["tr1"] == pytest.approx(75.0) and best["kept_sd"]["tr1"] == pytest.approx(1.25)
    assert best["costs_kept"]["params_m"] == 25.0 and advice["runner_up"]["name"] == "small"
    assert advice["cannot_tell"] == []
    assert advise(KNOWN, {"params_m": 0.7}, "tr1")["student"]["name"] == "small"
    assert advise(KNOWN, {"flops_g": 0.05}, "tr1")["student"]["name"] == "small"
    assert advise(KNOWN, {"latency_ms": 15.0}, "tr1")["student"]["name"] == "small"
    assert advise(KNOWN, {"params_m": 2.0, "latency_ms": 15.0}, "tr1")["student"]["name"] == "small"


def test_all_is_the_least_kept():
    """The one keeps 75% of TR@1 and 50% of VQA, the other 62.5% and 67%."""
    advice = advise([*TEACHER, *student("even", 50.0, 1.0, vqa=60.0), *LARGE], {"params_m": 2.0})
    assert advice["student"]["name"] == "even" and advice["student"]["kept"]["all"] < 62.5
    assert advice["runner_up"]["kept"]["all"] == pytest.approx(50.0)


def test_all_is_of_the_headline_scores_that_were_measured():
    """Facts F1 of a record, or of all; TR@1 and CIDEr do not count."""
    even = student("even", 50.0, 1.0, vqa=60.0)
    older = [r | {"metrics": {**r["metrics"], "captioning": {"cider": 1.0}}} for r in (*TEACHER, *even, *LARGE)]
    advice = advise(older, {"params_m": 2.0})
    assert advice["student"]["name"] == "even" and advice["student"]["scores"]["facts_f1"] is None
    assert advice["student"]["kept"]["all"] == pytest.approx(100 * 48 / 78, abs=0.1)  # IR@1
    assert "facts F1 not measured" in text(advice)
    some = advise([*KNOWN, *older[1:4]], {"params_m": 2.0})
    assert some["student"]["name"] != "even" and "missing from 1 of 3 students" in some["cannot_tell"][0]


def test_text_has_the_figures_and_the_command():
    said = text(advise(KNOWN, {"params_m": 2.0}, "tr1"))
    assert said.startswith('Within 2 M parameters: "large" (distilled, 3 seeds; ')
    assert "TR@1     60.0, 75.0% ±1.2 kept" in said and "25% of the teacher's parameters" in said
    assert said.splitlines()[-1] == "  trained by: make large"


def test_text_of_a_slow_model_has_whole_milliseconds():
    slow = make_record("slow", tr1=79.0, latency=2000.0)
    timed = make_record("teacher", "teacher", tr1=80.0, vqa=90.0, params=4.0, latency=30.864)
    said = text(advise([timed, slow], {"params_m": 2.0}, "tr1"))
    assert "  1,235 ms, 4000% of the teacher's latency (captioning, batch 1, " in said


def test_nothing_within_the_budget():
    advice = advise(KNOWN, {"params_m": 0.1})
    assert advice["student"] is None
    assert "within 0.1 M parameters" in text(advice) and "the minimum is 0.5 M" in text(advice)


def test_a_lead_within_the_spread_is_uncertain():
    near = student("near", 59.0, 0.9)
    (doubt,) = advise([*KNOWN, *near], {"params_m": 2.0}, "tr1")["cannot_tell"]
    assert 'better than "near": the lead of 1.2 points is within the spread over seeds, 1.8' in doubt
    single = [*TEACHER, *SMALL, LARGE[0]]
    (doubt,) = advise(single, {"params_m": 2.0}, "tr1")["cannot_tell"]
    assert 'better than "small" (+23.8 points): one has a single seed' in doubt


def test_missing_or_incomparable_latencies():
    bare = [r | {"efficiency": {**r["efficiency"], "latency": None}} for r in KNOWN]
    advice = advise(bare, {"latency_ms": 15.0})
    assert advice["student"] is None and "no record has a latency" in advice["cannot_tell"][0]
    apart = [
        r | {"efficiency": {**r["efficiency"], "latency": r["efficiency"]["latency"] | {"share": None}}} for r in KNOWN
    ]
    advice = advise(apart, {"latency_ms": 1000.0})
    assert advice["student"] is None and "no student was timed beside its teacher" in advice["cannot_tell"][0]
    other = {**KNOWN[1]["efficiency"]["latency"], "threads": 16}
    mixed = [*KNOWN, SMALL[0] | {"seed": 9, "efficiency": {**SMALL[0]["efficiency"], "latency": other}}]
    advice = advise(mixed, {"latency_ms": 15.0})
    assert advice["student"] is None and "measured in different ways" in advice["cannot_tell"][0]
    assert advise([mixed[-1] | {"seed": SMALL[0]["seed"]}, *KNOWN], {"latency_ms": 15.0})["student"]  # measured again
    assert advise(mixed, {"params_m": 2.0})["student"]["name"] == "large"


def test_without_a_teacher_one_score_still_ranks():
    advice = advise([*SMALL, *LARGE], {"params_m": 2.0}, "vqa")
    assert advice["student"]["kept"]["vqa"] is None and "no record of the teacher" in advice["cannot_tell"][0]
    assert advise([*SMALL, *LARGE], {"params_m": 2.0}, "tr1")["student"]["name"] == "large"
    advice = advise([*SMALL, *LARGE], {"params_m": 2.0})
    assert advice["student"] is None and "choose one --metric" in advice["cannot_tell"][1]


def test_students_without_the_score_and_quick_runs_are_skipped():
    advice = advise([*TEACHER, *SMALL, *student("mute", 70.0, 1.0, vqa=None)], {"params_m": 2.0}, "vqa")
    assert (
        advice["student"]["name"] == "small"
        and "missing from 1 of 2 students within the budget" in advice["cannot_tell"][0]
    )
    quick = [r | {"quick": True} for r in LARGE]
    assert advise([*TEACHER, *SMALL, *quick], {"params_m": 2.0}, "tr1")["student"]["name"] == "small"


@pytest.mark.parametrize(
    ("records", "budget", "metric", "message"),
    [
        (KNOWN, {}, "all", "needs a budget"),
        (KNOWN, {"params_m": float("nan")}, "all", "the budget is nan; give a finite positive number"),
        (KNOWN, {"params_m": 1.0, "flops_g": 0.0}, "all", "the budget is 0; give"),
        (KNOWN, {"params_m": 1.0}, "bleu", "no metric 'bleu'"),
        ([*KNOWN, make_record(data="photos")], {"params_m": 1.0}, "all", "the records are of scenes test; photos test"),
        ([*KNOWN, make_record("other", "teacher")], {"params_m": 1.0}, "all", "the teachers teacher, other"),
    ],
)
def test_mistakes(records, budget, metric, message):
    with pytest.raises(UserError, match=message):
        advise(records, budget, metric)


def test_a_busy_machine_makes_no_student_slower():
    students = [make_record("a", seed=seed, latency=latency) for seed, latency in enumerate((30.0, 10.0, 45.0))]
    for student in students:
        student["efficiency"]["latency"]["share"] = 25.0
    advice = advise([make_record("t", "teacher", params=4.0, latency=40.0), *students], {"latency_ms": 12.0}, "tr1")
    assert (advice["student"]["name"], advice["student"]["costs"]["latency_ms"]) == ("a", 10.0)
