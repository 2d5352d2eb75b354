"""Grids of runs: which run is which, what is done once, what is done again, and the tables they end in."""

import json
import math
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from dlip import records
from dlip.common.errors import UserError
from dlip.common.files import exclusive_lock, write_json
from dlip.experiments import ablation
from dlip.experiments.ablation import RUN_MINUTES, ablate, choose, identity, jobs, runs, table, text
from dlip.experiments.grids import DISTILLED, FULL, GRIDS, INT8_TEACHER, LONG, QUICK, TEACHER, TEACHER_ROW, Grid, Row
from dlip.experiments.history import model_record
from tests.helpers import ONE_PAIR, ROOT, make_record

SMALL = "scenes-student:image_width=16,text_width=16,image_layers=1,text_layers=1,embed_dim=8"
SmallRow = partial(Row, size=SMALL, trained=())
ONE = Grid("one", "?", (SmallRow("a", paper=(1.0, 2.0, 3.0, None)), SmallRow("b", weights=DISTILLED)))
TWO = Grid(
    "two",
    "?",
    (SmallRow("c", weights="hr=5,at=5,vqa=2,lm,itc,tags=30"), SmallRow("broken", images=250)),
    "As printed.",
)


def fake(job: ablation.Job) -> None:
    """Write a record of a run that never was, and a line for each time it is asked to."""
    with open(Path(job.out) / "done", "a") as file:
        file.write(f"{job.row.name} {job.seed}\n")
    if job.row.name == "broken" and not (Path(job.out) / "mended").exists():
        raise ValueError("no such luck")
    record = make_record(job.name, job.row.role, seed=job.seed, tr1=50.0 + job.seed, items=ONE_PAIR)
    records.append(record | {"ablation": {"hash": job.hash}}, job.results)


@pytest.fixture
def place(tmp_path, monkeypatch) -> dict:
    """Where grids run, `fake` in the place of training."""
    monkeypatch.setattr(ablation, "do", fake)
    return {"out": tmp_path / "out", "results": tmp_path / "runs.jsonl", "progress": False}


TEACHER_SEED = model_record(TEACHER)["seed"]


def made_record(row: Row, seed: int = 0, plan=FULL, **about) -> dict:
    return make_record("x", row.role, seed=seed, **about) | {"ablation": {"hash": identity(row, plan)}}


# --- which run is which -----------------------------------------------------------------------------------------------


def test_everything_that_decides_the_result_is_in_the_hash(tmp_path):
    row, plan = Row("a", weights=DISTILLED), FULL
    other = [
        (replace(row, size="scenes-student:text_layers=3"), plan),
        (replace(row, weights="vlp,hr,at=0.5"), plan),
        (replace(row, settings={"center_states": False}), plan),
        (replace(row, trained=()), plan),
        (replace(row, images=1000), plan),
        (row, replace(plan, test_images=10)),
        (row, replace(plan, measure=replace(plan.measure, candidates=16))),
        (row, replace(plan, test_split="val")),
        (row, replace(plan, measure=replace(plan.measure, generate_limit=100))),
        (row, replace(plan, train=plan.train.replace(label_smoothing=0.1))),
        (row, replace(plan, train=plan.train.replace(steps=7))),
        (row, QUICK),
        (Row("a"), plan),
        (TEACHER_ROW, plan),
        (INT8_TEACHER, plan),
    ]
    assert len({identity(*pair) for pair in [(row, plan), *other]}) == 1 + len(other)
    same = [
        (replace(row, name="b", paper=(1.0,) * 4), plan),
        (replace(row, weights="at=5,vqa=2,hr=5,lm,itc,tags=30"), plan),
        (replace(row, settings={"center_states": True}), plan),
        (replace(row, size="scenes-student:image_width=80,text_layers=2"), plan),
        (row, replace(plan, seeds=9, other_seeds=5)),
        (row, replace(plan, measure=replace(plan.measure, latency_repeats=3))),
        (row, replace(plan, train=plan.train.replace(save_every=7, log_every=3, precision="fp16"))),
    ]
    assert {identity(*pair) for pair in same} == {identity(row, plan)}


