"""Records: written, read, upgraded, compared."""

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlip.common.errors import UserError
from dlip.data.batch import Example, Question
from dlip.records import FIGURES, contains, failures, frame, load, read
from dlip.records.compare import (
    comparable_latencies,
    composite,
    floors,
    latest_runs,
    retention,
    summary,
    undistilled_twin,
    warn_of_shared_names,
)
from dlip.records.migration import upgrade
from dlip.records.reading import RUN_COLUMNS
from dlip.records.schema import HEADLINE_SCORES, config_hash, is_record
from dlip.records.write import append, failed_run, samples, thin
from tests.helpers import ROOT, make_record


def test_append_and_read_round_trip(tmp_path: Path):
    records = [make_record(seed=seed) for seed in range(3)]
    for record in records:
        append(record, tmp_path / "deep" / "runs.jsonl")
    assert read(tmp_path / "deep" / "runs.jsonl") == read(tmp_path / "deep") == records
    assert len({record["id"] for record in records}) == 3
    assert records[0]["schema"] == 3 and records[0]["data"] == "scenes" and records[0]["split"] == "test"
    assert records[0]["code"].keys() == {"version", "commit", "modified"}
    assert records[0]["releases"]["numpy"] == np.__version__ and "pillow" in records[0]["releases"]


def test_lone_surrogate_is_replaced(tmp_path: Path):
    append(make_record("a") | {"samples": [{"caption": "a \ud83d b"}]}, tmp_path / "r.jsonl")
    assert read(tmp_path / "r.jsonl")[0]["samples"] == [{"caption": "a ? b"}]


def test_single_record_may_span_lines(tmp_path: Path):
    (tmp_path / "record.json").write_text(json.dumps(make_record("a"), indent=1))
    assert [record["name"] for record in read(tmp_path / "record.json")] == ["a"]


def test_json_lines_in_a_json_file(tmp_path: Path):
    for seed in range(2):
        append(make_record(seed=seed), tmp_path / "runs.json")
        assert [record["seed"] for record in read(tmp_path / "runs.json")] == list(range(seed + 1))


def test_record_is_plain_json():
    record = make_record(
        retrieval={"tr@1": np.float32(0.5), "ir@1": float("nan")}, losses={"step": (1, 2), "lm": [1, 2]}
    )
    assert record["metrics"]["retrieval"] == {"tr@1": 0.5, "ir@1": None}
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_unknown_role_and_uneven_losses_are_refused():
    with pytest.raises(ValueError, match="role 'pupil'"):
        make_record(role="pupil")
    with pytest.raises(ValueError, match=r"\[1, 2\] points"):
        make_record(losses={"step": [1, 2], "lm": [1.0]})


def test_thinned_losses_keep_both_ends():
    steps = list(range(0, 5000, 2))
    thinned = thin({"step": steps, "lm": [s / 2 for s in steps]})
    assert len(thinned["step"]) == 100
    assert (thinned["step"][0], thinned["step"][-1]) == (0, 4998)
    assert thinned["lm"] == [s / 2 for s in thinned["step"]]
    gaps = np.diff(thinned["step"])
    assert gaps.min() >= 50 and gaps.max() <= 52  # 4998 / 99 = 50.5
    assert thin({"step": [1, 2, 3]}) == {"step": [1, 2, 3]}
    assert thin({"step": [], "lm": []}) == {"step": [], "lm": []}


def _append_many(path: Path, worker: int) -> None:
    for i in range(25):
        append(make_record() | {"id": f"{worker}-{i}", "filler": "x" * 20_000}, path)


def test_concurrent_appends_lose_nothing(tmp_path: Path):
    path = tmp_path / "runs.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(path, worker)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    ids = [record["id"] for record in read(path)]
    assert sorted(ids) == sorted(f"{worker}-{i}" for worker in range(4) for i in range(25))


