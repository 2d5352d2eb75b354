"""Maps are those that the losses read, words are whole, and scores agree with counting by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dlip.common.errors import UserError
from dlip.data.batch import Batch, squares
from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.render import masks
from dlip.data.tokenizer import Tokenizer
from dlip.evaluation import attention_maps
from dlip.evaluation.attention_maps import (  # fmt: skip
    answer_maps,
    divergence,
    image_maps,
    jensen_shannon,
    mask_coverage,
    mass,
    measure,
    pointing,
    rollout,
    word_maps,
    word_objects,
    word_weights,
)
from dlip.models.config import scenes_size
from dlip.models.features import Trace, Want
from dlip.models.med import Med
from dlip.vlm import VLM
from tests.helpers import shaken


def changed(vlm: VLM, seed: int, **changes) -> VLM:
    """Another untrained model over the same words."""
    torch.manual_seed(seed)
    med = Med(replace(vlm.med.config, **changes))
    shaken(med, 0.3)
    return VLM(med, vlm.tokenizer, f"tiny {seed}")


def features(vlm: VLM, image, text: str):
    """What the losses read of one picture and caption."""
    batch = Batch(squares([image], vlm.image_size), torch.zeros(1), *vlm.tokenize([text]))
    with torch.no_grad():
        return vlm.med.eval()(batch, Want(layers={("fusion", "cross"): (-1,), ("decoder", "cross"): (-1,)}))


# --- words ------------------------------------------------------------------------------------------------------------


def test_word_maps_average_their_tokens():
    words = Tokenizer.train(["red star on it", "red star"], 40)  # "blue" is not among them: b ##l ##u ##e
    vlm = VLM(Med(scenes_size(32, 1, 1, vocab_size=len(words), max_text=9)), words)
    pool = word_weights(vlm, ["Red  star, (on)", "it - rats star star star star"], vlm.med)
    assert pool.shape == (2, 7, 9)
    assert pool[0, 0].nonzero().flatten().tolist() == [1]
    assert pool[0, 1].nonzero().flatten().tolist() == [2]  # without its comma
    assert pool[0, 2].nonzero().flatten().tolist() == [5]  # without its brackets
    assert pool[1, 1].nonzero().flatten().tolist() == [2]  # nothing but a mark
    assert pool[1, 2, 3:7].tolist() == [0.25] * 4
    assert pool[1, 3].nonzero().flatten().tolist() == [7]
    assert not pool[1, 4:].any() and not pool[0, 3:].any()  # cut off, and not there
    assert set(pool.sum(-1).flatten().tolist()) == {0.0, 1.0}


def test_maps_equal_those_of_the_losses(tiny, scenes):
    item = scenes[0]
    caption = item.captions[0]
    words = caption.split()
    maps = word_maps(tiny, item.image, caption)
    assert maps.words == words and maps.layers == (1,) and maps.maps.shape == (1, 4, len(words), 65)
    expected = features(tiny, item.image, caption).maps("fusion", "cross")[0]  # [H, T, 1+P]
    where = len(words) - 1
    full = word_weights(tiny, [caption], tiny.med)[0, where] > 0
    torch.testing.assert_close(maps.map(where, head=2), expected[2, full].mean(0))
    torch.testing.assert_close(maps.map(where), expected[:, full].mean((0, 1)))
    torch.testing.assert_close(maps.map(where, layer=1), maps.map(where))


def test_answer_maps_combine_question_maps(tiny, scenes):
    """What the answer's step gives to each token, times what that token gives to the picture, by the losses' maps."""
    vlm, question = changed(tiny, 3), scenes[0].questions[0]
    maps = answer_maps(vlm, scenes[0].image, question.text, "yes two")
    assert maps.words == ["yes", "two"]
    torch.testing.assert_close(maps.maps.sum(-1), torch.ones(1, 4, 2))
    med, (ids, mask), (said, _) = vlm.med.eval(), vlm.tokenize([question.text]), vlm.tokenize(["yes two"])
    with torch.no_grad():
        states = med.question_states(med.fuse(ids, mask, vlm.image_states([scenes[0].image])))
        trace = Trace({"cross": {-1: med.config.fusion_layers[-1]}})
        med.decode(said, states, mask, trace=trace)
    tokens = trace.get("cross")[0].mean(0)  # [A, T]: the steps that choose yes, two and the end
    read = features(vlm, scenes[0].image, question.text).maps("fusion", "cross")[0]  # [H, T, 1+P]
    torch.testing.assert_close(maps.map(0, head=2), tokens[0] @ read[2])
    torch.testing.assert_close(maps.map(1, head=2), tokens[1] @ read[2])
    with pytest.raises(UserError, match="no word"):
        answer_maps(vlm, scenes[0].image, question.text, " ")


@pytest.mark.parametrize("prompt", [(), (9, 10)])
def test_decoder_map_is_that_of_the_predicting_step(tiny, scenes, prompt):
    item, vlm = scenes[1], changed(tiny, 1, prompt_ids=prompt)
    caption = item.captions[2]
    expected = features(vlm, item.image, caption).maps("decoder", "cross")[0].mean(0)  # [prompt + T, 1+P]
    maps = word_maps(vlm, item.image, caption, "decoder")
    for word in (0, len(maps.words) - 1):
        tokens = word_weights(vlm, [caption], vlm.med)[0, word].nonzero().flatten()
        torch.testing.assert_close(maps.map(word), expected[tokens + len(prompt) - 1].mean(0))


def test_maps_are_distributions_and_invalid_choices_are_refused(tiny, scenes):
    maps = word_maps(tiny, scenes[0].image, "a red star")
    assert maps.patches(1).shape == (8, 8) and maps.patches(1).sum() == pytest.approx(1.0)
    assert maps.map(1).sum() == pytest.approx(1.0)
    over = maps.map(1)
    torch.testing.assert_close(maps.patches(1).flatten(), over[1:] / over[1:].sum())
    for choice, fault in (
        ((3,), "no word 3; choose one of 0, 1, 2"),
        ((0, 0), "no layer 0"),
        ((0, -1, 4), "no head 4"),
    ):
        with pytest.raises(UserError, match=fault):
            maps.map(*choice)
    with pytest.raises(UserError, match="has no word"):
        word_maps(tiny, scenes[0].image, "  ")


# --- the image encoder ------------------------------------------------------------------------------------------------


def test_image_maps_equal_those_of_the_encoder(tiny, scenes):
    image = scenes[0].image
    maps = image_maps(tiny, image)
    assert maps.maps.shape == (2, 4, 65, 65)
    batch = Batch(squares([image], tiny.image_size), torch.zeros(1), *tiny.tokenize(["a star"]))
    with torch.no_grad():
        expected = tiny.med.eval()(batch, Want(layers={("image", "self"): (0, -1)}))
    torch.testing.assert_close(maps.maps[0], expected.maps("image", "self", 0)[0])
    own = expected.maps("image", "self")[0, :, 0].mean(0)[1:]
    torch.testing.assert_close(maps.cls().flatten(), own / own.sum())
    assert maps.rollout().sum() == pytest.approx(1.0)
    with pytest.raises(UserError, match="no layer 2; choose one of 0, 1"):
        maps.cls(2)


def test_rollout_by_hand():
    first = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])  # two heads, their mean all halves
    second = torch.tensor([[[0.2, 0.8], [1.0, 0.0]], [[0.2, 0.8], [1.0, 0.0]]])
    # (A1 + I) / 2 = [[.75, .25], [.25, .75]]; (A2 + I) / 2 = [[.6, .4], [.5, .5]]; their product, the later on the left
    torch.testing.assert_close(rollout(torch.stack([first, second])), torch.tensor([[0.55, 0.45], [0.5, 0.5]]))
    equal = torch.full((3, 2, 4, 4), 0.25)
    torch.testing.assert_close(rollout(equal).sum(-1), torch.ones(4))


# --- scores by hand ---------------------------------------------------------------------------------------------------


def test_cover_counts_pixels():
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[0, :3, :3] = True  # a whole patch of a grid of two
    mask[0, 0, 3] = True  # and a ninth of the next
    mask[1, 5, 5] = True
    torch.testing.assert_close(mask_coverage(mask, 2)[0], torch.tensor([[1, 1 / 9], [0, 0]]))
    torch.testing.assert_close(mask_coverage(mask, 2)[1], torch.tensor([[0, 0], [0, 1 / 9]]))
    uneven = mask_coverage(mask, 4)  # patches of 1.5 pixels
    torch.testing.assert_close(uneven[0, 0], torch.tensor([1.0, 1.0, 1 / 1.5**2, 0.0]))
    torch.testing.assert_close(uneven.mean((1, 2)), mask.float().mean((1, 2)))  # the area stays


def test_pointing_and_mass_by_hand():
    over = torch.tensor([[[0.1, 0.2], [0.3, 0.4]], [[0.7, 0.1], [0.1, 0.1]]])
    covered = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[0.01, 0.0], [0.0, 1.0]]])
    assert pointing(over, covered).tolist() == [False, True]  # the tolerance is a patch
    assert mass(over, covered).tolist() == pytest.approx([0.1 + 0.1, 0.007 + 0.1])
    assert pointing(over[:, None], covered[None].expand(2, -1, -1, -1)).tolist() == [[False, True], [True, True]]


def test_pointing_of_a_map_that_is_not_finite_is_no_hit():
    assert not pointing(torch.full((2, 2), float("nan")), torch.ones(2, 2))


def test_measure_agrees_with_counting(tiny, scenes, monkeypatch):
    """Every word looks at one patch: where it is the object's own is counted here, word by word."""
    place = 14

    def stare(med, states, ids, mask, source, layers):
        maps = torch.zeros(len(ids), 4, ids.shape[1], 65)
        maps[..., 0], maps[..., 1 + place] = 0.5, 0.5  # [CLS] is left out
        return [maps]

    monkeypatch.setattr(attention_maps, "cross_attention_maps", stare)
    hits, under, others, areas, touched = [], [], [], [], []
    for i in range(5):
        scene = scenes.scene(i)
        shares = masks(scene).reshape(-1, 8, 8, 8, 8).mean((2, 4)).reshape(len(scene.objects), 64)
        for caption in scenes[i].captions:
            for o in word_objects(caption, scene).values():
                hits.append(shares[o, place] > 0)
                under.append(shares[o, place])
                others.append(np.mean([shares[p, place] > 0 for p in range(len(shares)) if p != o]))
                areas.append(shares[o].mean())
                touched.append((shares[o] > 0).mean())
    result = measure(tiny, scenes, limit=5)
    assert any(hits) and not all(hits)
    for source in ("fusion", "decoder"):
        assert result[source]["pointing"] == pytest.approx(100 * np.mean(hits))
        assert result[source]["mass"] == pytest.approx(100 * np.mean(under))
        assert result[source]["pointing_other"] == pytest.approx(100 * np.mean(others))
        assert "divergence" not in result[source]
    assert result["chance"] == pytest.approx({"pointing": 100 * np.mean(touched), "mass": 100 * np.mean(areas)})
    assert (result["images"], result["words"]) == (5, len(hits))


