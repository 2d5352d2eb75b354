"""Models round-trip through disk bit for bit; damaged and foreign files end in one sentence."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from dlip.checkpoints.load import ModelName, built_in_models, load_model, model_folder, parse_name, save_model
from dlip.checkpoints.tensors import load_weights, read_tensors, weights, write_tensors
from dlip.common.errors import UserError
from dlip.common.files import read_json, write_json
from dlip.models.med import Med


@pytest.fixture
def folder(tiny, tmp_path):
    save_model(tiny.med, tiny.tokenizer, tmp_path, extra={"run": {"seed": 3}})
    return tmp_path


# --- models -----------------------------------------------------------------------------------------------------------


def test_model_round_trip_is_bit_exact(tiny, folder):
    med, tokenizer = load_model(folder)
    assert med.config == tiny.med.config and not med.training
    assert tokenizer.fast.get_vocab() == tiny.tokenizer.fast.get_vocab()
    loaded, saved = med.state_dict(), tiny.med.state_dict()
    assert loaded.keys() == saved.keys() and all(torch.equal(loaded[name], saved[name]) for name in loaded)
    assert read_json(folder / "config.json")["run"] == {"seed": 3}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_reading_draws_no_random_numbers_and_imports_no_compiler(folder):
    before = torch.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)
    code = f"import sys; from dlip.checkpoints.load import load_model; load_model({str(folder)!r}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded and not {"torch._dynamo", "torch.distributed.fsdp", "transformers"} & set(loaded)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_tensors_are_stored_once_and_stay_tied(tied, make_med, tmp_path):
    med = make_med(tie_decoder=tied)
    write_tensors(tmp_path / "m.safetensors", weights(med))
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name).numel() for name in file.keys()}
    assert sum(stored.values()) == sum(p.numel() for p in med.parameters())
    assert "text_decoder.cls.predictions.decoder.weight" not in stored
    assert ("text_decoder.bert.encoder.layer.0.intermediate.dense.weight" in stored) != tied
    again = Med(med.config)
    load_weights(again, read_tensors(tmp_path / "m.safetensors")[0])
    words = again.text_encoder.embeddings.word_embeddings.weight
    assert (again.text_decoder.cls.predictions.decoder.weight is words) == tied
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), med.parameters(), strict=True))


def test_weights_are_split_over_files_of_a_stated_size(tiny, tmp_path):
    save_model(tiny.med, tiny.tokenizer, tmp_path / "whole", shard_mb=10)
    save_model(tiny.med, tiny.tokenizer, tmp_path / "split", shard_mb=0.1)
    assert [path.name for path in (tmp_path / "whole").glob("model*")] == ["model.safetensors"]
    files = sorted((tmp_path / "split").glob("model-*-of-*.safetensors"))
    sizes = [path.stat().st_size for path in files]
    assert len(sizes) > 1 and max(sizes) <= 1e5 and not (tmp_path / "split" / "model.safetensors").exists()
    loaded = weights(load_model(tmp_path / "split")[0])
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights(tiny.med).items())
    files[0].unlink()
    with pytest.raises(UserError, match=f"{files[0].name} is missing"):
        load_model(tmp_path / "split")
    save_model(tiny.med, tiny.tokenizer, tmp_path / "split")
    assert [path.name for path in (tmp_path / "split").glob("model*")] == ["model.safetensors"]
    load_model(tmp_path / "split")


# --- what is refused --------------------------------------------------------------------------------------------------


def break_config(folder, **changes):
    values = read_json(folder / "config.json")
    write_json(folder / "config.json", {"model": {**values["model"], **changes}})


def test_what_may_follow_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_name("run@384") == ModelName("run", 384) and parse_name("a@b/run") == ModelName("a@b/run")
    heads = {"text_heads": 4, "image_heads": 12}
    assert parse_name("a.pth@384:text_heads=4,image_heads=12") == ModelName("a.pth", 384, heads)
    for name in ("C:/a.pth", "a.pth:text_heads=0", "a.pth:heads=4", "a.pth:text_heads=4,", ":text_heads=4"):
        assert parse_name(name) == ModelName(name)
    for name in ("run@384", "run:text_heads=4"):
        (tmp_path / name).mkdir()
        assert parse_name(name) == ModelName(name) and parse_name(f"{name}@64") == ModelName(name, 64)


def instead(path: Path, make) -> None:
    path.unlink()
    make(path)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda f: (f / "config.json").unlink(), "no model"),
        (lambda f: (f / "config.json").write_text('{"model": {'), "config.json"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json"),
        (lambda f: (f / "config.json").write_text('{"model_type": []}'), "config.json"),
        (lambda f: break_config(f, colour=3), "colour"),
        (lambda f: break_config(f, embed_dim="64x"), "embed_dim"),
        (lambda f: break_config(f, embed_dim=32), "vision_proj.weight"),
        (lambda f: break_config(f, vocab_size=9_000_000), "9000000"),
        (lambda f: break_config(f, enc_id=5000), "5000"),
        (lambda f: break_config(f, text_layers=10**9, fusion_layers=[0]), "text_layers"),
        (lambda f: break_config(f, image_layers=3), "vision_model.encoder.layers.2"),
        (lambda f: write_json(f / "config.json", read_json(f / "config.json") | {"abilities": [1]}), "abilities"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "complete"),
        (lambda f: instead(f / "model.safetensors", os.mkfifo), "model.safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer"),
    ],
)
def test_damaged_folders_are_refused(damage, named, folder):
    damage(folder)
    with pytest.raises(UserError, match=re.escape(named)):
        load_model(folder)


def test_wrong_model_names_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no model 'scenes/nobody'"):
        model_folder("scenes/nobody")
    for name in ("x" * 300, "x" * 300 + "@384", "\0"):  # names that no file can have
        for find in (model_folder, load_model):
            with pytest.raises(UserError, match="there is no model '"):
                find(name)
    with pytest.raises(UserError, match="missing"):
        read_json(tmp_path / "none.json")
    for name in built_in_models():
        assert json.loads((model_folder(name) / "config.json").read_text())["model"]
