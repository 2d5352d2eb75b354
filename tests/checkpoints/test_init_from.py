"""Beginnings: equal outputs from equal weights, words matched by name, layers evenly spaced, refusals."""

import pytest
import torch
from safetensors.torch import load, save_file
from transformers import BertConfig, BertModel

from dlip.checkpoints.init_from import initialize
from dlip.common.errors import UserError
from dlip.data.tokenizer import SPECIALS, Tokenizer
from dlip.experiments.run import new_model
from dlip.export.huggingface import to_stock
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
def words() -> Tokenizer:
    return Tokenizer.train(["a blue cat", "red star above a cat"], 100)


def small(words: Tokenizer, seed: int = 0, width: int = 32, layers: int = 3, **changes):
    return new_model(scenes_size(width, 2, layers), words, seed, **changes)


def test_a_text_encoder_begun_at_a_bert_gives_its_states(bert, words):
    theirs, folder = bert
    ours = small(words)
    copied = initialize(ours, f"text={folder}")
    assert all(name.startswith("text_") for name in copied) and not any("crossattention" in name for name in copied)
    ids, mask = words.encode(["a red star", "blue cat above a red star"])
    vocabulary = Tokenizer.load(folder)
    their_ids, their_mask = vocabulary.encode(["a red star", "blue cat above a red star"])
    assert not torch.equal(ids, their_ids) and torch.equal(mask, their_mask)
    with torch.no_grad():
        states = ours.med.eval().encode_text(ids, mask)
        reference = theirs(their_ids, their_mask.long()).last_hidden_state
    assert torch.allclose(states[mask], reference[mask], atol=1e-5)
    own = ours.med.text_decoder.bert.encoder.layer[2].attention.self.key.weight
    assert torch.equal(own, theirs.encoder.layer[2].attention.self.key.weight)


def test_words_that_the_source_lacks_begin_as_they_were(bert, words):
    ours, untouched = small(words), small(words)
    initialize(ours, f"text={bert[1]}")
    table, before = (m.med.text_encoder.embeddings.word_embeddings.weight for m in (ours, untouched))
    assert torch.equal(table[words.dec_id], before[words.dec_id])
    assert not torch.equal(table[words.cls_id], before[words.cls_id])