@pytest.mark.parametrize(
    "change",
    [
        {"role": "king"}, {"seed": "0"}, {"metrics": None}, {"config": {"model": 3}}, {"losses": []}, {"id": {}},
        {"efficiency": {"params_m": "many"}}, {"metrics": {"vqa": {"accuracy": [1]}}}, {"metrics": {"retrieval": True}},
        {"name": "\ud800"}, {"threads": "two"}, {"threads": 0}, {"threads": 10**9},
        {"history": None}, {"history": "runs"}, {"history": ["a"]}, {"history": [{}]},
        {"wall_s": None}, {"train_images": None}, {"inputs": [1]}, {"machine": "x"}, {"releases": 1},
        {"notes": None}, {"notes": [1]}, {"code": None}, {"torch": None}, {"device": 1},
        {"ablation": None}, {"ablation": {"hash": []}},
    ],
)  # fmt: skip
def test_line_with_wrong_types_is_skipped(change, tmp_path: Path):
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in (make_record() | change, make_record(seed=1))))
    with pytest.warns(UserWarning, match="line 1 is not a complete record; it was skipped"):
        (kept,) = read(path)
    assert kept["seed"] == 1 and len(frame([kept])) == 1


def test_full_disk_leaves_the_file_unchanged(tmp_path: Path, monkeypatch):
    path, write = tmp_path / "runs.jsonl", os.write
    append(make_record(), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.write", lambda file, line: write(file, line[:20]))  # as a full disk does
    with pytest.raises(UserError, match="the record cannot be added to .* the disk is full; choose another file"):
        append(make_record(seed=1), path)
    assert path.read_bytes() == before


def test_contains_ignores_spacing_of_the_line(tmp_path: Path):
    """As jq writes it."""
    record = make_record("a")
    assert not contains(tmp_path / "r.jsonl", record)
    (tmp_path / "r.jsonl").write_text(json.dumps(record, separators=(",", ":")) + "\n")
    assert contains(tmp_path / "r.jsonl", record) and not contains(tmp_path / "r.jsonl", make_record("a"))


def test_failed_runs_are_read_apart(tmp_path: Path):
    path, good = tmp_path / "runs.jsonl", make_record()
    append(failed_run("s", "distilled", 2, {"hash": "ab"}, "it broke"), path)
    append(good, path)
    assert read(path) == [good] and len(load(path)) == 1
    (failed,) = failures(path)
    assert failed.pop("created") and failed == {
        "schema": 3, "failed": "it broke", "name": "s", "role": "distilled", "seed": 2, "ablation": {"hash": "ab"},
    }  # fmt: skip


def test_the_truth_of_an_example_is_what_most_annotators_say():
    item = Example(None, 7, ["a dog"], [Question("how many?", ["3", *["2"] * 9])])
    row = {"image_id": 7, "answer": "two", "accuracy": 1.0}
    (sample,) = samples({"vqa": [row]}, [item])
    assert (sample["answers"], sample["truth"]) == (["two"], ["2"])
    (sample,) = samples({"vqa": [row]}, [replace(item, questions=[Question("why?", []), *item.questions])])
    assert (sample["questions"], sample["truth"]) == (["how many?"], ["2"])


def test_quick_runs_are_marked():
    assert list(frame([make_record(), make_record() | {"quick": True}])["quick"]) == [False, True]


def test_half_written_line_is_skipped_and_repaired(tmp_path: Path):
    path = tmp_path / "runs.jsonl"
    first, second = make_record(seed=0), make_record(seed=1)
    append(first, path)
    with open(path, "a") as file:
        file.write(json.dumps(second)[:200])
    with pytest.warns(UserWarning, match=r"runs\.jsonl line 2 is not a complete record"):
        assert read(path) == [first]
    append(second, path)  # starts a line of its own
    with pytest.warns(UserWarning, match="line 2"):
        assert read(path) == [first, second]


def test_infinity_is_written_as_null(tmp_path: Path):
    append(make_record() | {"history": [{"folder": "a", "wall_s": float("inf")}]}, tmp_path / "runs.jsonl")
    assert read(tmp_path / "runs.jsonl")[0]["history"] == [{"folder": "a", "wall_s": None}]


def test_newer_schema_is_skipped(tmp_path: Path):
    append({"schema": 4}, tmp_path / "runs.jsonl")
    append({"no": "schema"}, tmp_path / "runs.jsonl")
    with pytest.warns(UserWarning) as warned:
        assert read(tmp_path) == []
    assert [str(w.message).split("runs.jsonl ")[1] for w in warned] == [
        "line 1 has schema 4, not 3; it was skipped",
        "line 2 is not a complete record; it was skipped",
    ]


def test_unusable_paths(tmp_path: Path):
    with pytest.raises(UserError, match="no records at .*nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be added"):
        append({}, tmp_path / "file" / "runs.jsonl")
    with pytest.raises(UserError, match="cannot be added"):
        append({}, tmp_path)


def test_options_that_came_or_went_do_not_separate_runs():
    present, older = make_record(), make_record()
    del older["config"]["train"]["optimizer"]
    older["config"]["train"]["itm_ramp"] = 0
    older["config_hash"] = config_hash(older["config"])
    assert [upgrade(older)[key] for key in ("config", "config_hash")] == [present["config"], present["config_hash"]]
    older["config"]["train"]["itm_ramp"] = 800
    assert upgrade(older)["config"]["train"]["itm_ramp"] == 800


def test_config_hash_ignores_seed_and_order():
    config = {"model": {"width": 64, "fusion_layers": (1, 2)}, "train": {"lr": 0.1, "seed": 0}, "data": {"seed": 5}}
    same = {"train": {"seed": 7, "lr": 0.1}, "data": {"seed": 5}, "model": {"fusion_layers": [1, 2], "width": 64}}
    assert config_hash(config) == config_hash(same) == config_hash({**config, "seed": 3})
    assert len(config_hash(config)) == 64
    assert config_hash(config) != config_hash({**config, "data": {"seed": 6}})
    assert config_hash(config) != config_hash({**config, "train": {"lr": 0.2, "seed": 0}})
    assert config["train"]["seed"] == 0  # the argument is unchanged


def test_table_columns_and_figures(tmp_path: Path):
    append(make_record("teacher", role="teacher", weights={"itc": 1.0}, tr1=80.0, latency=50.0), tmp_path / "a.jsonl")
    append(make_record(weights={"itc": 1.0, "kd.itc": 2.0}, vqa=None), tmp_path / "b.jsonl")
    df = load(tmp_path)
    assert list(df.columns) == [*RUN_COLUMNS, *FIGURES, "vqa.count", "vqa.color", "w.itc", "w.kd.itc"]
    assert list(df["name"]) == ["teacher", "student"]
    teacher, student = df.iloc[0], df.iloc[1]
    assert (teacher["tr1"], teacher["latency_ms"], teacher["vqa.count"]) == (80.0, 50.0, 60.0)
    assert np.isnan(student["vqa"]) and np.isnan(student["vqa.count"]) and np.isnan(student["spice"])
    assert (teacher["w.kd.itc"], student["w.kd.itc"]) == (0.0, 2.0)
    assert teacher["model"] == "image 64 x 4, text 64 x 3, fusion in 2"
    assert all(df[column].dtype == float for column in FIGURES)


def test_empty_table_has_its_columns():
    assert list(frame([]).columns) == [*RUN_COLUMNS, *FIGURES]
    assert len(summary(frame([]))) == 0


def test_retention_is_percent_of_the_teacher_on_the_same_test_set():
    df = frame([
        make_record("t", role="teacher", tr1=80.0, vqa=90.0, params=4.0),
        make_record("s", tr1=60.0, vqa=None, params=1.0),
        make_record("t", role="teacher", tr1=40.0, data="other"),
        make_record("s", tr1=30.0, data="other"),
        make_record("s", tr1=30.0, data="untaught"),
    ])  # fmt: skip
    kept = retention(df)
    assert list(kept["tr1"].iloc[:4]) == [100.0, 75.0, 100.0, 75.0] and np.isnan(kept["tr1"].iloc[4])
    assert kept["vqa"].iloc[0] == 100.0 and np.isnan(kept["vqa"].iloc[1])
    assert kept["params_m"].iloc[1] == 25.0
    assert list(df["tr1"]) == [80.0, 60.0, 40.0, 30.0, 30.0]  # the argument is unchanged


def test_retention_averages_a_teacher_over_seeds_and_refuses_two_teachers():
    seeds = [make_record("t", role="teacher", tr1=tr1, seed=i) for i, tr1 in enumerate((70.0, 90.0))]
    assert retention(frame([*seeds, make_record("s", tr1=60.0)]))["tr1"].iloc[2] == 75.0
    with pytest.raises(UserError, match="the teachers t, u"):
        retention(frame([*seeds, make_record("u", role="teacher")]))


def test_composite_is_the_mean_share_of_the_range_from_floor_to_teacher():
    floor, teacher = {"ir1": 10.0, "vqa": 40.0}, {"ir1": 90.0, "vqa": 80.0}
    student = {"ir1": 50.0, "vqa": 70.0}  # 40 of 80 and 30 of 40 points
    columns = ("ir1", "vqa")
    assert composite(student, teacher, floor, columns) == pytest.approx((50 + 75) / 2)
    assert composite(student, teacher, floor, ("vqa",)) == pytest.approx(75)
    assert composite(teacher, teacher, floor, columns) == 100 and composite(floor, teacher, floor, columns) == 0
    draws = {name: np.array([value, floor[name], teacher[name]]) for name, value in student.items()}
    assert composite(draws, teacher, floor, columns).tolist() == pytest.approx([62.5, 0, 100])
    assert set(HEADLINE_SCORES) == set(composite.__defaults__[0])
    with pytest.raises(KeyError):
        composite(student, teacher, {"ir1": 10.0}, columns)


def test_floors_of_a_record():
    floor = {"retrieval": {"ir@1": 0.1, "tr@1": 0.1}, "vqa": {"accuracy": 40.0}, "captioning": {"spice": None}}
    record = make_record() | {"bounds": {"floor": floor, "ceiling": {}}}
    assert is_record(record) and floors(record) == {"tr1": 0.1, "ir1": 0.1, "vqa": 40.0}
    assert floors(make_record()) == {} and not is_record(record | {"bounds": 3})


def test_summary_has_mean_and_sample_deviation_over_seeds():
    students = [make_record("s", tr1=tr1, seed=seed, params=1.0) for seed, tr1 in enumerate((60.0, 62.0, 70.0))]
    records = [*students, make_record("t", role="teacher", tr1=90.0, params=4.0)]
    rows = summary(frame(records)).set_index("name")
    assert list(rows.index) == ["t", "s"]
    assert list(rows["runs"]) == [1, 3]
    assert rows.loc["s", "tr1"] == pytest.approx(64.0)
    assert rows.loc["s", "tr1_sd"] == pytest.approx(28.0**0.5)  # (16 + 4 + 36) / 2
    assert np.isnan(rows.loc["t", "tr1_sd"])


def test_repeated_run_counts_once():
    early, late = make_record(tr1=10.0), make_record(tr1=20.0)
    early["created"], late["created"] = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    df = frame([late, early, make_record(tr1=30.0, seed=1)])
    assert sorted(latest_runs(df)["tr1"]) == [20.0, 30.0]
    assert summary(df)["tr1"].item() == 25.0


def test_twin_has_the_same_layers_and_images():
    records = [
        make_record("small", role="undistilled", width=64, images=4000),
        make_record("small, all images", role="undistilled", width=64, images=9000),
        make_record("large", role="undistilled", width=96, images=4000),
        make_record("s", width=64, images=9000),
    ]
    rows = summary(frame(records))
    student = rows[rows["name"] == "s"].iloc[0]
    assert undistilled_twin(rows, student)["name"] == "small, all images"
    assert undistilled_twin(rows[rows["name"] != "small, all images"], student) is None
    assert undistilled_twin(rows[rows["role"] != "undistilled"], student) is None


def test_twin_was_initialized_from_the_same_weights():
    initialized = make_record("a", "undistilled") | {"config": {"init_from": ["image=teacher"]}}
    rows = summary(frame([initialized, make_record("b", "undistilled"), make_record("student")]))
    students = rows[rows["role"] == "distilled"]
    assert (
        rows["init_from"].tolist().count("image=teacher") == 1
        and undistilled_twin(rows, students.iloc[0])["name"] == "b"
    )
    assert undistilled_twin(rows[rows["name"] != "b"], students.iloc[0]) is None


def test_runs_of_one_name_with_different_configurations_are_noted(recwarn):
    made = [make_record("student", seed=seed, latency=8.0) for seed in (0, 1)]
    warn_of_shared_names(frame(made))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="runs named student have different configurations"):
        warn_of_shared_names(frame([made[0], made[1] | {"config_hash": "other"}]))


