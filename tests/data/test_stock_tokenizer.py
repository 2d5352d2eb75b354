"""Tokenizers of stock `transformers`: padding, masks and length as their checkpoints have them."""

import json
import shutil

import pytest
import torch
from sentencepiece import SentencePieceTrainer
from transformers import SiglipTokenizer

from dlip.common.errors import UserError
from dlip.data.stock_tokenizer import StockTokenizer
from tests.checkpoints.dual_helpers import FAMILIES, tokenizer_of


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    tokenizer_of(request.param, 16).save_pretrained(tmp_path / "stock")
    (tmp_path / "stock" / "config.json").write_text(json.dumps({"model_type": request.param}))
    return tmp_path / "stock"


def test_padding_to_the_longest_or_to_the_full_length(folder):
    texts = ["a", "the red \ud800 cat"]
    longest, full = (StockTokenizer.load(folder, fixed_length=fixed).encode(texts, 15) for fixed in (False, True))
    longer = longest[0].shape[1]
    assert full[0].shape == full[1].shape == (2, 15) and 2 < longer <= 15
    assert torch.equal(full[0][:, :longer], longest[0]) and torch.equal(full[1][:, :longer], longest[1])
    assert [x.shape[0] for x in StockTokenizer.load(folder, fixed_length=True).encode([], 16)] == [0, 0]


def test_masks_are_given_where_the_checkpoint_has_them(tmp_path):
    """CLIP's texts are masked after their end; SigLIP reads its padding; SigLIP 2's class pads and masks the left."""
    masks = {}
    for family, tokens in (("clip", 16), ("siglip", 16), ("siglip2", 12)):
        tokenizer_of(family, tokens).save_pretrained(tmp_path / family)
        (tmp_path / family / "config.json").write_text(json.dumps({"model_type": family}))
        masks[family] = StockTokenizer.load(tmp_path / family, fixed_length=family != "clip").encode(["a", "red"], 12)[
            1
        ]
    assert masks["clip"].tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert masks["siglip"].all()
    assert masks["siglip2"].tolist() == [[False] * 10 + [True] * 2, [False] * 8 + [True] * 4]


def test_tokenizer_json_alone(folder, tmp_path):
    """Where the stock class cannot be had, such as SigLIP's without sentencepiece."""
    expected = StockTokenizer.load(folder, fixed_length=True).encode(["a red star"], 16)
    shutil.copy(folder / "tokenizer.json", tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "SiglipTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    again = StockTokenizer.load(tmp_path, fixed_length=True).encode(["a red star"], 16)
    assert torch.equal(expected[0], again[0])


@pytest.mark.parametrize("masked", [False, True])
def test_sentencepiece_alone(masked, tmp_path, monkeypatch):
    """As stock SigLIP tokenizers are saved: without tokenizer.json."""
    sentences = ["a photo of the red cat", "two blue things sit on a mat", "one dog runs away from it"] * 20
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    names = ["input_ids", "attention_mask"] if masked else ["input_ids"]
    stock = SiglipTokenizer(str(tmp_path / "spiece.model"), model_input_names=names, model_max_length=16)
    stock.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    assert not (tmp_path / "saved" / "tokenizer.json").exists()
    texts = ["A photo of the cat, two dogs!", "it"]
    ids, mask = StockTokenizer.load(tmp_path / "saved", fixed_length=True).encode(texts, 16)
    expected = stock(texts, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    assert torch.equal(ids, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"].bool() if masked else torch.ones(2, 16, dtype=torch.bool))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(UserError, match="or install sentencepiece"):
        StockTokenizer.load(tmp_path / "saved", fixed_length=True)
