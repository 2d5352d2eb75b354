"""Grids have the paper's rows, and sizes as their names state."""

import hashlib

from dlip.checkpoints.init_from import parse_source
from dlip.checkpoints.load import BUILT_IN, locate, model_folder
from dlip.common.files import read_json
from dlip.cost.count import paper_count
from dlip.experiments.ablation import identity
from dlip.experiments.grids import (
    DATA_IMAGES,
    DISTILLED,
    FULL,
    GRIDS,
    IMAGE,
    LEARNING_RATES,
    QUICK,
    TASK,
    TEACHER,
    TEXT,
    Row,
    module_row,
    student_size,
)
from dlip.models.config import preset
from dlip.training.weights import weights

AT, HR, KD = weights("at"), weights("hr"), weights("kd")

VLP_ORDER = ("itc", "lm", "vqa")
VLP = {*VLP_ORDER}


def rows(name: str) -> dict[str, Row]:
    return {row.name: row for row in GRIDS[name].rows}


def terms(row: Row) -> set[str]:
    used = {term for term, weight in weights(row.weights).items() if weight}
    assert ("tags" in used) == (row.weights != "" and row not in GRIDS["init"].rows)
    return used - {"tags"}


def test_rows_have_unique_names_and_identities():
    for some in GRIDS.values():
        assert len(rows(some.name)) == len(some.rows)
        assert len({identity(row, FULL) for row in some.rows}) == len(some.rows)


def test_grids_share_students():
    """The undistilled student is in five grids, the distilled one in three."""
    undistilled = [rows("modules")[module_row("small", "small")]]
    same = ("modalities", "none"), ("attention", "no maps"), ("objectives", "VLP"), ("data", "500 images")
    undistilled += [rows(name)[row] for name, row in same]
    assert len({identity(row, FULL) for row in undistilled}) == 1
    same = ("objectives", "VLP+AT+HR"), ("data", "500 images, distilled")
    distilled = [rows(name)[row] for name, row in (*same, ("modules", module_row("small", "small", True)))]
    assert len({identity(row, FULL) for row in distilled}) == 1


def test_modules_sweeps_each_encoder_at_two_sizes_of_the_other():
    expected = {module_row(i, t, d) for i in IMAGE for t in ("base", "small") for d in (False, True)}
    expected |= {module_row(i, t, d) for i in ("base", "small") for t in TEXT for d in (False, True)}
    assert rows("modules").keys() == expected
    assert all((row.role == "distilled") == name.endswith("distilled") for name, row in rows("modules").items())
    teacher = read_json(model_folder(TEACHER) / "config.json")["model"]
    base, teacher_size = preset(rows("modules")[module_row("base", "base")].size), preset("scenes-teacher")
    for part in ("width", "layers", "heads"):
        for side in ("image", "text"):
            assert getattr(base, f"{side}_{part}") == teacher[f"{side}_{part}"]
    for side, sizes in (("image", IMAGE), ("text", TEXT)):
        assert list(sizes) == ["tiny", "small", "middle", "base"]
        counts = [paper_count(preset(student_size(size)))[f"{side}_params"] for size in sizes.values()]
        share = [count / paper_count(teacher_size)[f"{side}_params"] for count in counts]
        assert 0.04 < share[0] < 0.07 and 0.1 < share[1] < 0.35 and 0.45 < share[2] < 0.55 and 0.9 < share[3] <= 1


