"""The models that ship: they load, are as small as promised, and say how they were made."""

import pytest

import dlip
from dlip import records
from dlip.checkpoints.load import BUILT_IN, built_in_models
from dlip.cli import parser
from dlip.common.files import read_json
from dlip.cost.count import summary
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.tasks import captioning
from dlip.models.config import ModelConfig
from tests.helpers import ROOT

MORE = ("student-mid", "student-undistilled-4k", "student-40k", "student-undistilled-40k")
NAMES = ("scenes/student", "scenes/student-undistilled", "scenes/teacher")


def test_exactly_these_ship_and_are_light():
    assert tuple(built_in_models()) == NAMES
    files = [path for path in BUILT_IN.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 15e6
    assert sum(path.stat().st_size for path in files) < 40e6


@pytest.mark.parametrize("name", NAMES)
def test_each_says_how_it_was_made(name):
    record = read_json(BUILT_IN / name / "record.json")
    words = record["command"].split()
    assert words[0] == "dlip" and parser().parse_args(words[1:])  # the command is one that can be given
    made, kept = record["config"]["model"], read_json(BUILT_IN / name / "config.json")["model"]
    assert ModelConfig.from_dict(made) == ModelConfig.from_dict(kept)
    assert record["metrics"]["retrieval"]["tr@1"] > 0 and record["split"] == "test"


@pytest.mark.parametrize("name", NAMES)
def test_each_does_better_than_chance(name):
    model, scenes = dlip.load(name), Scenes("val", size=20)
    items = [scenes[i] for i in range(20)]
    images, texts = [item.image for item in items], [item.captions[0] for item in items]
    best = model.similarity(images, texts).argmax(1)
    assert (best == best.new_tensor(range(20))).float().mean() > 0.3
    said = captioning.facts(model.caption(images), [scenes.scene(i) for i in range(20)])
    assert said["objects"] > 85  # 95 to 100 of the three; captions of other scenes have 0 to 9
    assert len(model.answer(images, [item.questions[0].text for item in items])) == 20


def test_the_student_is_as_small_as_the_papers():
    """22.4% of the parameters and 24.8% of the FLOPs: DLIP, section 1."""
    teacher, student = (summary(dlip.load(name).med) for name in ("scenes/teacher", "scenes/student"))
    assert student["params_m"] <= 0.224 * teacher["params_m"]
    assert student["flops_g"] <= 0.248 * teacher["flops_g"]


TABLES = {
    "playground": {**{name.partition("/")[2]: name for name in NAMES}, **dict.fromkeys(MORE)},
    "photos": dict.fromkeys(("photos-teacher", "photos-student-undistilled", "photos-student")),
}
"""File of results -> the names of its records that README's tables show; built-in models under their own."""


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in TABLES.items() for name in names])
def test_the_readmes_tables_are_the_records(file, name):
    """Mean and standard deviation over seeds; the shipped models are among them."""
    found = records.load(ROOT / "results" / f"{file}.jsonl")
    row, shown = records.summary(found).set_index("name").loc[name], TABLES[file][name]
    if shown:
        assert read_json(BUILT_IN / shown / "record.json")["id"] in set(records.latest_runs(found)["id"])
    cells = [f"`{shown or name}`", f"{row['train_images']:,}"]
    cells += [f"{row['params_m']:.2f}M", f"{row['flops_g']:.3f}G", f"{row['runs']}"]
    for score in ("tr1", "ir1", "cider", "vqa"):
        cells.append(f"{row[score]:.1f}" + (f" ±{row[f'{score}_sd']:.1f}" if row["runs"] > 1 else ""))
    assert f"| {' | '.join(cells)} |" in (ROOT / "README.md").read_text()


def test_what_the_readme_says_of_retrieval_among_5000_is_in_the_records():
    rows = records.summary(records.load(ROOT / "results" / "playground-5k.jsonl")).set_index("name")
    said = " ".join((ROOT / "README.md").read_text().split())
    shown = {name: rows.loc[name] for name in ("student", "student-undistilled", "teacher")}
    assert [(row["runs"], row["test_images"]) for row in shown.values()] == [(3, 5000), (3, 5000), (1, 5000)]
    taught, alone = (
        " and ".join(f"{row[score]:.1f} ±{row[f'{score}_sd']:.1f}" for score in ("tr1", "ir1"))
        for row in (shown["student"], shown["student-undistilled"])
    )
    teacher = " and ".join(f"{shown['teacher'][score]:.1f}" for score in ("tr1", "ir1"))
    assert f"are {taught} for the distilled one, {alone} for the undistilled one (3 seeds each), {teacher}" in said


def test_what_the_readme_says_of_the_distilled_student_is_in_the_records():
    """What it keeps of its teacher, and by how much it passes the student that learned alone."""
    rows = records.summary(records.load(ROOT / "results" / "playground.jsonl")).set_index("name")
    said = " ".join((ROOT / "README.md").read_text().split())
    teacher, taught, alone = (rows.loc[name] for name in ("teacher", "student", "student-undistilled"))
    costs, scores = ("params_m", "flops_g"), ("tr1", "ir1", "cider", "vqa")
    kept = {name: 100 * taught[name] / teacher[name] for name in costs + scores}
    assert f"With {kept['params_m']:.1f}% of the teacher's parameters and {kept['flops_g']:.1f}% of its FLOPs" in said
    assert kept["tr1"] >= 100 and kept["ir1"] >= 100
    assert f"keeps all of TR@1 and IR@1, {kept['cider']:.1f}% of CIDEr and {kept['vqa']:.1f}% of VQA" in said
    more = {score: f"{taught[score] - alone[score]:.1f}" for score in ("ir1", "cider", "vqa")}
    assert f"It has {more['ir1']} more in IR@1, {more['cider']} in CIDEr and {more['vqa']} in VQA" in said