def test_latencies_are_compared_by_share_of_the_teacher():
    made = [make_record("t", "teacher", seed=seed, latency=ms) for seed, ms in enumerate((90.0, 40.0))]
    made += [make_record(name, latency=ms) for name, ms in (("a", 8.0), ("b", 7.0), ("c", 8.0))]
    made[2]["efficiency"]["latency"]["share"] = 25.0
    made[3]["efficiency"]["latency"].pop("share")
    made[4]["efficiency"]["latency"]["threads"] = 1
    df = frame(made)
    assert df["latency_setup"][2:].tolist() == [f"captioning, batch 1, 3 beams, 20 tokens, {n}, cpu"
                                        for n in ("2 threads", "2 threads", "1 thread")]  # fmt: skip
    assert (
        comparable_latencies(df)["latency_ms"].fillna(0).tolist() == [32.0, 32.0, 8.0, 0, 0]
        and df["latency_ms"][0] == 90.0
    )
    assert comparable_latencies(df[2:])["latency_ms"].fillna(0).tolist() == [8.0, 7.0, 0]  # no teacher


@pytest.mark.parametrize(
    ("init_from", "column"), [(None, ""), ([], ""), (["image=a", "text=b"], "image=a, text=b"), ("x", "")]
)
def test_init_from_column(init_from, column):
    record = make_record()
    record["config"] = {**record["config"], "init_from": init_from}
    assert frame([record])["init_from"].tolist() == [column]


