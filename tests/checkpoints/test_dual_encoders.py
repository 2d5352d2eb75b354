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


def edit(folder, file: str, part: str | None = None, **changes) -> None:
    values = json.loads((folder / file).read_text())
    (values[part] if part else values).update(changes)
    (folder / file).write_text(json.dumps(values))


def edit_weight(folder, tensor: torch.Tensor | None) -> None:
    state = load_file(folder / "model.safetensors") | {"text_model.final_layer_norm.weight": tensor}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


SIDE = {"height": 40, "width": 40}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: edit(f, "preprocessor_config.json", size=SIDE, crop_size=SIDE, patch_size=16), "image processor"),
        (lambda f: edit(f, "preprocessor_config.json", rescale_factor=1 / 127.5), "image processor"),
        (lambda f: [path.unlink() for path in f.glob("*tokenizer*")] + [edit(f, "config.json")], "tokenizer.json"),
        (lambda f: edit_weight(f, None), "final_layer_norm.weight"),
        (lambda f: edit_weight(f, torch.full((24,), torch.nan)), "text_model.final_layer_norm.weight"),
        (lambda f: edit(f, "config.json", "text_config", hidden_size=40), "cannot be read as a"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "cannot be read as a"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no weights"), "cannot be read as a"),
    ],
)
def test_damaged_folders_are_refused(damage, named, copied):
    damage(copied)
    with pytest.raises(UserError, match=named):
        dlip.load(copied)


def test_dual_encoders_cannot_initialize_a_model_or_be_saved(folder, make_vlm, tmp_path):
    with pytest.raises(UserError, match="CLIP or SigLIP, which can only be a teacher"):
        initialize(make_vlm(), str(folder))
    with pytest.raises(UserError, match="cannot be saved"):
        dlip.load(folder).save(tmp_path / "again")
