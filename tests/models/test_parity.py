"""The MED against stock transformers on the same weights: scores within 1e-4, generated tokens equal."""

from itertools import product

import pytest
import torch

from dlip.export.transformers import to_stock
from dlip.models.config import ModelConfig
from dlip.models.generate import generate
from dlip.models.med import Med
from dlip.models.token_ids import first_token
from tests.helpers import shaken

SIZES = {
    "small": dict(image_width=32, image_heads=4, image_layers=2, text_width=32, text_heads=4, text_layers=2),
    "odd": dict(image_width=30, image_heads=3, image_layers=3, text_width=30, text_heads=5, text_layers=1,
                image_mlp=50, text_mlp=70, embed_dim=7),
    "untied": dict(image_width=32, image_heads=2, image_layers=1, text_width=32, text_heads=8, text_layers=2,
                   tie_decoder=False),
    "unequal": dict(image_width=24, image_heads=2, image_layers=2, text_width=32, text_heads=4, text_layers=2),
}  # fmt: skip


def make(name: str) -> Med:
    torch.manual_seed(0)
    config = ModelConfig(
        image_size=24, patch_size=8, vocab_size=61, max_positions=32, cls_id=2, sep_id=3, dec_id=5, enc_id=6,
        **SIZES[name],
    )  # fmt: skip
    med = Med(config).eval()
    shaken(med, 0.2)  # far from their initialization, so that differences show
    med.text_decoder.cls.predictions.bias.data[3] += 1.0  # [SEP], so that some texts end before the limit
    return med


def texts(n: int, length: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(7, 61, (n, length))
    lengths = torch.randint(3, length + 1, (n, 1))
    mask = torch.arange(length) < lengths
    ids[:, 0] = 2
    return torch.where(mask, ids, 0), mask


@pytest.fixture(params=SIZES)
def med(request):
    return make(request.param)


@torch.no_grad()
def test_itc_and_itm(med):
    stock, pixels, (ids, mask) = to_stock(med, "retrieval"), torch.randn(4, 3, 24, 24), texts(4)
    image = med.encode_image(pixels)
    result = med.project_image(image) @ med.project_text(med.encode_text(ids, mask)).T
    expected = stock(ids, pixels, use_itm_head=False, attention_mask=mask).itm_score
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)
    fused = med.fuse(ids, mask, image)
    for enc_ids in (ids, first_token(ids, 6)):  # scores are equal only with [ENC], which stock does not put first
        expected = stock(enc_ids, pixels, attention_mask=mask).itm_score
        assert torch.allclose(med.match_logits(fused), expected, atol=1e-4) == (enc_ids is not ids)


@torch.no_grad()
def test_caption_logits_and_tokens(med):
    stock, pixels = to_stock(med, "captioning"), torch.randn(5, 3, 24, 24)
    ids, mask = texts(5)
    context = med.encode_image(pixels)
    expected = stock(pixels, first_token(ids, 5), attention_mask=mask).logits
    torch.testing.assert_close(med.decode(ids, context)[mask], expected[mask], atol=1e-4, rtol=0)
    prompt = torch.full((5, 1), 5)
    repetitive, lengths = generate(med, context, None, prompt, 3, 12), set()
    for beams, size in product((1, 3, 4), (0, 1, 2)):
        result = generate(med, context, None, prompt, beams, 12, no_repeat_ngram_size=size)
        expected = stock.generate(
            pixels, num_beams=beams, max_new_tokens=12, do_sample=False, no_repeat_ngram_size=size
        )
        assert result == [until_end(row) for row in expected.tolist()], (beams, size)
        assert (beams, size) != (3, 2) or result != repetitive
        lengths |= {len(row) for row in result}
    assert min(lengths) < max(lengths) == 13, "no text ends early, or none is truncated"


@torch.no_grad()
def test_answers(med):
    if med.config.image_width != med.config.text_width:
        pytest.skip("the stock class needs equal widths")
    stock, pixels = to_stock(med, "vqa"), torch.randn(3, 3, 24, 24)
    ids, _ = texts(3)
    ids[ids == 0] = 9  # questions of equal length, as stock lets answers attend to pads
    mask = torch.ones_like(ids, dtype=torch.bool)
    answers, _ = texts(3, 4)
    ids = first_token(ids, 6)
    states = med.question_states(med.fuse(ids, mask, med.encode_image(pixels)))
    image_states = stock.vision_model(pixels).last_hidden_state
    expected = stock.text_encoder(ids, attention_mask=mask, encoder_hidden_states=image_states).last_hidden_state
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=0)
    result = med.decode(answers, states, mask)
    stock_logits = stock.text_decoder(first_token(answers, 5), encoder_hidden_states=states).logits
    torch.testing.assert_close(result, stock_logits, atol=1e-4, rtol=0)
    prompt = torch.full((3, 1), 5)
    for beams in (1, 3):
        expected = stock.generate(ids, pixels, attention_mask=mask, num_beams=beams, max_new_tokens=8, do_sample=False)
        assert generate(med, states, mask, prompt, beams, 8) == [until_end(row) for row in expected.tolist()]


def until_end(row: list[int]) -> list[int]:
    return row[: row.index(3)] if 3 in row else row
