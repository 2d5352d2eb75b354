"""Retrieval against BLIP's evaluation written as plain loops."""

import math
from dataclasses import replace

import pytest
import torch

from dlip.common.errors import MissingAbility
from dlip.evaluation.tasks import retrieval
from dlip.evaluation.tasks.base import MetricUnavailable
from dlip.evaluation.tasks.retrieval import predict, score
from tests.helpers import ListDataset, reference_rank


@torch.inference_mode()
def plain_scores(vlm, dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """ITC similarity [I, T], and ITM logits [I, T, 2] pair by pair, one text and one picture at a time."""
    med = vlm.med.eval()
    captions = [caption for item in dataset for caption in item.captions]
    itc, itm = torch.zeros(len(dataset), len(captions)), torch.zeros(len(dataset), len(captions), 2)
    for i, item in enumerate(dataset):
        image = vlm.image_states([item.image])
        for t, caption in enumerate(captions):
            ids, mask = vlm.tokenize([caption])
            itc[i, t] = (med.project_image(image) * med.project_text(med.encode_text(ids, mask))).sum()
            itm[i, t] = med.match_logits(med.fuse(ids, mask, image))[0]
    return itc, itm


@pytest.fixture(scope="module")
def plain(tiny, scenes):
    return plain_scores(tiny, scenes)


@pytest.mark.parametrize("k", [0, 1, 3, 8, 100])
@torch.inference_mode()
def test_retrieval_against_pairwise_scores(tiny, scenes, plain, k):
    """Each query's k best get similarity + logit, or the sum of log-odds; the others come after them."""
    tiny.med.eval()
    temperature = tiny.med.temp.item()
    result = predict(tiny, scenes, k=k, batch_size=3, progress=False)
    own = torch.arange(8)[:, None] == torch.arange(40) // 5
    ways = (result.tr, plain[0], plain[1], own), (result.ir, plain[0].T, plain[1].transpose(0, 1), own.T)
    for mine, similarity, logits, owned in ways:
        for q, (sims, itms, is_own) in enumerate(zip(similarity, logits, owned, strict=True)):
            best, places = sims.topk(min(k, len(sims)))
            assert mine.nearest.candidates[q].tolist() == places.tolist()
            torch.testing.assert_close(mine.nearest.similarity[q], best, atol=1e-5, rtol=0)
            no_match, match = itms[places].T
            torch.testing.assert_close(mine.scores[q], best + match, atol=1e-4, rtol=0)
            assert mine.nearest.rank[q] == reference_rank(sims.tolist(), is_own.tolist())
            for rank, scores in ((mine.rank, best + match), (mine.joint_rank, best / temperature + match - no_match)):
                ordered = (sims - 100).index_copy(0, places, scores)
                assert rank[q] == reference_rank(ordered.tolist(), is_own.tolist())


@torch.inference_mode()
def test_metrics_and_rows(tiny, scenes):
    tiny.med.eval()
    result = predict(tiny, scenes, k=3, progress=False)
    outcome = score(result)
    ranks = {"tr": result.tr.rank, "ir": result.ir.rank, "joint_tr": result.tr.joint_rank}
    for name, rank in (*ranks.items(), ("itc_ir", result.ir.nearest.rank)):
        for n in (1, 5, 10):
            assert outcome.metrics[f"{name}@{n}"] == pytest.approx(100 * sum(r < n for r in rank.tolist()) / len(rank))
    assert outcome.items["ir"][7] == {
        "image": 1, "image_id": scenes[1].image_id, "caption": scenes[1].captions[2], "rank": result.ir.rank[7].item(),
        "joint_rank": result.ir.joint_rank[7].item(), "itc_rank": result.ir.nearest.rank[7].item(),
    }  # fmt: skip
    assert [row["rank"] for row in outcome.items["tr"]] == result.tr.rank.tolist()


@torch.inference_mode()
def test_images_beyond_the_memory_limit_are_encoded_again(tiny, scenes, monkeypatch):
    tiny.med.eval()
    encode, encoded = type(tiny.med).encode_image, []
    monkeypatch.setattr(
        type(tiny.med), "encode_image", lambda med, pixels: encoded.append(len(pixels)) or encode(med, pixels)
    )
    kept = predict(tiny, scenes, k=3, batch_size=3, progress=False)
    monkeypatch.setattr(retrieval, "MAX_STATE_BYTES", 50_000)  # of two batches, not of three
    again = predict(tiny, scenes, k=3, batch_size=3, progress=False)
    assert encoded == [3, 3, 2] + 2 * [3, 3, 2]
    assert torch.equal(kept.tr.scores, again.tr.scores) and torch.equal(kept.ir.scores, again.ir.scores)


@torch.inference_mode()
def test_equal_texts_have_equal_scores(tiny, scenes, monkeypatch):
    """Whatever would be beside each of them in a batch."""
    monkeypatch.setattr(retrieval, "TEXT_BATCH", 3)
    alike = ListDataset(
        replace(item, captions=["a red star", *item.captions[:2], scenes[i % 2].captions[0]])
        for i, item in enumerate(scenes)
    )
    result = predict(tiny, alike, k=32, progress=False)
    for row, places in zip(result.tr.scores.tolist(), result.tr.nearest.candidates.tolist(), strict=True):
        said = {(result.captions[place], number) for number, place in zip(row, places, strict=True)}
        assert len(said) == len(set(result.captions)) < len(row)
    assert len({tuple(row) for row in result.ir.scores[::4].tolist()}) == 1  # "a red star", whosever it is


def test_model_without_itm_ranks_by_itc_with_a_note(tiny, scenes, monkeypatch):
    tiny.med.eval()
    plain = retrieval.run(tiny, scenes, k=0, progress=False)
    monkeypatch.setattr(tiny.med, "abilities", frozenset({"itc", "vqa"}), raising=False)
    result = retrieval.run(tiny, scenes, progress=False)
    assert result.metrics == plain.metrics and plain.notes["tr@1"] == "by ITC alone, as no candidates are re-ranked"
    assert result.notes["tr@1"] == "by ITC alone, as the model was not trained with ITM"
    monkeypatch.setattr(tiny.med, "abilities", frozenset({"lm"}))
    with pytest.raises(MissingAbility, match="cannot compare images with texts"):
        predict(tiny, scenes, progress=False)


def test_no_captions(tiny, scenes):
    with pytest.raises(MetricUnavailable, match="no captions"):
        predict(tiny, ListDataset(replace(item, captions=[]) for item in scenes), progress=False)


@torch.inference_mode()
def test_decoder_re_ranks_by_the_ratio_of_a_caption_with_its_image(tiny, scenes):
    """Against log-likelihoods token by token; p(caption) is the mean over the caption's candidates."""
    med, k = tiny.med.eval(), 3
    captions = [caption for item in scenes for caption in item.captions]
    said = torch.zeros(len(captions), len(scenes))
    for i, item in enumerate(scenes):
        image = tiny.image_states([item.image])
        for t, caption in enumerate(captions):
            ids, _ = tiny.tokenize([caption])
            chances = med.decode(ids, image)[0].log_softmax(-1)
            said[t, i] = sum(chances[place, token] for place, token in enumerate(ids[0, 1:].tolist()))
    result = predict(tiny, scenes, k=k, rerank="decoder", batch_size=3, progress=False)
    temperature, places = med.temp.item(), result.ir.nearest.candidates
    typical = said.gather(1, places).logsumexp(1) - math.log(k)
    expected = result.ir.nearest.similarity / temperature + said.gather(1, places) - typical[:, None]
    torch.testing.assert_close(result.ir.scores, expected, atol=1e-3, rtol=0)
    best = result.tr.nearest.candidates
    ratio = said[best, torch.arange(len(scenes))[:, None]] - typical[best]
    torch.testing.assert_close(result.tr.scores, result.tr.nearest.similarity / temperature + ratio, atol=1e-3, rtol=0)
    assert torch.equal(result.tr.rank, result.tr.joint_rank)
