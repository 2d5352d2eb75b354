"""Models initialized from published ViTs and BERTs give the same states; patches and grids are resized."""

import json
import tempfile

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, DeiTConfig, DeiTModel, ViTConfig, ViTForImageClassification, ViTModel

from dlip.checkpoints.init_from import initialize
from dlip.common.errors import UserError
from dlip.data.tokenizer import SPECIALS, Tokenizer
from dlip.experiments.run import new_model
from dlip.models.config import ModelConfig
from tests.helpers import shaken

SIZES = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=2, intermediate_size=256, image_size=32,
             patch_size=8, initializer_range=0.1)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red star"], 60)


def student(tokenizer: Tokenizer, **changes):
    sizes = dict(image_size=32, patch_size=8, image_width=128, image_heads=2, image_layers=3, image_mlp=256,
                 text_width=32, text_heads=2, text_layers=2, image_eps=1e-12)  # fmt: skip
    return new_model(ModelConfig(**{**sizes, **changes}), tokenizer, 0)


def model(kind: str):
    torch.manual_seed(1)
    stock = {
        "vit": (ViTConfig, ViTModel),
        "deit": (DeiTConfig, DeiTModel),
        "classifier": (ViTConfig, ViTForImageClassification),
    }
    config, cls = stock[kind]
    out = cls(config(**SIZES)).eval()
    shaken(out, 0.05)
    return out


PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def states(vlm, pixels: torch.Tensor = PIXELS) -> torch.Tensor:
    with torch.no_grad():
        return vlm.med.eval().encode_image(pixels)


@pytest.mark.parametrize("kind", ["vit", "classifier"])
@torch.no_grad()
def test_vit_folder(kind, tokenizer, tmp_path):
    stock_model, vlm = model(kind), student(tokenizer)
    stock_model.save_pretrained(tmp_path)
    copied = initialize(vlm, f"image={tmp_path}")
    assert len(copied) == len(list(vlm.med.vision_model.parameters()))
    backbone = getattr(stock_model, "vit", stock_model)
    torch.testing.assert_close(states(vlm), backbone(PIXELS).last_hidden_state, atol=1e-4, rtol=0)


@torch.no_grad()
def test_deit_without_its_distillation_token(tokenizer, tmp_path):
    stock_model, vlm = model("deit"), student(tokenizer)
    stock_model.save_pretrained(tmp_path)
    initialize(vlm, f"image={tmp_path}")
    x = stock_model.embeddings(PIXELS)[:, [0, *range(2, 18)]]  # their second token is the one for distillation
    for layer in (
        stock_model.layers if hasattr(stock_model, "layers") else stock_model.encoder.layer
    ):  # the latter until 5.8
        x = layer(x)
    torch.testing.assert_close(states(vlm), stock_model.layernorm(x), atol=1e-4, rtol=0)


def timm_state(stock) -> dict[str, torch.Tensor]:
    """A ViTModel's weights in timm's names, by hand."""
    with tempfile.TemporaryDirectory() as folder:
        stock.save_pretrained(folder)  # by the names of published files, which are the same in every release
        own = load_file(f"{folder}/model.safetensors")
    out = {"cls_token": own["embeddings.cls_token"], "pos_embed": own["embeddings.position_embeddings"],
           "head.weight": torch.randn(10, 128), "head.bias": torch.zeros(10)}  # fmt: skip
    for kind in ("weight", "bias"):
        out[f"patch_embed.proj.{kind}"] = own[f"embeddings.patch_embeddings.projection.{kind}"]
        out[f"norm.{kind}"] = own[f"layernorm.{kind}"]
        for i in range(3):
            stock_model = f"encoder.layer.{i}"
            qkv = [own[f"{stock_model}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            out |= {
                f"blocks.{i}.norm1.{kind}": own[f"{stock_model}.layernorm_before.{kind}"],
                f"blocks.{i}.norm2.{kind}": own[f"{stock_model}.layernorm_after.{kind}"],
                f"blocks.{i}.attn.qkv.{kind}": torch.cat(qkv),
                f"blocks.{i}.attn.proj.{kind}": own[f"{stock_model}.attention.output.dense.{kind}"],
                f"blocks.{i}.mlp.fc1.{kind}": own[f"{stock_model}.intermediate.dense.{kind}"],
                f"blocks.{i}.mlp.fc2.{kind}": own[f"{stock_model}.output.dense.{kind}"],
            }
    return out


@pytest.mark.parametrize("layout", ["file", "folder", "distilled"])
@torch.no_grad()
def test_timm_layout(layout, tokenizer, tmp_path):
    stock_model, vlm, source = model("vit"), student(tokenizer), tmp_path / "deit.pth"
    state = timm_state(stock_model)
    if layout == "distilled":
        places = state["pos_embed"]
        extra = torch.cat([places[:, :1], torch.randn(1, 1, 128), places[:, 1:]], 1)
        state |= {"dist_token": torch.randn(1, 1, 128), "pos_embed": extra}
    if layout == "folder":
        source = tmp_path
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny", "num_classes": 10}))
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        torch.save({"model": state}, source)
    initialize(vlm, f"image={source}:image_heads=2")
    torch.testing.assert_close(states(vlm), stock_model(PIXELS).last_hidden_state, atol=1e-4, rtol=0)


@torch.no_grad()
def test_depth_and_width_of_a_vit(tokenizer, tmp_path):
    stock_model, smaller = model("vit"), dict(image_layers=2, image_width=64, image_heads=1, image_mlp=128)
    stock_model.save_pretrained(tmp_path)
    whole, from_vit, from_blip = student(tokenizer), student(tokenizer, **smaller), student(tokenizer, **smaller)
    initialize(whole, f"image={tmp_path}")
    whole.save(tmp_path / "whole")
    initialize(from_vit, f"image={tmp_path}")
    initialize(from_blip, f"image={tmp_path / 'whole'}")
    torch.testing.assert_close(states(from_vit), states(from_blip), atol=0, rtol=0)
    with pytest.raises(UserError, match="no wider"):
        initialize(student(tokenizer, image_width=256, image_heads=4), f"image={tmp_path}")
    with pytest.raises(UserError, match="no weights for the text"):
        initialize(student(tokenizer), f"text={tmp_path}")


@torch.no_grad()
def test_old_bert_file_in_a_hub_folder(tokenizer, tmp_path, monkeypatch):
    """MiniLM's: weights in pytorch_model.bin, norms named gamma and beta, names with "bert." before them."""
    torch.manual_seed(2)
    sizes = dict(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, initializer_range=0.3
    )
    stock_model = BertModel(BertConfig(vocab_size=len(SPECIALS) + 3, max_position_embeddings=64, **sizes)).eval()
    state = {f"bert.{name}": tensor for name, tensor in stock_model.state_dict().items()}
    state = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
             for n, t in state.items()}  # fmt: skip
    stock_model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS[:5], "a", "red", "star", "[DEC]", "[ENC]"]) + "\n")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path))
    vlm = student(tokenizer, text_mlp=64, text_layers=4)
    initialize(vlm, "text=microsoft/MiniLM-L12-H384-uncased")
    ids, mask = tokenizer.encode(["a red star"])
    stock_ids, _ = Tokenizer.load(tmp_path).encode(["a red star"])
    reference = stock_model(stock_ids).last_hidden_state
    torch.testing.assert_close(vlm.med.eval().encode_text(ids, mask), reference, atol=1e-4, rtol=0)
