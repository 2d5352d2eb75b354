"""Exports give the same results in stock transformers, in a process that cannot import this package."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoProcessor

import dlip
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.common.files import read_json, write_json
from dlip.data.tokenizer import Tokenizer
from dlip.experiments.run import new_model
from dlip.export import transformers
from dlip.export.transformers import to_stock
from dlip.models.config import scenes_size
from dlip.records.schema import is_record
from dlip.training.config import TrainConfig
from dlip.training.weights import weights
from dlip.vlm import VLM
from tests.helpers import make_record, shaken

READER = r"""
import json, sys
sys.modules["dlip"] = None  # importing it fails from here on
from PIL import Image
from transformers import (AutoProcessor, BlipForConditionalGeneration, BlipForImageTextRetrieval,
                          BlipForQuestionAnswering, pipeline)
folder, paths, texts, prompt, cls = sys.argv[1], *map(json.loads, sys.argv[2:])
images = [Image.open(path).convert("RGB") for path in paths]
outputs = {}

def load(task, of):
    saved = f"{folder}/{task}"
    return AutoProcessor.from_pretrained(saved, backend="pil"), of.from_pretrained(saved).eval()

processor, model = load("retrieval", BlipForImageTextRetrieval)
inputs = processor(images=images, text=texts, padding=True, return_tensors="pt")
outputs["pixels"] = inputs.pixel_values.tolist()
outputs["match"] = model(**inputs).itm_score.softmax(-1)[:, 1].tolist()
inputs.input_ids[:, 0] = cls
outputs["itc"] = model(**inputs, use_itm_head=False).itm_score.tolist()

processor, model = load("captioning", BlipForConditionalGeneration)
options = {"text": [prompt] * len(images)} if prompt else {}
inputs = processor(images=images, return_tensors="pt", **options)
ids = model.generate(**inputs, generation_config=model.generation_config)
outputs["captioning"] = processor.batch_decode(ids, skip_special_tokens=True)
pipe = pipeline("image-text-to-text", model=f"{folder}/captioning")
own = model.generation_config
options = dict(num_beams=3, max_new_tokens=own.max_new_tokens, no_repeat_ngram_size=own.no_repeat_ngram_size)
outputs["pipeline"] = [pipe(image, text=prompt, generate_kwargs=options)
                     [0]["generated_text"] for image in images]

processor, model = load("vqa", BlipForQuestionAnswering)
inputs = [processor(images=image, text=text, return_tensors="pt") for image, text in zip(images, texts)]
ids = [model.generate(**one, generation_config=model.generation_config)[0] for one in inputs]
outputs["vqa"] = processor.batch_decode(ids, skip_special_tokens=True)
json.dump(outputs, open(f"{folder}/outputs.json", "w"))
"""


def elsewhere(folder, paths, texts, prompt, cls) -> dict:
    """Results of the reader, offline, in another folder and without this package."""
    arguments = [str(folder), *map(json.dumps, ([str(path) for path in paths], texts, prompt, cls))]
    done = subprocess.run(
        [sys.executable, "-c", READER, *arguments], cwd=folder, capture_output=True, text=True, timeout=300,
        env={"HF_HUB_OFFLINE": "1", "HOME": str(folder), "OMP_NUM_THREADS": "1", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "outputs.json").read_text())


def untrained(tokenizer, **changes) -> VLM:
    vlm = new_model(scenes_size(32, 2, 2, **changes), tokenizer, 0)
    torch.manual_seed(2)
    shaken(vlm.med, 0.2)  # far from their initialization, so that scores differ
    return vlm


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(torch.randint(256, (30 + 20 * i, 60, 3), dtype=torch.uint8).numpy()).save(path)
    return paths


TEXTS = ["a red circle", "a small blue star above it", "what color is it ?"]
RECORD = make_record("tiny", command="dlip distill --out runs/tiny", seed=3) | {
    "efficiency": {"params_m": 0.12, "flops_g": 0.034},
    "config": {"teacher": "scenes/teacher", "start": [], "data": {"name": "scenes", "split": "train"},
               "train": {"steps": 100, "batch_size": 8, "seed": 3, "weights": {"itc": 1.0, "kd.lm": 0.5, "vqa": 0}}},
    "metrics": {"retrieval": {"tr@1": 75.81, "ir@1": 54.3}, "captioning": {"cider": 315.0, "spice": None}, "vqa": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tiny, images, tmp_path_factory):
    """A model whose texts start with [ENC] and captions with a prompt, exported, and the reader's results."""
    folder = tmp_path_factory.mktemp("export")
    prompt = tuple(tiny.tokenizer.encode(["a red"])[0][0, 1:-1].tolist())
    vlm = untrained(
        tiny.tokenizer, enc_id=6, prompt_ids=prompt, image_mean=(0.4, 0.5, 0.6), no_repeat_ngram_size=1
    )  # fmt: skip
    vlm.save(folder / "run")
    (folder / "run" / "record.json").write_text(json.dumps(RECORD))
    assert main(["export", str(folder / "run"), "--to", "transformers", "--out", str(folder / "out")]) == 0
    outputs = elsewhere(folder / "out", images, TEXTS, "a red", tiny.tokenizer.cls_id)
    return VLM.load(folder / "run"), images, TEXTS, outputs, folder


