"""CLIP, SigLIP and SigLIP 2 against the stock classes and their processors."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPTokenizer

import dlip
from dlip.common.errors import MissingAbility, UserError
from dlip.data.batch import Batch
from dlip.evaluation.attention_maps import image_maps
from dlip.models.fast.precision import convert_precision, require_fp32_blip
from dlip.models.features import Want
from dlip.vlm import VLM
from tests.checkpoints.dual_helpers import FAMILIES, SIZES, dual_folder, image_processor_of, stock_model

TEXTS = ["a red star", "the large blue circle is above a cat", "Green!", " ".join(["square"] * 40)]
CLOSE = dict(atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module", params=[(family, size) for family in FAMILIES for size in SIZES], ids="-".join)
def pair(request, tmp_path_factory):
    """The model as this package and as stock `transformers` load it, with the stock inputs of images and texts."""
    family, size = request.param
    folder = dual_folder(tmp_path_factory.mktemp("dual") / family, family, size)
    images = random_images()
    inputs = dict(AutoImageProcessor.from_pretrained(folder, backend="pil")(images, return_tensors="pt"))
    padding = "longest" if family == "clip" else "max_length"
    inputs |= AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=padding, truncation=True, max_length=SIZES[size]["tokens"], return_tensors="pt"
    )
    with torch.no_grad():
        return dlip.load(folder), AutoModel.from_pretrained(folder).eval(), images, inputs


TEXT_INPUTS = ("input_ids", "attention_mask")


def random_images() -> list[Image.Image]:
    """Of several sizes and aspect ratios, one of them square."""
    source = np.random.default_rng(0)
    return [Image.fromarray(source.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((40, 40), (50, 30), (24, 61))]


def test_embeddings_and_logits_equal_stock(pair):
    vlm, stock, images, inputs = pair
    with torch.no_grad():
        out = stock(**inputs)
    torch.testing.assert_close(vlm.embed_images(images), out.image_embeds, **CLOSE)
    torch.testing.assert_close(vlm.embed_texts(TEXTS), out.text_embeds, **CLOSE)
    bias = getattr(stock, "logit_bias", torch.zeros(()))
    torch.testing.assert_close(vlm.similarity(images, TEXTS) / vlm.med.temp, out.logits_per_image - bias, **CLOSE)


def test_features_of_a_batch_equal_stock(pair):
    """Squares of the model's own size are read as the stock processor reads them."""
    vlm, stock, _, inputs = pair
    side, config = vlm.med.config.image_size, vlm.med.config
    squares = torch.randint(256, (3, 3, side, side), dtype=torch.uint8)
    captions = [TEXTS[0], None, TEXTS[1]]
    batch = Batch(squares, torch.arange(3), torch.zeros(3, 5, dtype=torch.long), torch.ones(3, 5, dtype=torch.bool),
                  captions=captions)  # fmt: skip
    layers = {("image", "states"): (-1,), ("text", "states"): (-1,)}
    with torch.no_grad():
        out = vlm.med(batch, Want(frozenset({"itc"}), layers))
        arrays = [square.permute(1, 2, 0).numpy() for square in squares]
        pixels = vlm.med.image_processor([Image.fromarray(array) for array in arrays], return_tensors="pt")
        vision = stock.vision_model(**pixels)
    patches = out.states("image")[:, 1:]
    last = vision.last_hidden_state
    if stock.config.model_type == "clip":
        last = stock.vision_model.post_layernorm(last)[:, 1:]
    torch.testing.assert_close(patches, last, **CLOSE)
    torch.testing.assert_close(out.states("image")[:, 0], vision.pooler_output, **CLOSE)
    assert out.rows.tolist() == [0, 2] and out.captioned.tolist() == [True, False, True]
    expected = vlm.embed_images(arrays)[[0, 2]] @ vlm.embed_texts(captions[::2]).T / vlm.med.temp
    torch.testing.assert_close(out.logits["itc"], expected, **CLOSE)
    assert out.states("text").shape == (3, 1, config.text_width)


def test_what_it_cannot_do_is_refused(pair):
    vlm, _, images, _ = pair
    for call in (
        lambda: vlm.caption(images),
        lambda: vlm.answer(images, TEXTS[:3]),
        lambda: vlm.match(images, TEXTS[:3]),
    ):
        with pytest.raises(MissingAbility, match="it can: compare images with texts"):
            call()
    with pytest.raises(MissingAbility, match="CLIP"):
        image_maps(vlm, images[0])


def test_lower_precision(pair):
    """bf16 gives about the same vectors; exports are refused."""
    vlm, _, images, _ = pair
    half = VLM(convert_precision(copy.deepcopy(vlm.med), "bf16"), vlm.tokenizer)
    for one, other in ((vlm.embed_images(images), half.embed_images(images)),
                       (vlm.embed_texts(TEXTS), half.embed_texts(TEXTS))):  # fmt: skip
        assert other.dtype == torch.float32 and ((one * other).sum(1) > 0.999).all()
    with pytest.raises(UserError, match="export does not support a CLIP or SigLIP"):
        require_fp32_blip(vlm.med, "export")


def test_texts_of_older_clips_end_at_their_highest_id(tmp_path):
    """As published: their configurations name token 2, which ends no text; the stock class knows."""
    folder, size = tmp_path / "clip", SIZES["small"]
    letters = [chr(i) for i in range(33, 127)]
    pieces = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=size["tokens"])
    for part in (stock_model("clip", size, tokenizer), tokenizer, image_processor_of("clip", size)):
        part.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    vlm, stock = dlip.load(folder), AutoModel.from_pretrained(folder).eval()
    ids, mask = vlm.tokenize(TEXTS)
    with torch.no_grad():
        expected = stock.text_model(input_ids=ids, attention_mask=mask.long()).pooler_output
        states = vlm.med.encode_text(ids, mask)[:, 0]
    torch.testing.assert_close(states, expected, **CLOSE)
    assert not torch.allclose(states[0], states[1], atol=1e-2)
