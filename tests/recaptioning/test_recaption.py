"""A data set with written captions: which it gets, what it keeps, and how a killed command continues."""

import json

import pytest
from PIL import Image

from dlip import data
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.data.check import check
from dlip.recaptioning import recaption as module
from dlip.recaptioning.config import SelectionConfig, WritingConfig
from dlip.recaptioning.recaption import JOURNAL, recaption
from dlip.recaptioning.writers import BlipWriter
from dlip.vlm import VLM
from tests.recaptioning.helpers import git

NAMES = [f"{i}.png" for i in range(5)]


@pytest.fixture(scope="module")
def writer(tiny, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("models") / "writer"
    tiny.save(folder)
    return str(folder)


@pytest.fixture
def source(tmp_path, scenes):
    """Five images to write for, the last one without a caption, and one of val with a question."""
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    for i, name in enumerate([*NAMES, "val.png"]):
        Image.fromarray(scenes[i].image).save(folder / "images" / name)
    captions = [[f"shape {i}", f"thing {i}"] for i in range(4)] + [[]]
    rows = [{"filename": name, "split": "train", "sentences": [{"raw": text} for text in texts]}
            for name, texts in zip(NAMES, captions, strict=True)]  # fmt: skip
    rows.append({"filename": "val.png", "split": "val", "sentences": [{"raw": "a scene"}]})
    (folder / "captions.json").write_text(json.dumps({"images": rows}))
    questions = [{"image": "val.png", "question": "what?", "answers": ["a star"], "split": "val"}]
    (folder / "vqa.json").write_text(json.dumps(questions))
    return folder


def writing(writer: str, **changes) -> WritingConfig:
    return WritingConfig(**{"writer": writer, "batch_size": 2, "max_tokens": 5, "top_p": 0.99, **changes})


def make(source, out, config, splits=("train",), **selection) -> dict:
    return recaption(str(source), out, splits, config, SelectionConfig(**selection))


def journal_of(out) -> tuple[list[list[str]], list[list[float]]]:
    rows = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()[1:]]
    return [texts for row in rows for texts in row["captions"]], [s for row in rows for s in row["scores"] or ()]


def written_of(out, split="train") -> list[list[str]]:
    return [[text for text in item.captions if text in item.writers] for item in data.open(out, split)]


def test_a_data_set_like_any_other(source, writer, tmp_path):
    out = tmp_path / "out"
    result = make(source, out, writing(writer))
    texts, _ = journal_of(out)
    unique = [list(dict.fromkeys(text for text in own if text)) for own in texts]
    assert written_of(out) == unique and [len(own) for own in texts] == [3] * 5
    count = sum(map(len, unique))
    assert result["splits"] == {"train": {"images": 5, "human": 8, "written": count, "dropped": 15 - count}}

    train, val = data.open(out, "train"), data.open(out, "val")
    assert [about.name for about in train.annotations] == NAMES and train[0].captions[:2] == ["shape 0", "thing 0"]
    assert {name for item in train for name in item.writers.values()} == {writer}
    assert val[0].captions == ["a scene"] and val[0].questions[0].answers == ["a star"] and val[0].writers == {}
    assert val.without_image(0) == data.open(source, "val").without_image(0)  # the image id too
    assert check(str(out))["ok"]


@pytest.mark.parametrize("score", ["itm", "itc"])
def test_the_filter_keeps_what_the_teacher_scores_highest(source, writer, tmp_path, make_vlm, score):
    teacher = make_vlm(3)
    teacher.save(tmp_path / "teacher")
    config = writing(writer, captions=4, filter=str(tmp_path / "teacher"), score=score)
    make(source, tmp_path / "out", config, keep=2)
    texts, values = journal_of(tmp_path / "out")
    images = [source / "images" / name for name in NAMES]
    for image, own, kept, recorded in zip(images, texts, written_of(tmp_path / "out"), values, strict=True):
        scores = teacher.match([image] * 4, own) if score == "itm" else teacher.similarity([image], own)[0]
        assert recorded == pytest.approx(scores.tolist(), abs=1e-5)
        by_text = {text: value for text, value in zip(own, scores.tolist(), strict=True) if text}
        assert kept == sorted(by_text, key=lambda text: -by_text[text])[:2]

    threshold = sorted(value for own in values for value in own)[10]
    result = make(source, tmp_path / "out", config, threshold=threshold)
    passed = [{t for t, v in zip(*own, strict=True) if v >= threshold and t} for own in zip(texts, values, strict=True)]
    kept = [set(own) for own in written_of(tmp_path / "out")]
    assert kept == passed[:4] + [own for own in passed[4:] if own]  # the last image has no other caption
    assert 0 < result["splits"]["train"]["written"] == sum(map(len, passed)) < 20