def test_pixels_are_equal(made):
    vlm, paths, _, outputs, _ = made
    expected = vlm.pixels(paths, vlm.med)
    torch.testing.assert_close(torch.tensor(outputs["pixels"]), expected, atol=1e-5, rtol=0)


def test_scores_are_equal(made):
    vlm, paths, texts, outputs, _ = made
    torch.testing.assert_close(torch.tensor(outputs["match"]), vlm.match(paths, texts), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(outputs["itc"]), vlm.similarity(paths, texts), atol=1e-4, rtol=0)


def test_captions_and_answers_are_equal(made):
    vlm, paths, texts, outputs, _ = made
    # without spaces: a random model may write a piece of a word or a question mark right after the prompt "a red"
    captions = [f"ared{caption}".replace(" ", "").replace("##", "") for caption in vlm.caption(paths)]
    assert len(set(captions)) > 1
    for written in (outputs["captioning"], outputs["pipeline"]):
        assert [text.replace(" ", "") for text in written] == captions
    assert outputs["vqa"] == [vlm.answer([path], [text])[0] for path, text in zip(paths, texts, strict=True)]


def test_apostrophes_are_decoded_as_by_the_model(tiny, tmp_path):
    texts = ["a man's dog doesn't bark.", "can't tell, i don't know"]
    tokenizer = Tokenizer.train(texts, 100)
    ids = tokenizer.encode(texts)[0]
    transformers.processor(tokenizer, tiny.med.config, "captioning").save_pretrained(tmp_path)
    stock = AutoProcessor.from_pretrained(tmp_path, backend="pil")
    assert stock.batch_decode(ids, skip_special_tokens=True) == tokenizer.decode(ids) == texts


def test_distilling_stock_checkpoints_into_stock_classes(tiny, images, scenes, tmp_path):
    """Two teachers in Hugging Face's layout in, a distilled student out, read without this package."""
    untrained_model = untrained(tiny.tokenizer)
    for task in ("retrieval", "captioning"):
        to_stock(untrained_model.med, task).save_pretrained(tmp_path / task)
        tiny.tokenizer.save(tmp_path / task)
    terms = weights("vlp,hr.image,hr.fusion,at.decoder_cross,kd.lm")
    config = TrainConfig(steps=3, batch_size=4, warmup=1, lr=1e-2, weights=terms)
    teacher, size = f"{tmp_path / 'retrieval'}+{tmp_path / 'captioning'}", "scenes-student:image_width=32,text_width=32"
    run = dlip.distill(teacher, size, scenes, folder=tmp_path / "run", **config.to_dict())
    transformers.to_transformers(str(tmp_path / "run"), tmp_path / "out")
    student, outputs = run.student, elsewhere(tmp_path / "out", images, TEXTS, "", tiny.tokenizer.cls_id)
    torch.testing.assert_close(torch.tensor(outputs["match"]), student.match(images, TEXTS), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(outputs["itc"]), student.similarity(images, TEXTS), atol=1e-4, rtol=0)
    assert outputs["captioning"] == student.caption(images)
    card = (tmp_path / "out" / "captioning" / "README.md").read_text()
    assert "| steps | 3 of 4 images |" in card and "kd.lm x 1" in card


@pytest.mark.parametrize("task", ["retrieval", "captioning"])
def test_an_export_is_read_back(task, made):
    vlm, paths, _, _, folder = made
    again = VLM.load(folder / "out" / task)
    for name in ("image_mean", "image_std", "image_size", "max_positions", "dec_id", "sep_id"):
        assert getattr(again.med.config, name) == getattr(vlm.med.config, name), name
    torch.testing.assert_close(again.image_states(paths), vlm.image_states(paths))
    if task == "retrieval":
        torch.testing.assert_close(again.match(paths, TEXTS), vlm.match(paths, TEXTS))
    else:
        assert again.captions(paths, 1, prompt="a red") == vlm.captions(paths, 1)


def test_an_export_at_another_image_size_claims_no_scores(tmp_path):
    folder = transformers.to_dlip("scenes/student-undistilled@48", tmp_path)[0]["fp32"]
    text = (folder / "README.md").read_text()
    assert "## Training" in text and "## Results" not in text and "## Cost" not in text
    record = read_json(folder / "record.json")
    assert is_record(record) and record["role"] == "undistilled" and record["name"].endswith(", 48 px")
    assert VLM.load(folder).image_size == 48


