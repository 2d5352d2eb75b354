"""Model cards: what the hub reads in them, and folders that load from a hub's cache."""

import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

import dlip
from dlip.cli import main
from dlip.common.files import read_json, write_json
from dlip.data.scenes.dataset import Scenes
from dlip.experiments.run import new_model
from dlip.export.card import model_name
from dlip.export.transformers import to_dlip, to_transformers
from dlip.models.config import scenes_size
from dlip.training.config import TrainConfig
from dlip.vlm import VLM
from tests.helpers import make_record

TEACHER = "Salesforce/blip-itm-base-coco@384+scenes/teacher+runs/t"


@pytest.fixture
def published(tiny, tmp_path):
    """A run folder with a record, distilled on data of the hub."""
    new_model(scenes_size(32, 2, 2), tiny.tokenizer, 0).save(tmp_path / "run")
    record = make_record("small", "distilled")
    data = {"name": "hub:nlphuji/flickr30k?image=photo+hub:/home/me/table.parquet", "split": "train"}
    record["config"] |= {"teacher": TEACHER, "data": data, "train": TrainConfig().to_dict()}
    write_json(tmp_path / "run" / "record.json", record)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("to", "folder", "library", "pipeline"),
    [
        ("transformers", "captioning", "transformers", "image-text-to-text"),
        ("transformers", "retrieval", "transformers", None),
        ("dlip", "fp32", "dlip", "image-text-to-text"),
        ("vit", "vit", "transformers", None),
    ],
)
def test_metadata_of_the_hub(to, folder, library, pipeline, published, tmp_path):
    assert main(["export", str(published), "--to", to, "--license", "mit", "--out", str(tmp_path / "out")]) == 0
    card = ModelCard.load(tmp_path / "out" / folder / "README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == (library, pipeline, "mit")
    assert data.base_model == ["Salesforce/blip-itm-base-coco"] and data.datasets == ["nlphuji/flickr30k"]
    assert "distillation" in data.tags
    captioning, retrieval, vqa = "image-text-to-text", "retrieval", "visual-question-answering"
    tasks = {"captioning": {captioning}, "retrieval": {retrieval}, "fp32": {retrieval, captioning, vqa}}
    assert {result.task_type for result in data.eval_results or []} == tasks.get(folder, set())
    assert {result.dataset_split for result in data.eval_results or []} <= {"test"}
    assert ("## Results" in card.text) == bool(data.eval_results) and "## Training" in card.text


def test_all_runs_are_named(published, tmp_path):
    record = read_json(published / "record.json")
    before = {"folder": "runs/first", "config": record["config"]}
    commands = [{"command": "dlip train --out runs/first", "wall_s": 1234.5}, {"command": None, "wall_s": 5.0}]
    write_json(published / "record.json", record | {"history": [before | one for one in commands]})
    text = (to_dlip(str(published), tmp_path / "out")[0]["fp32"] / "README.md").read_text()
    assert "- `runs/first`, 1,234 s: `dlip train --out runs/first`\n- `runs/first`, 5 s\n\n## Cost" in text


def test_unknown_metadata_are_absent(tiny, tmp_path):
    tiny.save(tmp_path / "run")
    card = ModelCard.load(to_dlip(str(tmp_path / "run"), tmp_path / "out")[0]["fp32"] / "README.md")
    assert card.data.license is card.data.base_model is card.data.datasets is card.data.eval_results is None
    half = to_dlip(str(tmp_path / "run"), tmp_path / "half", "fp16")[0]["fp16"]
    assert "figures below" not in (half / "README.md").read_text()


def test_a_joined_teacher_is_named_after_all_its_models(tiny):
    assert model_name(VLM(tiny.med, tiny.tokenizer, "runs/one+scenes/two"), {}) == "one+two"


def test_folders_load_from_the_cache_of_a_hub(published, tmp_path):
    """In a process of its own, as the hub's library reads its settings when it is imported."""
    folders = to_dlip(str(published), tmp_path / "out")[0] | to_transformers(str(published), tmp_path / "out")[0]
    for name in ("fp32", "captioning", "retrieval"):
        repository = tmp_path / "hub" / f"models--me--{name}"
        shutil.copytree(folders[name], repository / "snapshots" / "abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
    code = """if True:
        import torch
        import dlip
        from dlip.data.scenes.dataset import Scenes
        images = [Scenes("val")[i].image for i in range(2)]
        for name in ("fp32", "captioning"):
            print(dlip.load(f"me/{name}").caption(images))
        from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval
        for name, of in (("captioning", BlipForConditionalGeneration), ("retrieval", BlipForImageTextRetrieval)):
            stock, own = of.from_pretrained(f"me/{name}"), dlip.load(f"me/{name}").med
            print(len(stock.state_dict()) > 50, torch.equal(
                stock.vision_model.post_layernorm.weight, own.vision_model.post_layernorm.weight))
    """
    offline = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr
    captions = str(dlip.load(published).caption([Scenes("val")[i].image for i in range(2)]))
    assert done.stdout.splitlines() == [captions, captions, "True True", "True True"]
