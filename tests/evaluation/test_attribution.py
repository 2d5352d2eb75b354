"""Attributions add up, point at what a score comes from, and can be watched and stopped."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
import torch.nn.functional as F

import dlip.models.med
from dlip.data.batch import Batch, squares
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.attribution import Score, grad_cam, integrated_gradients, occlusion
from dlip.models.features import Trace, Want
from dlip.models.med import Med
from dlip.vlm import VLM

METHODS = (integrated_gradients, partial(occlusion, window=16, stride=16), grad_cam)


@pytest.fixture(scope="module")
def student() -> VLM:
    return VLM.load("scenes/student")


@pytest.fixture(scope="module")
def item():
    return Scenes("test")[3]


# --- what is explained ------------------------------------------------------------------------------------------------


def test_match_score_is_the_log_odds(student, item):
    texts = [item.captions[0], "a small red star above a blue circle"]
    odds = torch.stack([Score(student, text)(Score(student, text).pixels(item.image))[0] for text in texts])
    torch.testing.assert_close(odds.sigmoid(), student.match([item.image] * 2, texts))


@pytest.mark.parametrize("prompt", [(), (9, 10)])
def test_word_scores_add_up_to_the_captions(tiny, scenes, prompt):
    torch.manual_seed(0)
    vlm = VLM(Med(replace(tiny.med.config, prompt_ids=prompt)), tiny.tokenizer)
    text, image = "a large red star above a cross", scenes[0].image
    batch = Batch(squares([image], vlm.image_size), torch.zeros(1), *vlm.tokenize([text]))
    with torch.no_grad():
        said = vlm.med.eval()(batch, Want(frozenset({"lm"})))
        words = [Score(vlm, text, i)(Score(vlm, text).pixels(image))[0] for i in range(len(text.split()))]
    learned = said.labels["lm"][0] >= 0
    full = said.logits["lm"][0].log_softmax(-1)[learned].gather(1, said.labels["lm"][0, learned, None]).squeeze(1)
    torch.testing.assert_close(sum(words), full[:-1].sum())  # the last is [SEP]


# --- the methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [None, 2])
def test_integrated_gradients_add_up_to_the_score(student, item, word):
    """Completeness: their sum is what the picture scores above a plain one."""
    score = Score(student, item.captions[0], word)
    pixels = score.pixels(item.image)
    with torch.no_grad():
        risen = (score(pixels) - score(torch.zeros_like(pixels))).item()
    result = integrated_gradients(score, item.image, steps=100)
    assert result.shape == (64, 64) and abs(risen) > 0.5
    assert result.sum().item() == pytest.approx(risen, rel=1e-3)


def test_occlusion_averages_overlapping_squares(student, item):
    score = Score(student, item.captions[0])
    pixels = score.pixels(item.image).expand(9, -1, -1, -1).clone()
    for hidden, (top, left) in zip(pixels, product((0, 16, 32), repeat=2), strict=True):
        hidden[:, top : top + 32, left : left + 32] = 0
    with torch.no_grad():
        costs = (score(score.pixels(item.image)) - score(pixels)).view(3, 3)
    result = occlusion(score, item.image, window=32, stride=16)
    expected = torch.stack([costs[0, 0], costs[0, :2].mean(), costs[0, 2], costs[:2, :2].mean(), costs[2, 2]])
    torch.testing.assert_close(result[[0, 0, 0, 20, 63], [0, 20, 63, 20, 63]], expected)


@pytest.mark.parametrize("word", [None, 2])
def test_grad_cam_against_finite_differences(student, item, word, monkeypatch):
    """The gradient counted from differences: a row for each head and patch, its attention a little greater."""
    score, source = Score(student, item.captions[0], word), "fusion" if word is None else "decoder"
    query = 0 if word is None else score.pool[word].argmax() - 1  # the first token; the step before the word
    more = torch.zeros(4 * 64, 4, len(score.ids[0]), 65)
    more[range(256), torch.arange(256) // 64, query, 1 + torch.arange(256) % 64] = 0.02
    attend = dlip.models.med.attend

    def attend_more(q, k, v, mask, causal, want_map, sign=1.0):
        out, probs = attend(q, k, v, mask, causal, want_map)
        return (out + sign * (more @ v).transpose(1, 2).flatten(2) if want_map else out), probs

    def seen() -> tuple[torch.Tensor, torch.Tensor]:
        trace = Trace.of(student.med.config, source, "cross")
        with torch.no_grad():
            return score(score.pixels(item.image).expand(256, -1, -1, -1), trace), trace.get("cross")[0]

    _, probs = seen()
    monkeypatch.setattr(dlip.models.med, "attend", attend_more)
    above, _ = seen()
    monkeypatch.setattr(dlip.models.med, "attend", partial(attend_more, sign=-1.0))
    below, _ = seen()
    monkeypatch.undo()
    slope = ((above - below) / 0.04).view(4, 64)
    cam = (probs[:, query, 1:] * slope.clamp(min=0)).mean(0).view(1, 1, 8, 8)
    expected = F.interpolate(cam, (64, 64), mode="bilinear", align_corners=False)[0, 0]
    result = grad_cam(score, item.image)
    assert result.shape == (64, 64) and result.max() > 0
    torch.testing.assert_close(result, expected, atol=0.02 * result.max().item(), rtol=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_progress_rises_to_one_and_its_exception_stops_the_work(student, item, method):
    score, shares = Score(student, item.captions[0]), []
    method(score, item.image, progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0
    if method is not grad_cam:
        assert shares[0] < 0.5

    def stop(share: float):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method(score, item.image, progress=stop)
    assert all(parameter.grad is None for parameter in student.med.parameters())
