"""The shipped models: size, records, scores above chance; tables of README and docs equal their records."""

import re

import pytest

import dlip
from dlip import records
from dlip.checkpoints.load import BUILT_IN, built_in_models
from dlip.cli import parse
from dlip.common.files import read_json
from dlip.cost.count import summary
from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.facts import count_facts
from dlip.evaluation.tasks import captioning
from dlip.models.config import ModelConfig
from dlip.records import TABLE_SCORES, upgrade
from tests.helpers import ROOT

NAMES = ("scenes/student", "scenes/student-undistilled", "scenes/teacher")
PHOTO_NAMES = ("photos/student", "photos/student-undistilled", "photos/teacher")


def test_shipped_models_are_small():
    assert tuple(built_in_models()) == PHOTO_NAMES + NAMES
    files = [path for path in BUILT_IN.rglob("*") if path.is_file() and not path.is_symlink()]
    assert max(path.stat().st_size for path in files) < 40e6
    assert sum(path.stat().st_size for path in files) < 90e6


@pytest.mark.parametrize("name", PHOTO_NAMES + NAMES)
def test_record_has_command_and_configuration(name):
    record = upgrade(read_json(BUILT_IN / name / "record.json"))
    words = record["command"].split()
    assert words[0] == "dlip" and parse(words[1:])  # the command still parses
    recorded, stored = record["config"]["model"], read_json(BUILT_IN / name / "config.json")["model"]
    assert ModelConfig.from_dict(recorded) == ModelConfig.from_dict(stored)
    assert record["metrics"]["retrieval"]["tr@1"] > 0
    assert record["split"] == ("test" if name in NAMES else "val")


@pytest.mark.parametrize("name", NAMES)
def test_model_beats_chance(name):
    model, scenes = dlip.load(name), Scenes("val", size=20)
    items = [scenes[i] for i in range(20)]
    images, texts = [item.image for item in items], [item.captions[0] for item in items]
    best = model.similarity(images, texts).argmax(1)
    assert (best == best.new_tensor(range(20))).float().mean() > 0.3
    counts = sum(map(count_facts, model.caption(images), (scenes.scene(i) for i in range(20))))
    precision = captioning.facts(counts)["facts"]["object"]["precision"]
    assert precision > 85  # 95 to 100 for the shipped models, 0 to 9 for captions of other scenes
    asked = [(item.image, q.text, q.answers[0]) for item in items for q in item.questions]
    answers = model.answer([image for image, *_ in asked], [question for _, question, _ in asked])
    right = sum(answer == truth for answer, (*_, truth) in zip(answers, asked, strict=True))
    assert right > 0.9 * len(asked)  # 97 to 99%; a blind baseline has 30%


@pytest.mark.parametrize("name", ["photos/teacher", "photos/student"])
def test_photo_models_know_what_they_see(name):
    """Photographs of an installed package, which they never saw."""
    from app.images import GRADIO_PHOTOGRAPHS

    model = dlip.load(name)
    images = [GRADIO_PHOTOGRAPHS / name for name in ("lion.jpg", "tower.jpg")]
    texts = ["a lion rests on a rock", "a tall tower with lights"]
    similarity = model.similarity(images, texts)
    assert similarity.trace() > similarity.fliplr().trace() + 0.2  # two random texts: 0 on average


def test_student_is_as_small_as_the_paper_s():
    """22.4% of the parameters and 24.8% of the FLOPs: DLIP, section 1."""
    teacher, student = (summary(dlip.load(name).med) for name in ("scenes/teacher", "scenes/student"))
    assert student["params_m"] <= 0.224 * teacher["params_m"]
    assert student["flops_g"] <= 0.248 * teacher["flops_g"]


TABLES = {
    "playground-5k": ({name.partition("/")[2]: name for name in NAMES}, TABLE_SCORES),
    "photos": ({name.partition("/")[2]: name for name in PHOTO_NAMES}, ("tr1", "ir1", "cider", "vqa_mean")),
}
"""File of results -> record names in the tables of docs/results.md, built-in models under their own names; scores."""
RESULTS_PAGE = (ROOT / "docs" / "results.md").read_text()
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", PHOTO_NAMES + NAMES)
def test_cards_state_the_terms_of_the_data(name):
    terms = (BUILT_IN / name / "README.md").read_text().partition("## Terms")[2]
    sources = ("EfficientNet-Lite", "ImageNet", "MiniLM", "Flickr8k", "COCO") if name in PHOTO_NAMES else ("scenes",)
    assert all(source in terms for source in sources)


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, (names, _) in TABLES.items() for name in names])
def test_tables_equal_the_records(file, name):
    """Mean and standard deviation over seeds; the shipped models are among them."""
    found = records.load(ROOT / "results" / f"{file}.jsonl")
    names, scores = TABLES[file]
    row, shipped = records.summary(found).set_index("name").loc[name], names[name]
    cells = [f"`{shipped or name}`", f"{row['train_images']:,}"]
    cells += [f"{row['params_m']:.2f}M", f"{row['flops_g']:.3f}G", f"{row['runs']}"]
    cells += [_cell(row, score) for score in scores]
    line = f"| {' | '.join(cells)} |"
    assert line in RESULTS_PAGE
    if shipped:
        assert line in README
        own = records.load(ROOT / "results" / f"{file.removesuffix('-5k')}.jsonl")
        assert read_json(BUILT_IN / shipped / "record.json")["id"] in set(records.latest_runs(own)["id"])