def test_the_other_grids_have_the_papers_rows():
    fused = {len(preset(row.size).fusion_layers): row.paper for row in rows("fusion").values()}
    assert fused.keys() == {1, 2, 3, 4, 6} and fused[3] == (88.0, 72.7, 119.1, 72.65)
    assert all(preset(row.size).fusion_layers[-1] == 5 for row in rows("fusion").values())
    distilled = [terms(row) - {*VLP} for row in GRIDS["modalities"].rows]
    assert distilled[:4] == [set(), {"hr.image"}, {"hr.text"}, {"hr.image", "hr.text"}]
    assert distilled[4:] == [{"hr.fusion"}, {"hr.decoder"}, {*HR}]
    maps = [
        {t.removeprefix("at.").removeprefix("decoder_") for t in terms(row) - {*VLP}} for row in GRIDS["attention"].rows
    ]
    assert maps == [set(), {"self"}, {"cross"}, {"self", "cross"}]
    for some, group in (("modalities", HR), ("attention", AT)):
        totals = {
            sum(weight for term, weight in weights(row.weights).items() if term in group) for row in GRIDS[some].rows
        }
        assert totals == {0, 20}  # whatever the number of sources
    losses = [terms(row) for row in GRIDS["objectives"].rows]
    assert losses[:5] == [{*VLP}, {*VLP, *AT}, {*VLP, *HR}, {*VLP, *HR}, {*AT, *HR}]
    assert losses[5:] == [
        {*VLP, *AT, *HR, *kd} for kd in ((), *((f"kd.{task}",) for task in VLP_ORDER), {*KD} - {"kd.itm"})
    ]
    assert [row.trained for row in GRIDS["init"].rows] == [(), ("image",), ("language",), ("image", "language")]
    others = {row.trained for some in GRIDS.values() for row in some.rows if some.name not in ("init", "sizes")}
    assert others == {("image",)}


def test_encoders_have_the_size_of_their_students():
    for some in GRIDS.values():
        for row in some.rows:
            config = preset(row.size)
            for part, name in filter(all, map(parse_source, row.init_from)):
                stock = read_json(locate(name) / "config.json")
                assert stock["model_type"] == {"image": "vit", "language": "bert"}[part]
                side = {"image": "image", "language": "text"}[part]
                sizes = getattr(config, f"{side}_width"), getattr(config, f"{side}_layers")
                assert sizes == (stock["hidden_size"], stock["num_hidden_layers"])


def test_hr_as_in_the_paper_is_a_row_beside_ours():
    ours, paper = (rows("objectives")[name].train(FULL, 0) for name in ("VLP+HR", "VLP+HR as in the paper"))
    assert (ours.center_states, ours.learn_teacher_projection) == (True, False)
    assert (paper.center_states, paper.learn_teacher_projection) == (False, True)
    assert sum(paper.weights[term] for term in HR) == 1 and sum(ours.weights[term] for term in HR) == 20
    same = paper.replace(center_states=True, learn_teacher_projection=False, weights=ours.weights)
    assert same == ours


def test_no_row_has_itm():
    assert not any("itm" in term for some in GRIDS.values() for row in some.rows for term in weights(row.weights))


def test_grids_beyond_the_paper():
    sizes = [preset(row.size) for row in GRIDS["sizes"].rows]
    assert len({c.image_width for c in sizes}) == 6 and len({c.text_layers for c in sizes}) == 4
    counts = {(row.images, row.role): row.split for row in GRIDS["data"].rows}
    assert len(counts) == 2 * len(DATA_IMAGES) and set(counts.values()) == {"train-small"}


def test_rows_train_by_the_plan(monkeypatch):
    config = Row("a", weights=DISTILLED).train(FULL, 7)
    assert (config.seed, config.steps, config.cache, config.weights) == (7, FULL.train.steps, True, weights(DISTILLED))
    assert config.start_term_at == {} and config.questions == 3
    assert not Row("a", weights=TASK).train(FULL, 0).cache and not Row("a", weights=DISTILLED).train(QUICK, 0).cache
    assert not Row("a", weights=DISTILLED, images=200_000).train(FULL, 0).cache
    monkeypatch.setitem(LEARNING_RATES, (80, 4, 80, 2), 1e-3)
    assert [Row("a", size).train(FULL, 0).lr for size in ("scenes-student", student_size(IMAGE["tiny"]))] == [
        1e-3,
        3e-3,
    ]


def test_shipped_encoders_are_those_of_their_checksums_and_of_every_size():
    folder = BUILT_IN / "scenes" / "encoders"
    checksums = read_json(folder / "checksums.json")
    assert {str(file.parent.relative_to(folder)) for file in folder.glob("*/*/model.safetensors")} == checksums.keys()
    for name, checksum in checksums.items():
        assert hashlib.sha256((folder / name / "model.safetensors").read_bytes()).hexdigest() == checksum, name
    used = {source for one in GRIDS.values() for row in one.rows for _, source in map(parse_source, row.init_from)}
    assert {source.removeprefix("scenes/encoders/") for source in used - {TEACHER}} == checksums.keys()