def test_another_teacher_is_another_run(tmp_path, tiny):
    for name in ("first", "same", "second"):
        tiny.save(tmp_path / name)
    with open(tmp_path / "second" / "model.safetensors", "ab") as file:
        file.write(b" ")
    for row in (Row("a"), Row("a", weights="hr"), TEACHER_ROW):
        first, same, second = (
            identity(row, replace(FULL, teacher=str(tmp_path / name))) for name in ("first", "same", "second")
        )
        assert first == same != second


def test_a_run_that_grids_share_is_one_job_under_one_name():
    found = jobs([GRIDS["attention"], GRIDS["modalities"]], FULL, 2, "out", "results")
    assert len(found) == 1 + 2 * (len(GRIDS["attention"].rows) + len(GRIDS["modalities"].rows) - 1)
    assert found[0].row == TEACHER_ROW and [job.seed for job in found[1:5]] == [0] * 4
    assert len({job.folder for job in found}) == len({job.key for job in found}) == len(found)
    (shared,) = (job for job in found if not job.seed and job.hash == identity(GRIDS["attention"].rows[0], FULL))
    assert shared.name == "objectives: VLP" and shared.row in GRIDS["objectives"].rows
    assert len(jobs(choose(["all"]), FULL, 1, "out", "results")) < sum(len(some.rows) for some in GRIDS.values())


def test_rows_that_a_conclusion_compares_have_more_seeds():
    def seeds(grid: str) -> dict[str, int]:
        found = Counter(job.hash for job in jobs([GRIDS[grid]], FULL, None, "out", "results"))
        return {row.name: found[identity(row, FULL)] for row in GRIDS[grid].rows}

    fusion = {name: 6 if name[0] in "36" else 3 for name in seeds("fusion")}
    assert seeds("fusion") == fusion and list(fusion.values()).count(6) == 2
    assert seeds("modules") == {name: 3 if name.endswith("distilled") else 6 for name in seeds("modules")} | {
        "image small, text small, distilled": 6  # the row VLP+AT+HR
    }
    assert set(seeds("data").values()) == {3, 6} and seeds("data")["500 images"] == 6
    assert len(jobs([GRIDS["data"]], FULL, 3, "out", "results")) == 1 + 3 * len(GRIDS["data"].rows)
    assert len(jobs([GRIDS["data"]], QUICK, None, "out", "results")) == 1 + len(GRIDS["data"].rows)


def test_choosing_rows():
    assert choose(["all"]) == [*GRIDS.values()] and choose(["fusion"]) == [GRIDS["fusion"]]
    (only,) = choose(["fusion", "init"], ["text trained"])
    assert (only.name, [row.name for row in only.rows]) == ("init", ["text trained"])
    for names, rows, message in (
        ([], [], "no grid to run"),
        (["depth"], [], "no grid 'depth'"),
        (["init"], ["VLP"], "no row 'VLP' in init; choose one of neither trained"),
    ):
        with pytest.raises(UserError, match=message):
            choose(names, rows)


# --- doing them -------------------------------------------------------------------------------------------------------


def test_runs_are_done_once_and_failures_are_tried_again(place):
    failed = ablate([ONE, TWO], FULL, 2, 2, **place)
    assert failed == {f"two: broken, seed {seed}": "ValueError: no such luck" for seed in (0, 1)}
    lines = (place["out"] / "done").read_text().splitlines()
    assert sorted(lines) == ["a 0", "a 1", "b 0", "b 1", "broken 0", "broken 1", f"teacher {TEACHER_SEED}"]  # c is b
    made = records.read(place["results"])
    assert len(made) == 5 and len(records.failures(place["results"])) == 2
    assert records.failures(place["results"])[0]["failed"] == "ValueError: no such luck"

    (place["out"] / "mended").touch()
    assert ablate([ONE, TWO], FULL, 3, 1, **place) == {}
    lines = (place["out"] / "done").read_text().splitlines()[len(lines) :]
    assert sorted(lines) == ["a 2", "b 2", "broken 0", "broken 1", "broken 2"]
    assert records.read(place["results"])[:5] == made
    assert ablate([ONE, TWO], FULL, 3, 1, **place) == {}
    assert len(records.read(place["results"])) == 10