def test_table_of_siglip_equals_its_records():
    rows = records.summary(records.load(ROOT / "results" / "siglip.jsonl")).set_index("name")
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    for name in ("alone", "from SigLIP"):
        cells = [_cell(rows.loc[name], score) for score in ("ir1", "tr1", "ir5")]
        assert f"| 4,000 | 3 | {' | '.join(cells)} |" in page


def test_table_of_written_captions_equals_its_records():
    rows = records.summary(records.load(ROOT / "results" / "written-captions.jsonl")).set_index("name")
    page = (ROOT / "docs" / "data.md").read_text()
    for mixture, captions in (("1", "5 human"), ("0", "3 written"), ("0.5", "3 human, 3 written")):
        for how in ("alone", "distilled"):
            row = rows.loc[f"human {mixture}, {how}"]
            cells = [_cell(row, score) for score in ("ir1", "tr1", "cider")]
            assert f"| {captions} | {how} | {row['runs']} | {' | '.join(cells)} |" in page


@pytest.mark.parametrize(
    ("file", "title"), [("photo-terms", "Which terms help retrieval"), ("photo-init", "Which initialization helps")]
)
def test_tables_of_students_of_photographs_equal_their_records(file, title):
    rows = records.summary(records.load(ROOT / "results" / f"{file}.jsonl")).set_index("name")
    section = RESULTS_PAGE.partition(f"### {title}")[2]
    for name, row in rows.iterrows():
        line = next(line for line in section.splitlines() if line.startswith(f"| {name} |"))
        scores = ("cider",) if name.startswith("caption-") else ("tr1", "ir1")
        assert line.endswith(f"| {' | '.join([str(row['runs']), *(_cell(row, score) for score in scores)])} |")


@pytest.mark.parametrize("name", ["student", "student-undistilled", "teacher"])
def test_retrieval_among_1000_images_and_5000_equals_the_records(name):
    row, small = (
        records.summary(records.load(ROOT / "results" / f"{file}.jsonl")).set_index("name").loc[name]
        for file in ("playground-5k", "playground")
    )
    assert (row["test_images"], small["test_images"]) == (5000, 1000)
    (line,) = re.findall(rf"^\| `scenes/{name}` ((?:\| \d+\.\d ){{6}})\|$", RESULTS_PAGE, re.MULTILINE)
    cells = line.strip("| ").split(" | ")
    assert (cells[:2], cells[-1]) == ([_cell(row, "ir1"), _cell(row, "tr1")], _cell(small, "ir1"))


def test_comparison_of_the_distilled_student_equals_the_records():
    """In percent of its teacher, and minus the student that learned alone."""
    rows = records.summary(records.load(ROOT / "results" / "playground-5k.jsonl")).set_index("name")
    teacher, distilled, undistilled = (rows.loc[name] for name in ("teacher", "student", "student-undistilled"))
    scores = [*TABLE_SCORES]
    kept = [f"{100 * distilled[name] / teacher[name]:.1f}" for name in ["params_m", "flops_g", *scores]]
    assert f"| in percent of the teacher | {' | '.join(kept)} |" in RESULTS_PAGE
    gained = [f"{distilled[score] - undistilled[score]:+.1f}" for score in scores]
    assert f"| minus `scenes/student-undistilled` | 0 | 0 | {' | '.join(gained)} |" in RESULTS_PAGE
    params, _, ir1, facts, vqa, *_ = kept
    (sentence,) = re.findall(r"The distilled student has [^|]*?% of its VQA", " ".join(README.split()))
    assert re.findall(r"[\d.]+(?=%)", sentence) == [params, ir1, facts, vqa]


def _cell(row, score: str) -> str:
    return f"{row[score]:.1f}" + (f" ±{row[f'{score}_sd']:.1f}" if row["runs"] > 1 else "")
