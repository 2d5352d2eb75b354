"""A teacher of several checkpoints: each ability from the model that has it; missing abilities are refused."""

import pytest
import torch

import dlip
from dlip.common.errors import MissingAbility, UserError
from dlip.models.composite import Composite
from dlip.models.features import Want
from dlip.vlm import VLM
from tests.helpers import shaken

ONLY = {"match": frozenset({"itc", "itm"}), "speak": frozenset({"lm"}), "answer": frozenset({"vqa"})}


@pytest.fixture
def parts(make_med):
    """Three models with different weights, the captioning one with a prompt and larger images."""
    changes = {"match": {}, "speak": dict(prompt_ids=(9, 8), image_size=24), "answer": dict(image_width=32)}
    meds = {name: make_med(seed, **changes[name]) for seed, name in enumerate(ONLY)}
    for name, med in meds.items():
        med.abilities = ONLY[name]
    return meds


def test_each_ability_and_source_has_its_model(parts):
    composite = Composite([parts["speak"], parts["match"], parts["answer"]])
    assert composite.model_for("itm") is parts["match"] and composite.model_for("lm") is parts["speak"]
    assert composite.model_for("vqa") is parts["answer"] and composite.model_for_states("image") is parts["speak"]
    assert (
        composite.model_for_states("text") is composite.model_for_states("fusion") is parts["match"]
        and composite.model_for_states("decoder") is parts["speak"]
    )
    assert Composite([parts["answer"], parts["speak"]]).model_for_states("fusion") is parts["answer"]
    assert (
        Composite([parts["answer"], parts["match"]]).model_for_states("fusion") is parts["match"]
    )  # in whatever order
    assert composite.config.prompt_ids == (9, 8) and composite.config.image_size == 24


def test_features_equal_those_of_the_members(parts, make_batch):
    composite, batch = Composite([parts["speak"], parts["match"], parts["answer"]]), make_batch(pixels=24)
    layers = {("image", "states"): (-1,), ("text", "states"): (-1,), ("fusion", "cross"): (-1,),
              ("decoder", "states"): (0, -1)}  # fmt: skip
    want, pairs = Want(frozenset({"itc", "itm", "lm", "vqa"}), layers), (torch.arange(5), torch.arange(5))
    with torch.no_grad():
        out = composite.eval().features(batch, want, pairs)
        alone = {
            name: med.features(batch, Want(want.abilities & ONLY[name], layers), pairs) for name, med in parts.items()
        }
    for task, owner in {"itc": "match", "itm": "match", "lm": "speak", "vqa": "answer"}.items():
        assert torch.equal(out.logits[task], alone[owner].logits[task])
    assert torch.equal(out.states("image"), alone["speak"].states("image"))
    assert not torch.equal(out.states("image")[:, :5], alone["match"].states("image")[:, :5])
    assert torch.equal(out.states("text"), alone["match"].states("text"))
    assert torch.equal(out.maps("fusion", "cross"), alone["match"].maps("fusion", "cross"))
    for layer in (0, -1):
        assert torch.equal(out.states("decoder", layer), alone["speak"].states("decoder", layer))
    assert torch.equal(out.decoder_mask, alone["speak"].decoder_mask) and out.temp is parts["match"].temp
    with pytest.raises(ValueError, match="several image encoders"):
        composite(batch, want, pairs, image=torch.zeros(1))


def test_missing_abilities_are_refused(parts):
    composite = Composite([parts["match"], parts["speak"]])
    assert composite.model_for("lm") is parts["speak"] is composite.model_for_states("decoder")
    with pytest.raises(MissingAbility, match="cannot answer questions"):
        composite.model_for("vqa")
    with pytest.raises(MissingAbility, match="cannot write captions"):
        parts["match"].model_for_states("decoder")
    assert parts["answer"].model_for_states("fusion") is parts["answer"]


# --- by name, in training and in use ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def names(tiny, tmp_path_factory):
    """Two folders: a model that only matches, and another that only writes."""
    folder, out = tmp_path_factory.mktemp("parts"), {}
    for seed, name in enumerate(("match", "speak")):
        med, tokenizer = type(tiny.med)(tiny.med.config), tiny.tokenizer
        torch.manual_seed(seed)
        shaken(med, 0.2)
        med.abilities = ONLY[name]
        VLM(med, tokenizer).save(folder / name)
        out[name] = str(folder / name)
    return out


def test_composite_by_name_equals_its_members(names, scenes):
    both, images = dlip.load(f"{names['match']}+{names['speak']}"), [scenes[i].image for i in range(3)]
    texts = [scenes[i].captions[0] for i in range(3)]
    match, speak = dlip.load(names["match"]), dlip.load(names["speak"])
    assert torch.equal(both.match(images, texts), match.match(images, texts))
    assert torch.equal(both.similarity(images, texts), match.similarity(images, texts))
    assert both.caption(images) == speak.caption(images)
    with pytest.raises(MissingAbility):
        both.answer(images, texts)


def test_each_member_reads_texts_in_its_own_vocabulary(names, scenes):
    both, images = dlip.load(f"{names['match']}+scenes/student"), [scenes[i].image for i in range(3)]
    match, other, item = dlip.load(names["match"]), dlip.load("scenes/student"), scenes[0]
    assert match.tokenizer.fast.get_vocab() != other.tokenizer.fast.get_vocab()
    assert both.tokenizer is both.med.meds[0].tokenizer and not both.med.meds[1].reads(both.tokenizer.vocabulary)
    captions = [scenes[i].captions[0] for i in range(3)]
    assert torch.equal(both.similarity(images, captions), match.similarity(images, captions))
    assert torch.equal(both.match(images, captions), match.match(images, captions))
    assert both.caption(images) == other.caption(images)
    assert both.answer([item.image], [item.questions[0].text]) == other.answer([item.image], [item.questions[0].text])
    assert both.med.config.prompt_ids == () and both.med.config.vocab_size == match.med.config.vocab_size


def test_is_not_saved_as_one_model(parts, tiny, tmp_path):
    with pytest.raises(UserError, match="save each by itself"):
        VLM(Composite([parts["speak"], parts["match"]]), tiny.tokenizer).save(tmp_path / "both")
    assert not list(tmp_path.iterdir())