def test_an_estimate_is_printed_first(place, capsys):
    ablate([ONE], FULL, 1, 1, **place | {"progress": True})
    assert capsys.readouterr().err.startswith("3 runs, about ")
    student, long = (jobs([ONE], plan, 1, "out", "results")[1].minutes for plan in (FULL, LONG))
    assert 0 < student < RUN_MINUTES[True] and long == 2 * student


def test_a_teacher_in_another_precision_is_another_run():
    grids = [Grid("halves", "?", (replace(INT8_TEACHER, name="bf16", precision="bf16"), INT8_TEACHER))]
    assert [job.row.precision for job in jobs(grids, FULL, 1, "out", "results")] == ["fp32", "bf16", "int8"]


def test_two_processes_do_not_share_a_folder(place):
    with (
        exclusive_lock(Path(place["out"], "lock"), ""),
        pytest.raises(UserError, match="another process runs grids in"),
    ):
        ablate([ONE], FULL, 1, 1, **place)
    with pytest.raises(UserError, match="workers is 0"):
        ablate([ONE], FULL, 1, 0, **place)


TINY = replace(
    QUICK, train=QUICK.train.replace(steps=2, batch_size=4, warmup=1, save_every=5, log_every=1), test_images=4
)
SLOW = replace(TINY, train=TINY.train.replace(steps=60))
REAL = Grid("real", "?", (SmallRow("a", images=8), SmallRow("b", weights="vlp,hr.image,kd.lm", images=8)))


