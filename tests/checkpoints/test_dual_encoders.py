"""Folders of CLIP and SigLIP by name: hub layouts, and what cannot be read is refused in one line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import dlip
from dlip.checkpoints.init_from import initialize
from dlip.common.errors import UserError
from tests.checkpoints.dual_helpers import FAMILIES, dual_folder


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return dual_folder(tmp_path_factory.mktemp("dual") / request.param, request.param)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def vectors(name) -> torch.Tensor:
    return dlip.load(name).embed_texts(["a red star", "the cat"])


def test_old_weights_and_half_precision(copied):
    """pytorch_model.bin with the position ids of older releases, in fp16: read as fp32."""
    state = load_file(copied / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()},
               copied / "pytorch_model.bin")  # fmt: skip
    expected = vectors(copied)
    (copied / "model.safetensors").unlink()
    vlm = dlip.load(copied)
    assert {parameter.dtype for parameter in vlm.med.parameters()} == {torch.float32} and not vlm.med.training
    torch.testing.assert_close(vlm.embed_texts(["a red star", "the cat"]), expected, atol=2e-3, rtol=0)


def test_hub_id_without_a_connection(folder, monkeypatch, tmp_path):
    """From the hub's cache, as another program has left it there."""
    snapshot = tmp_path / "hub" / "models--me--dual" / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert torch.equal(vectors("me/dual"), vectors(folder))


def remove_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)


def remove_weight(folder):
    state = load_file(folder / "model.safetensors")
    state.pop("text_model.final_layer_norm.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def break_weight(folder):
    state = load_file(folder / "model.safetensors")
    state["text_model.final_layer_norm.weight"][0] = torch.nan
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def change_width(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] += 8
    (folder / "config.json").write_text(json.dumps(config))


def change_image_size(folder):
    path = folder / "preprocessor_config.json"
    processor, side = json.loads(path.read_text()), {"height": 40, "width": 40}
    path.write_text(json.dumps(processor | {"size": side, "crop_size": side, "patch_size": 16}))


def change_scale(folder):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_factor": 1 / 127.5}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change_image_size, "image processor"),
        (change_scale, "image processor"),
        (remove_tokenizer, "tokenizer.json"),
        (remove_weight, "lacks weights.*final_layer_norm.weight"),
        (break_weight, "non-finite values in text_model.final_layer_norm.weight"),
        (change_width, "cannot be read as a"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "cannot be read as a"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be read as a"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "cannot be read as a"),
    ],
)
def test_damaged_folders_are_refused(damage, says, copied):
    damage(copied)
    with pytest.raises(UserError, match=says) as refused:
        dlip.load(copied)
    assert len(str(refused.value).splitlines()) == 1


def test_dual_encoders_cannot_initialize_a_model_or_be_saved(folder, make_vlm, tmp_path):
    with pytest.raises(UserError, match="CLIP or SigLIP, which can only be a teacher"):
        initialize(make_vlm(), str(folder))
    with pytest.raises(UserError, match="cannot be saved"):
        dlip.load(folder).save(tmp_path / "again")
