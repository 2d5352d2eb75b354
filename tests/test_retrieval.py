"""Retrieval against plain loops, and against figures counted by hand."""

from dataclasses import replace

import pytest
import torch

from dlip.tasks.base import Unavailable
from dlip.tasks.retrieval import Scores, candidates, predict, ranks, score


def brute_force_rank(scores: list[float], own: list[bool]) -> int:
    """The place of the first own answer, as a stable sort puts them."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [own[i] for i in order].index(True)


def test_ranks_are_those_of_a_sort():
    torch.manual_seed(0)
    scores = torch.randn(50, 30)
    own = torch.rand(50, 30) < 0.1
    own[:, 3] = True
    rows = zip(scores.tolist(), own.tolist(), strict=True)
    assert ranks(scores, own).tolist() == [brute_force_rank(*row) for row in rows]


def test_ties_keep_their_order_and_no_number_is_no_hit():
    own = torch.eye(4, dtype=torch.bool)
    assert ranks(torch.zeros(4, 4), own).tolist() == [0, 1, 2, 3]
    assert ranks(torch.full((4, 4), float("nan")), own).tolist() == [3, 3, 3, 3]
    broken = torch.eye(4)
    broken[0, 2] = float("nan")
    assert ranks(broken, own).tolist() == [1, 0, 0, 0]


def test_recalls_counted_by_hand():
    """Three pictures with two, one and three captions."""
    itc = torch.tensor([
        [0.1, 0.9, 0.8, 0.15, 0.3, 0.4],  # second caption first: hit at 1
        [0.9, 0.8, 0.1, 0.7, 0.6, 0.5],  # its one caption last: rank 5
        [0.5, 0.4, 0.3, 0.2, 0.1, 0.0],  # its first caption fourth: rank 3
    ])  # fmt: skip
    image_id, caption_id = torch.tensor([7, 8, 9]), torch.tensor([7, 7, 8, 9, 9, 9])
    scores = Scores(itc, itc, itc.T, image_id, caption_id, list("abcdef"))
    outcome = score(scores)
    assert [row["rank"] for row in outcome.rows["tr"]] == [0, 5, 3]
    assert [row["rank"] for row in outcome.rows["ir"]] == [2, 0, 2, 1, 2, 2]
    figures = outcome.figures
    assert figures["tr@1"] == pytest.approx(100 / 3) and figures["tr@5"] == pytest.approx(200 / 3)
    assert figures["tr@10"] == figures["ir@10"] == figures["ir@5"] == 100
    assert figures["ir@1"] == figures["itc_ir@1"] == pytest.approx(100 / 6)
    assert outcome.rows["ir"][3] == {"image_id": 9, "caption": "d", "rank": 1, "itc_rank": 1}


def test_two_items_of_one_picture_own_each_others_captions():
    itc = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.0, 0.0, 1.0]])
    scores = Scores(itc, itc, itc.T, torch.tensor([4, 4, 5]), torch.tensor([4, 4, 5]), list("abc"))
    assert score(scores).figures["tr@1"] == score(scores).figures["ir@1"] == 100


def test_candidates_are_each_rows_best():
    found = candidates(torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]]), 2)
    assert found.tolist() == [[True, False, True], [False, True, True]]
    assert candidates(torch.zeros(2, 3), 9).all() and not candidates(torch.zeros(2, 3), 0).any()


@torch.inference_mode()
def plain_scores(vlm, dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """ITC similarity, and ITM logits pair by pair, one text and one picture at a time: [I, T] each."""
    med = vlm.med.eval()
    captions = [caption for item in dataset for caption in item.captions]
    itc, itm = torch.zeros(len(dataset), len(captions)), torch.zeros(len(dataset), len(captions))
    for i, item in enumerate(dataset):
        picture = vlm.image_states([item.image])
        for t, caption in enumerate(captions):
            ids, mask = vlm.texts([caption])
            itc[i, t] = (med.project_image(picture) * med.project_text(med.encode_text(ids, mask))).sum()
            itm[i, t] = med.match_logits(med.fuse(ids, mask, picture))[0, 1]
    return itc, itm


@pytest.fixture(scope="module")
def plain(tiny, scenes):
    return plain_scores(tiny, scenes)


@torch.inference_mode()
def test_reranking_all_is_the_plain_procedure(tiny, scenes, plain):
    itc, itm = plain
    tiny.med.eval()
    found = predict(tiny, scenes, k=len(scenes) * 5, batch_size=3, progress=False)
    torch.testing.assert_close(found.itc, itc, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.tr, itc + itm, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.ir, (itc + itm).T, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_reranking_some_leaves_the_others_behind(tiny, scenes, plain):
    """BLIP's evaluation written as its loops: each query's k best get similarity + logit, the others 100 less."""
    itc, itm = plain
    tiny.med.eval()
    found = predict(tiny, scenes, k=3, progress=False)
    for mine, similarity, logits in ((found.tr, itc, itm), (found.ir, itc.T, itm.T)):
        for row, sims, itms in zip(mine, similarity, logits, strict=True):
            best, places = sims.topk(3)
            torch.testing.assert_close(row[places], best + itms[places], atol=1e-4, rtol=0)
            rest = [i for i in range(len(row)) if i not in places]
            torch.testing.assert_close(row[rest], sims[rest] - 100, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_without_candidates_the_order_is_that_of_itc(tiny, scenes):
    tiny.med.eval()
    figures = score(predict(tiny, scenes, k=0, progress=False)).figures
    assert all(figures[f"{way}@{n}"] == figures[f"itc_{way}@{n}"] for way in ("tr", "ir") for n in (1, 5, 10))


def test_a_pair_that_both_directions_ask_for_is_scored_once(tiny, scenes, monkeypatch):
    seen = []
    fuse = type(tiny.med).fuse
    monkeypatch.setattr(type(tiny.med), "fuse", lambda med, ids, *a: seen.append(len(ids)) or fuse(med, ids, *a))
    with torch.inference_mode():
        predict(tiny, scenes, k=len(scenes) * 5, progress=False)
    assert sum(seen) == 8 * 40


class Wordless:
    name, split = "wordless", "test"

    def __init__(self, dataset):
        self.items = [replace(item, captions=[]) for item in dataset]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def test_no_captions(tiny, scenes):
    with pytest.raises(Unavailable, match="no captions"):
        predict(tiny, Wordless(scenes), progress=False)