def test_a_killed_grid_resumes(tmp_path, tiny):
    """Killed in its last run: what is recorded stays as it is, and the last run goes on from its checkpoint."""
    tiny.save(tmp_path / "teacher")
    write_json(tmp_path / "teacher" / "record.json", make_record("t", "teacher"))
    plan = replace(SLOW, teacher=str(tmp_path / "teacher"))
    place = {"out": tmp_path / "out", "results": tmp_path / "runs.jsonl", "progress": False}
    code = f"""if True:
        from dataclasses import replace
        from tests.experiments.test_ablation import REAL, SLOW, ablate
        plan = replace(SLOW, teacher={plan.teacher!r})
        ablate([REAL], plan, 1, 1, {str(place["out"])!r}, {str(place["results"])!r}, False)
    """
    last = jobs([REAL], plan, 1, place["out"], place["results"])[-1]
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    end = time.monotonic() + 600
    while len(list(last.folder.glob("checkpoint-*.safetensors"))) < 2:
        assert parent.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    before = records.read(place["results"])
    assert [record["name"] for record in before] == ["teacher", "real: a"]
    measured = f"dlip evaluate --model {plan.teacher} --split test --limit 4 --candidates 0 --latency-repeats 1"
    measured += " --bounds"
    assert (before[0]["command"], before[0]["history"][-1]["command"]) == (measured, "dlip train")
    assert {"ir1", "facts_f1", "vqa_mean"} <= records.floors(before[0]).keys() and records.floors(before[1]) == {}
    assert before[0]["samples"] and before[0]["inputs"].keys() == {"model", "test"}
    steps = [json.loads(line)["step"] for line in (last.folder / "log.jsonl").read_text().splitlines()]
    assert 10 <= steps[-1] < 60

    assert ablate([REAL], plan, 1, 1, **place) == {}
    after = records.read(place["results"])
    assert after[:2] == before and [record["name"] for record in after[2:]] == ["real: b"]
    assert after[2]["losses"]["step"][0] == 1 and after[2]["losses"]["step"][-1] == 60
    rows = [json.loads(line) for line in (last.folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert not list(place["out"].glob("*/checkpoint-*"))

    found = table(REAL, after, plan)
    assert list(found["runs"]) == [1, 1, 1] and found[
        ["tr1", "ir1", "cider", "vqa", "facts_f1", "vqa_mean"]
    ].notna().all(axis=None)
    assert all(record["quick"] and record["efficiency"]["latency"]["repeats"] == 1 for record in after)
    for record in after:
        items = records.outcomes(record)
        assert {name: len(values) for name, values in items.items()} == {
            "tr1": 4,
            "ir1": 20,
            "joint_ir1": 20,
            "cider": 4,
            "facts": 48,
            "vqa": 24,
            "vqa_type": 24,
            "captions": 4,
            "questions": 4,
        }
        assert 100 * items["vqa"].mean() == pytest.approx(record["metrics"]["vqa"]["accuracy"], abs=0.01)
        assert 100 * items["tr1"].mean() == pytest.approx(record["metrics"]["retrieval"]["tr@1"])
        assert items["cider"].mean() == pytest.approx(record["metrics"]["captioning"]["cider"], rel=0.01, abs=0.01)


def test_a_teacher_in_int8_is_evaluated_once(tmp_path, tiny):
    tiny.save(tmp_path / "teacher")
    record = make_record("t", "teacher")
    record["config"]["train"] |= {"steps": 2, "batch_size": 4}
    write_json(tmp_path / "teacher" / "record.json", record)
    plan = replace(TINY, teacher=str(tmp_path / "teacher"))
    place = {"out": tmp_path / "out", "results": tmp_path / "runs.jsonl", "progress": False}
    for _ in range(2):
        assert ablate([Grid("one", "?", (INT8_TEACHER,))], plan, 3, 1, **place) == {}
    teacher, int8 = records.read(place["results"])
    assert (teacher["role"], int8["role"], int8["name"]) == ("teacher", "quantized", "sizes: teacher in int8")
    assert " --precision int8 " in int8["command"] and int8["evaluation"]["precision"] == "int8"
    costs, originals = int8["efficiency"], teacher["efficiency"]
    assert costs["params_m"] == originals["params_m"]
    assert originals["weights_mb"] / 4 < costs["weights_mb"] < originals["weights_mb"] / 2


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_has_mean_and_spread_over_seeds_beside_the_papers_row():
    a, b = ONE.rows
    found = [made_record(TEACHER_ROW, tr1=90.0, params=4.0)]
    found += [made_record(a, seed, tr1=tr1) for seed, tr1 in enumerate((60.0, 62.0, 70.0))]
    found += [made_record(a, 0, QUICK, tr1=1.0), make_record(tr1=2.0)]  # neither is of this grid
    rows = table(ONE, found).set_index("name")
    assert list(rows.index) == ["teacher", "a", "b"] and list(rows["runs"]) == [1, 3, 0]
    assert rows.loc["a", "tr1"] == pytest.approx(64.0) and rows.loc["a", "tr1_sd"] == pytest.approx(28**0.5)
    assert rows.loc["a", ["paper_tr1", "paper_cider"]].tolist() == [1.0, 3.0] and math.isnan(rows.loc["a", "paper_vqa"])
    assert rows.loc["teacher", ["paper_vqa", "paper_vqa_mean", "paper_ir1"]].tolist() == [75.3, 75.3, 78.5]
    assert rows["paper_facts_f1"].isna().all()
    assert list(rows["role"]) == ["teacher", "undistilled", "distilled"] and rows.loc["a", "wall_s"] == 60.0
    assert rows.loc["b", ["tr1", "params_m"]].isna().all() and math.isnan(rows.loc["teacher", "tr1_sd"])
    assert list(runs(ONE, found)["name"]) == ["teacher", "a", "a", "a"]
    said = text(ONE, table(ONE, found))
    assert re.search(r"64\.0 ±5\.3 +1\.0", said)
    assert table(ONE, [])["runs"].sum() == 0 and "a " in text(ONE, table(ONE, []))


def test_every_grid_has_a_table():
    for some in GRIDS.values():
        row = some.rows[-1]
        found = [made_record(row, seed, tr1=tr1) for seed, tr1 in enumerate((1.0, 99.0))]
        assert all(row.name in text(some, table(some.name, found)) for row in some.rows)
        assert table(some.name, found)["runs"].sum() == 2
