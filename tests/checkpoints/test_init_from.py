"""Initialization: equal outputs from equal weights, tokens matched by name, evenly spaced layers, refusals."""

import pytest
import torch
from safetensors.torch import load, save_file
from transformers import BertConfig, BertModel

from dlip.checkpoints.init_from import initialize
from dlip.common.errors import UserError
from dlip.data.tokenizer import SPECIALS, Tokenizer
from dlip.experiments.run import new_model
from dlip.export.transformers import to_stock
from dlip.models.config import scenes_size

WORDS = ["a", "red", "star", "cat", "above", "blue"]


@pytest.fixture
def bert(tmp_path):
    """A BERT folder as published ones are: config.json, model.safetensors, vocab.txt."""
    torch.manual_seed(1)
    pieces = [*SPECIALS[:5], *WORDS, *"bcdelorstuv", *(f"##{c}" for c in "abcdelorstuv")]
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=60, initializer_range=0.3,
    )  # fmt: skip
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return model, tmp_path / "bert"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a blue cat", "red star above a cat"], 100)


def small(tokenizer: Tokenizer, seed: int = 0, width: int = 32, layers: int = 3, **changes):
    return new_model(scenes_size(width, 2, layers), tokenizer, seed, **changes)


def test_text_encoder_from_bert_gives_its_states(bert, tokenizer):
    stock_model, folder = bert
    model = small(tokenizer)
    copied = initialize(model, f"text={folder}")
    assert all(name.startswith("text_") for name in copied) and not any("crossattention" in name for name in copied)
    ids, mask = tokenizer.encode(["a red star", "blue cat above a red star"])
    vocabulary = Tokenizer.load(folder)
    stock_ids, stock_mask = vocabulary.encode(["a red star", "blue cat above a red star"])
    assert not torch.equal(ids, stock_ids) and torch.equal(mask, stock_mask)
    with torch.no_grad():
        states = model.med.eval().encode_text(ids, mask)
        reference = stock_model(stock_ids, stock_mask.long()).last_hidden_state
    assert torch.allclose(states[mask], reference[mask], atol=1e-5)
    own = model.med.text_decoder.bert.encoder.layer[2].attention.self.key.weight
    assert torch.equal(own, stock_model.encoder.layer[2].attention.self.key.weight)


def test_language_part_is_what_a_bert_has(tokenizer, tmp_path):
    source, model = small(tokenizer, seed=1), small(tokenizer, seed=2)
    source.save(tmp_path)
    copied = initialize(model, f"language={tmp_path}")
    assert any("attention.self" in name for name in copied) and any("cls.predictions" in name for name in copied)
    assert all(name.startswith(("text_encoder", "text_decoder")) and "crossattention" not in name for name in copied)
    assert {name for name in initialize(model, f"text={tmp_path}") if name not in copied} >= {"text_proj.weight"}


@pytest.mark.parametrize(("depth", "layers"), [(1, [5]), (2, [0, 5]), (3, [0, 2, 5])])
def test_shallower_model_takes_evenly_spaced_layers(depth, layers, tokenizer, tmp_path):
    source = small(tokenizer, layers=6, image_layers=6)
    model = small(tokenizer, seed=1, layers=depth, image_layers=depth)
    source.save(tmp_path)
    initialize(model, str(tmp_path))
    stacks = ((vlm.med.text_encoder.encoder.layer, vlm.med.vision_model.encoder.layers) for vlm in (model, source))
    for own_stack, stack in zip(*stacks, strict=True):
        for own, taken in enumerate(layers):
            for a, b in zip(own_stack[own].parameters(), stack[taken].parameters(), strict=True):
                assert torch.equal(a, b)


def test_captioning_checkpoint_has_no_other_heads(tokenizer, tmp_path):
    source, model, before = small(tokenizer, seed=1), small(tokenizer, seed=2), small(tokenizer, seed=2)
    to_stock(source.med, "captioning").save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    copied = initialize(model, str(tmp_path))
    assert "itm_head.weight" not in copied and "text_decoder.cls.predictions.bias" in copied
    key = "text_encoder.encoder.layer.0.attention.self.key.weight"
    for name, parameter in model.med.named_parameters():
        assert torch.equal(parameter, (source if name in copied else before).med.get_parameter(name)), name
    assert key not in copied and torch.equal(model.med.get_parameter(key), before.med.get_parameter(key))


def test_sources_that_do_not_fit_are_refused(bert, tokenizer, tmp_path):
    small(tokenizer).save(tmp_path / "source")
    for model, source, message in (
        (small(tokenizer, width=64), f"text={bert[1]}", "no wider"),
        (small(tokenizer, embed_dim=32), str(tmp_path / "source"), "choose a model size that agrees"),
        (small(tokenizer, layers=4), str(tmp_path / "source"), "no deeper"),
        (small(tokenizer), str(tmp_path / "nowhere"), "there is no model"),
        (small(tokenizer), f"image={bert[1]}", "no weights for the image"),
    ):
        with pytest.raises(UserError, match=message):
            initialize(model, source)
    state = load((bert[1] / "model.safetensors").read_bytes())  # a mapped file must not be written to
    for name, odd in (("embeddings.position_embeddings.weight", (60,)), ("encoder.layer.0.output.dense.weight", ())):
        save_file(state | {name: torch.zeros(odd)}, bert[1] / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match="is damaged, or not a model of its kind|choose a model size"):
            initialize(small(tokenizer), f"text={bert[1]}")
    (bert[1] / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="is neither of dlip nor of BLIP"):
        initialize(small(tokenizer), str(bert[1]))