def test_card_has_the_facts_of_the_record(made):
    text = (made[4] / "out" / "captioning" / "README.md").read_text()
    results = {result.metric_type: result.metric_value for result in ModelCard(text).data.eval_results}
    assert results["cider"] == 315.0
    for line in (
        "a student distilled from a heavier teacher", "| teacher | scenes/teacher |", "| TR@1 | 75.8% |",
        "| CIDEr | 315.0 |", "scenes train, 4,000 images",
        "| losses | itc x 1, kd.lm x 0.5 |",
        "100 of 8 images", "`dlip distill --out runs/tiny`", "0.12M parameters", 'text="a red"', "64 x 64 px",
    ):  # fmt: skip
        assert line in text, line
    assert "SPICE" not in text and "VQA soft" not in text and "| seed | 3 |" in text
    assert "[CLS]" in (made[4] / "out" / "retrieval" / "README.md").read_text()


def test_a_damaged_record_is_named(tiny, tmp_path):
    tiny.save(tmp_path / "run")
    write_json(tmp_path / "run" / "record.json", {"schema": 3, "name": "tiny"})
    with pytest.raises(UserError, match="record.json is not a record of a run"):
        transformers.to_dlip(str(tmp_path / "run"), tmp_path / "out")


def test_model_without_a_record_has_a_card(tiny, tmp_path):
    untrained(tiny.tokenizer).save(tmp_path / "plain")
    folders, skipped = transformers.to_transformers(str(tmp_path / "plain"), tmp_path / "out")
    text = (folders["vqa"] / "README.md").read_text()
    assert set(folders) == {"retrieval", "captioning", "vqa"} and not skipped
    assert "How to use it" in text and "## Results" not in text and "## Training" not in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["captioning", "retrieval", "vqa"]


def test_unsupported_tasks_are_skipped_and_reported(tiny, tmp_path, capsys):
    untrained(tiny.tokenizer, text_width=48).save(tmp_path / "unequal")
    assert (
        main(["export", str(tmp_path / "unequal"), "--to", "transformers", "--out", str(tmp_path / "a"), "--json", "-"])
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert set(report["folders"]) == {"retrieval", "captioning"} and "equal widths" in report["skipped"]["vqa"]
    tiny.save(tmp_path / "sparse")  # lacks cross-attention in a layer
    with pytest.raises(UserError, match="does not support.*cross-attention in every text layer"):
        transformers.to_transformers(str(tmp_path / "sparse"), tmp_path / "b")
    compares = untrained(tiny.tokenizer)
    compares.med.abilities = frozenset({"itc"})
    compares.save(tmp_path / "compares")
    with pytest.raises(UserError, match="not trained for ITM, LM or VQA.*--to vit"):
        transformers.to_transformers(str(tmp_path / "compares"), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_folders_are_written_whole_or_not_at_all(tiny, tmp_path):
    def half(folder):
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    def writer(text):
        def write(folder):
            for name in ("config.json", "README.md"):
                (folder / name).write_text(text)

        return write

    with pytest.raises(KeyboardInterrupt):
        transformers.replace_folder(tmp_path / "x" / "captioning", half)
    assert list((tmp_path / "x").iterdir()) == []
    transformers.replace_folder(tmp_path / "x" / "captioning", writer("1"))
    with pytest.raises(KeyboardInterrupt):
        transformers.replace_folder(tmp_path / "x" / "captioning", half)
    assert (tmp_path / "x" / "captioning" / "README.md").read_text() == "1"
    transformers.replace_folder(tmp_path / "x" / "captioning", writer("2"))
    assert (tmp_path / "x" / "captioning" / "README.md").read_text() == "2"
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["captioning"]

    def taken(folder):  # the final rename fails
        writer("3")(folder)
        shutil.rmtree(folder)

    with pytest.raises(FileNotFoundError):
        transformers.replace_folder(tmp_path / "x" / "captioning", taken)
    assert (tmp_path / "x" / "captioning" / "README.md").read_text() == "2"
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["captioning"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all my work")
    with pytest.raises(UserError, match="is not an export"):
        transformers.replace_folder(tmp_path / "mine", writer("3"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all my work"


def test_push(tiny, tmp_path, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, name, exist_ok):
            if name.startswith("forbidden/"):
                raise OSError("403 Forbidden\nlong story")
            calls.append(name)

        def upload_folder(self, repo_id, folder_path, commit_message, delete_patterns):
            assert "model*" in delete_patterns  # an earlier upload's shards would be read in place of these weights
            calls.append((repo_id, read_json_of(folder_path)["model_type"]))

    def read_json_of(folder):
        return read_json(type(tmp_path)(folder) / "config.json")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    untrained(tiny.tokenizer).save(tmp_path / "run")
    options = ["export", str(tmp_path / "run"), "--to", "transformers", "--out", str(tmp_path / "out"), "--push"]
    assert main([*options, "me/student"]) == 0
    names = [f"me/student-{task}" for task in ("retrieval", "captioning", "vqa")]
    assert calls == [call for name in names for call in (name, (name, "blip"))]
    assert main([*options, "forbidden/student"]) == 2
    assert "the upload to forbidden/student-retrieval failed (403 Forbidden)" in capsys.readouterr().err