def test_the_whole_of_a_model_of_the_same_size(words, tmp_path):
    source, ours = small(words, seed=1), small(words, seed=2)
    source.save(tmp_path)
    copied = initialize(ours, str(tmp_path))
    assert copied == [name for name, _ in source.med.named_parameters()]
    for (name, a), b in zip(source.med.named_parameters(), ours.med.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_image_part_alone(words, tmp_path):
    source, ours = small(words, seed=1), small(words, seed=2)
    source.save(tmp_path)
    copied = initialize(ours, f"image={tmp_path}")
    assert copied and all(name.startswith("vision_") for name in copied)
    assert torch.equal(source.med.vision_proj.weight, ours.med.vision_proj.weight)
    assert not torch.equal(source.med.text_proj.weight, ours.med.text_proj.weight)


def test_the_language_part_is_what_a_bert_has(words, tmp_path):
    source, ours = small(words, seed=1), small(words, seed=2)
    source.save(tmp_path)
    copied = initialize(ours, f"language={tmp_path}")
    assert any("attention.self" in name for name in copied) and any("cls.predictions" in name for name in copied)
    assert all(name.startswith(("text_encoder", "text_decoder")) and "crossattention" not in name for name in copied)
    assert {name for name in initialize(ours, f"text={tmp_path}") if name not in copied} >= {"text_proj.weight"}


@pytest.mark.parametrize(("depth", "layers"), [(1, [5]), (2, [0, 5]), (3, [0, 2, 5])])
def test_a_shallower_model_takes_evenly_spaced_layers(depth, layers, words, tmp_path):
    source, ours = small(words, layers=6), small(words, seed=1, layers=depth)
    source.save(tmp_path)
    initialize(ours, str(tmp_path))
    for own, theirs in enumerate(layers):
        for a, b in zip(
            ours.med.text_encoder.encoder.layer[own].parameters(),
            source.med.text_encoder.encoder.layer[theirs].parameters(),
            strict=True,
        ):
            assert torch.equal(a, b)


def test_chosen_layers(words, tmp_path):
    source, ours = small(words, layers=6), small(words, seed=1, layers=3)
    source.save(tmp_path)
    initialize(ours, f"text={tmp_path}:1+2+5")
    for own, theirs in enumerate((1, 2, 5)):
        for stack in ("text_encoder", "text_decoder.bert"):
            a, b = (m.med.get_submodule(f"{stack}.encoder.layer") for m in (ours, source))
            assert torch.equal(a[own].attention.self.key.weight, b[theirs].attention.self.key.weight)
    image = [m.med.vision_model.encoder.layers[0].mlp.fc1.weight for m in (ours, source)]
    assert not torch.equal(*image)


def test_a_captioning_checkpoint_gives_no_heads_that_it_lacks(words, tmp_path):
    source, ours, before = small(words, seed=1), small(words, seed=2), small(words, seed=2)
    to_stock(source.med, "captioning").save_pretrained(tmp_path)
    words.save(tmp_path)
    copied = initialize(ours, str(tmp_path))
    assert "itm_head.weight" not in copied and "text_decoder.cls.predictions.bias" in copied
    key = "text_encoder.encoder.layer.0.attention.self.key.weight"
    for name, parameter in ours.med.named_parameters():
        assert torch.equal(parameter, (source if name in copied else before).med.get_parameter(name)), name
    assert key not in copied and torch.equal(ours.med.get_parameter(key), before.med.get_parameter(key))


def test_another_grid_interpolates_the_positions(words, tmp_path):
    source = small(words)
    ramp = torch.linspace(0, 1, 6).view(1, 6, 1, 1).expand(1, 6, 6, 32)
    source.med.vision_model.embeddings.position_embedding.data[:, 1:] = ramp.reshape(1, 36, 32)
    source.save(tmp_path)
    ours = small(words, seed=1, image_size=72)
    initialize(ours, f"image={tmp_path}")
    patches = ours.med.vision_model.embeddings.position_embedding[0, 1:].view(9, 9, 32)
    assert torch.allclose(patches[:, 0], patches[:, 8], atol=1e-6) and (patches[1:, 0] > patches[:-1, 0]).all()
    assert torch.allclose(patches[4], torch.full((9, 32), 0.5), atol=1e-5)


def test_what_does_not_fit_is_refused_in_a_sentence(bert, words, tmp_path):
    small(words).save(tmp_path / "source")
    for model, source, words_of_it in (
        (small(words, width=64), f"text={bert[1]}", "no wider"),
        (small(words, embed_dim=32), str(tmp_path / "source"), "choose a size that agrees"),
        (small(words, layers=4), str(tmp_path / "source"), "no deeper"),
        (small(words), str(tmp_path / "nowhere"), "there is no model"),
        (small(words), f"image={tmp_path / 'source'}:0", "choose 2 of 0 to 1"),
        (small(words), f"image={tmp_path / 'source'}:0+2", "choose 2 of 0 to 1"),
        (small(words), f"image={bert[1]}", "no weights for the image"),
    ):
        with pytest.raises(UserError, match=words_of_it):
            initialize(model, source)
    state = load((bert[1] / "model.safetensors").read_bytes())  # a mapped file must not be written to
    for name, odd in (("embeddings.position_embeddings.weight", (60,)), ("encoder.layer.0.output.dense.weight", ())):
        save_file(state | {name: torch.zeros(odd)}, bert[1] / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match="is not whole, or no model of its kind|choose a size that agrees"):
            initialize(small(words), f"text={bert[1]}")
    (bert[1] / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="describes no dlip model and no BLIP"):
        initialize(small(words), str(bert[1]))


def test_a_part_does_not_mind_what_the_others_are(words, tmp_path):
    """The source's texts are shallower, or narrower, than the model's, whose image encoder alone begins there."""
    for changes in (dict(text_layers=1, fusion_layers=(0,)), dict(text_width=16, text_heads=2)):
        source = small(words, seed=3, **changes)
        source.save(tmp_path / "source")
        begun = small(words)
        copied = initialize(begun, f"image={tmp_path / 'source'}")
        assert copied and all(name.startswith("vision_") for name in copied)
        own, theirs = begun.med.vision_model.state_dict(), source.med.vision_model.state_dict()
        assert all(torch.equal(own[name], theirs[name]) for name in theirs)
        with pytest.raises(UserError, match="start a model that is no"):
            initialize(small(words), str(tmp_path / "source"))
