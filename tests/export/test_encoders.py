"""One side of a model gives the same outputs in stock `transformers`, and initializes a model with the same weights."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BertLMHeadModel, ViTModel

from dlip.checkpoints.init_from import initialize
from dlip.cli import main
from dlip.common.errors import UserError
from dlip.experiments.run import new_model
from dlip.export.encoders import to_bert
from dlip.models.config import preset, scenes_size
from dlip.vlm import VLM
from tests.helpers import randomize_weights


@pytest.fixture(scope="module")
def language_model(tiny, tmp_path_factory):
    """A model without cross-attention, in its run folder, and the folder of its exports."""
    folder = tmp_path_factory.mktemp("encoders")
    vlm = new_model(scenes_size(32, 2, 2, fusion_layers=()), tiny.tokenizer, 0)
    randomize_weights(vlm.med, 1).abilities = frozenset({"lm"})
    vlm.save(folder / "run")
    for kind in ("vit", "bert"):
        assert main(["export", str(folder / "run"), "--to", kind, "--out", str(folder / "out")]) == 0
    return VLM.load(folder / "run"), folder / "out"


@torch.no_grad()
def test_vit_has_the_same_states(language_model, scenes):
    vlm, out = language_model
    noise = np.random.default_rng(0).integers(0, 255, (90, 70, 3), np.uint8)  # to be resized
    images = [*(item.image for item in scenes), Image.fromarray(noise)]
    pixels = vlm.pixels(images, vlm.med)
    stock = AutoImageProcessor.from_pretrained(out / "vit", backend="pil")(images=images, return_tensors="pt")
    torch.testing.assert_close(stock.pixel_values, pixels, atol=1e-5, rtol=0)
    states = ViTModel.from_pretrained(out / "vit", add_pooling_layer=False).eval()(pixels).last_hidden_state
    torch.testing.assert_close(states, vlm.med.encode_image(pixels), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_bert_has_the_same_logits(language_model):
    vlm, out = language_model
    ids = vlm.tokenizer.encode(["a small red star", "we see"])[0]
    ids[:, 0] = vlm.tokenizer.dec_id
    stock = BertLMHeadModel.from_pretrained(out / "bert").eval()
    expected = vlm.med.decode(ids, torch.zeros(2, 1, vlm.med.config.image_width))
    torch.testing.assert_close(stock(ids).logits, expected, atol=1e-4, rtol=1e-4)
    tokens = AutoTokenizer.from_pretrained(out / "bert")("a small red star").input_ids
    assert tokens == vlm.tokenizer.encode(["a small red star"])[0][0].tolist()


def test_half_precision_initializes_fp32(language_model, tiny, tmp_path):
    vlm, out = language_model
    folder = str(out.parent / "run")
    assert main(["export", folder, "--to", "vit", "--fp16", "--out", str(tmp_path)]) == 0
    student = new_model(scenes_size(32, 2, 2), tiny.tokenizer, 3)
    initialize(student, f"image={tmp_path / 'vit'}")
    sources = dict(vlm.med.vision_model.named_parameters())
    for name, parameter in student.med.vision_model.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, sources[name].half().float())


def test_exports_initialize_a_model_with_the_same_weights(language_model, tiny):
    vlm, out = language_model
    student = new_model(scenes_size(32, 2, 2), tiny.tokenizer, 3)
    copied = {
        part: initialize(student, f"{part}={out / kind}") for part, kind in (("image", "vit"), ("language", "bert"))
    }
    own, source = dict(student.med.named_parameters()), dict(vlm.med.named_parameters())
    assert set(copied["image"]) == {name for name in own if name.startswith("vision_model")}
    assert set(copied["language"]) == {name for name in own if "text_" in name and "cross" not in name} - {
        "text_proj.weight", "text_proj.bias"
    }  # fmt: skip
    for name in (*copied["image"], *copied["language"]):
        decoders = name.replace("text_encoder", "text_decoder.bert") if ".attention." in name else name
        torch.testing.assert_close(own[name], source[decoders], atol=0, rtol=0)


def test_a_model_with_cross_attention_has_no_bert(tiny):
    with pytest.raises(UserError, match="cross-attention"):
        to_bert(tiny.med)


def test_a_size_without_cross_attention():
    assert preset("scenes-student:fusion_layers=").fusion_layers == ()