# --- two models -------------------------------------------------------------------------------------------------------


def test_jensen_shannon_by_hand():
    p, q = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.3, 0.7]]), torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.3, 0.7]])
    # H(3/4, 1/4) - H(1/2, 1/2) / 2 = 0.8113 - 0.5 bits
    assert jensen_shannon(p, q).tolist() == pytest.approx([1.0, 0.311278, 0.0], abs=1e-6)
    torch.testing.assert_close(jensen_shannon(p, q), jensen_shannon(q, p))


def test_divergence_is_symmetric_and_zero_for_equal_models(tiny, scenes):
    other = changed(tiny, 2, patch_size=16, text_layers=1, fusion_layers=(0,))
    assert divergence(tiny, tiny, scenes) == pytest.approx({"fusion": 0.0, "decoder": 0.0}, abs=1e-6)
    there = divergence(tiny, other, scenes)
    assert all(0.001 < bits < 1 for bits in there.values())
    assert there == pytest.approx(divergence(other, tiny, scenes))


def test_later_batches_are_scored_on_their_own_scenes(tiny, monkeypatch):
    scenes = Scenes("test", size=8)
    whole = attention_maps.measure(tiny, scenes)
    monkeypatch.setattr(attention_maps, "BATCH_IMAGES", 3)
    parts = attention_maps.measure(tiny, scenes)
    assert parts["words"] == whole["words"]
    for source in ("fusion", "decoder", "chance"):
        assert parts[source] == pytest.approx(whole[source], abs=1e-3)