def test_a_killed_command_continues_to_the_same_result(source, writer, tmp_path, monkeypatch):
    config = writing(writer, filter=writer)
    make(source, tmp_path / "whole", config, keep=2)
    write, calls = BlipWriter.write, []

    def killed_at_the_third(self, images, config):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(self, images, config)

    monkeypatch.setattr(BlipWriter, "write", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "killed", config, keep=2)
    with open(tmp_path / "killed" / JOURNAL, "ab") as file:
        file.write(b'{"split": "train", "fir')
    assert not (tmp_path / "killed" / "captions.json").exists()
    make(source, tmp_path / "killed", config, keep=2)
    assert calls == [2, 2, 1, 1]  # images of each batch: nothing is written twice
    for name in (JOURNAL, "captions.json", "vqa.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_selection_writes_nothing_again(source, writer, tmp_path, monkeypatch):
    out, config = tmp_path / "out", writing(writer, captions=6, filter=writer)
    make(source, out, config, keep=3)
    monkeypatch.setattr(module, "open_writer", None)
    all_written = written_of(out)
    make(source, out, config, keep=3, human=0.25)
    items = list(data.open(out, "train"))
    assert [len(item.captions) - len(item.writers) for item in items] == [1, 1, 1, 1, 0]
    assert written_of(out) == all_written
    make(source, out, config, keep=1, human=0.5)
    assert written_of(out) == [own[:1] for own in all_written]
    assert [item.captions[0] for item in data.open(out, "train")][:4] == [f"shape {i}" for i in range(4)]
    make(source, out, config, keep=1, human=0)
    assert [item.captions for item in data.open(out, "train")] == [own[:1] for own in all_written]
    make(source, out, config, keep=1, human=1)
    assert [item.captions for item in data.open(out, "train")] == [[f"shape {i}", f"thing {i}"] for i in range(4)]
    with pytest.raises(UserError, match="no caption of the split train is left"):
        make(source, out, config, threshold=2, human=0)


def test_a_folder_of_photographs_alone(source, writer, tmp_path):
    for name in ("captions.json", "vqa.json"):
        (source / name).unlink()
    make(source, tmp_path / "out", writing(writer))
    assert data.splits(tmp_path / "out") == ["train"] and len(data.open(tmp_path / "out", "train")) == 6
    make(source / "images", tmp_path / "same", writing(writer))
    assert (tmp_path / "same" / "captions.json").read_bytes() == (tmp_path / "out" / "captions.json").read_bytes()


def test_a_stock_model_writes_by_the_command(source, tmp_path, capsys):
    git(tmp_path / "git")
    words = ["--writer", str(tmp_path / "git"), "--captions", "4", "--beams", "4", "--max-tokens", "4"]
    for batch in ("2", "3"):
        out = str(tmp_path / batch)
        assert main(["data", "recaption", str(source), "--out", out, *words, "--batch-size", batch]) == 0
    assert capsys.readouterr().out.startswith("train        5 images with 8 human and ")
    assert written_of(tmp_path / "2") == written_of(tmp_path / "3")
    assert all(own for own in written_of(tmp_path / "2"))


def test_mistakes_are_one_line_and_nothing_is_lost(source, writer, tmp_path, capsys):
    out, teacher = str(tmp_path / "out"), tmp_path / "teacher"
    VLM.load(writer).save(teacher)
    abilities = json.loads((teacher / "config.json").read_text()) | {"abilities": ["itc", "lm"]}
    (teacher / "config.json").write_text(json.dumps(abilities))

    def refused(*words: str, to: str = out, name: str = str(source)) -> str:
        before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
        assert main(["data", "recaption", name, "--out", to, *words]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("dlip: ")
        assert all(path.read_bytes() == content for path, content in before)
        return printed.err.splitlines()[-1]

    good = ["--writer", writer, "--max-tokens", "5"]
    assert "there is no model 'nowhere'" in refused("--writer", "nowhere")
    assert "there is no folder nowhere" in refused(*good, name="nowhere")
    assert "no split 'test'; name one of train, val with --splits" in refused(*good, "--splits", "train,test")
    assert "--keep needs scores" in refused(*good, "--keep", "2")
    assert "filters nothing" in refused(*good, "--filter", writer)
    assert "--beams 2 cannot give 3 captions" in refused(*good, "--beams", "2")
    assert "--human is 1.5" in refused(*good, "--human", "1.5")
    assert "holds other files" in refused(*good, to=str(source))
    assert "gives no ITM score; add --score itc" in refused(*good, "--filter", str(teacher), "--keep", "1")
    assert main(["data", "recaption", str(source), "--out", out, *good, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["train"]["images"] == 5
    assert "written with --captions 3, not with --captions 2; name another folder" in refused(*good, "--captions", "2")
    Image.new("RGB", (9, 9)).save(source / "images" / "0.png")
    assert "the data have changed" in refused(*good)


def test_other_splits_may_have_no_captions(source, writer, tmp_path):
    rows = json.loads((source / "captions.json").read_text())
    rows["images"][-1]["sentences"] = []
    (source / "captions.json").write_text(json.dumps(rows))
    (source / "vqa.json").unlink()
    assert make(source, tmp_path / "out", writing(writer))["splits"]["train"]["images"] == 5


def test_moved_images_are_found_again(source, writer, tmp_path):
    make(source, tmp_path / "out", writing(writer))
    moved = source.rename(tmp_path / "moved")
    make(moved, tmp_path / "out", writing(writer))
    assert data.open(tmp_path / "out", "train")[0].image.size == (64, 64)