def test_shipped_records_of_schema_1_are_upgraded():
    files = ("tuning/photos-vit.jsonl", "tuning/scenes.jsonl")
    old = [json.loads(line) for name in files for line in (ROOT / "results" / name).open()]
    assert {record["schema"] for record in old} == {1}
    for record in old:
        new = upgrade(record)
        assert new["schema"] == 3 and is_record(new) and upgrade(new) == new
        assert "train_pictures" in record and new["train_images"] == record["train_pictures"]
        assert new["metrics"].keys() == {"retrieval", "captioning", "vqa", "attention"} & new["metrics"].keys()
        captioning = record["metrics"]["caption"]
        if captioning and "facts" in captioning:  # precisions alone
            names = {"object": "objects", "attribute": "attributes", "relation": "relations"}
            facts = {k: {"precision": captioning["facts"][old], "recall": None, "f1": None} for k, old in names.items()}
            captioning = captioning | {"facts_f1": None, "facts": facts}
        assert new["metrics"]["captioning"] == captioning
        if vqa := record["metrics"]["vqa"]:
            by_type = vqa["by_type"]
            assert new["metrics"]["vqa"] == vqa | {"mean_by_type": sum(by_type.values()) / len(by_type)}
        assert "pictures" not in new["name"] and (new["name"] == record["name"] or new["name"].startswith("data: "))
        assert new["notes"].get("captioning.spice") == record["notes"].get("caption.spice")
        assert "pictures" not in new.get("inputs", {}) | (new["metrics"].get("attention") or {})
    assert all("train_pictures" in record for record in old)  # the old lines are unchanged


def test_failed_runs_of_schema_1_are_upgraded(tmp_path: Path):
    line = {"schema": 1, "failed": "out of memory", "name": "a", "role": "distilled", "seed": 0}
    line |= {"created": "2026-01-01T00:00:00+00:00", "ablation": {"hash": "ab"}}
    append(line, tmp_path / "runs.jsonl")
    assert [(row["schema"], row["failed"]) for row in failures(tmp_path / "runs.jsonl")] == [(3, "out of memory")]
