"""Ranks against a stable sort and figures counted by hand, and the gallery searched in pieces."""

import pytest
import torch

from dlip.evaluation.tasks import ranking
from dlip.evaluation.tasks.ranking import Nearest, nearest, ranks, reranked
from tests.helpers import reference_rank


def test_ranks_equal_those_of_a_sort():
    torch.manual_seed(0)
    scores = torch.randn(50, 30)
    own = torch.rand(50, 30) < 0.1
    own[:, 3] = True
    rows = zip(scores.tolist(), own.tolist(), strict=True)
    assert ranks(scores, own).tolist() == [reference_rank(*row) for row in rows]


def test_ties_keep_their_order_and_nan_is_no_hit():
    own = torch.eye(4, dtype=torch.bool)
    assert ranks(torch.zeros(4, 4), own).tolist() == [0, 1, 2, 3]
    assert ranks(torch.full((4, 4), float("nan")), own).tolist() == [3, 3, 3, 3]
    broken = torch.eye(4)
    broken[0, 2] = float("nan")
    assert ranks(broken, own).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("k", [0, 3, 60])
def test_chunks_do_not_change_the_result(k, monkeypatch):
    torch.manual_seed(0)
    queries, gallery = torch.randn(30, 8), torch.randn(50, 8)
    of = torch.arange(30) % 10, torch.arange(50) % 10
    full = nearest(queries, gallery, *of, k)
    assert torch.equal(full.candidates, (queries @ gallery.T).topk(min(k, 50), 1).indices)
    monkeypatch.setattr(ranking, "CHUNK_SIMILARITIES", 120)  # two queries
    pieces = nearest(queries, gallery, *of, k)
    assert torch.equal(pieces.candidates, full.candidates) and torch.equal(pieces.rank, full.rank)
    torch.testing.assert_close(pieces.similarity, full.similarity)


def test_reranked_candidates_come_first():
    """Gallery of 9, 3 candidates: own ones among them, none of them, and one whose score is no number."""
    result = Nearest(torch.zeros(4, 3).long(), torch.zeros(4, 3), torch.tensor([2, 6, 0, 1]))
    scores = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 3.0], [0.5, 0.4, float("nan")], [0.1, 0.1, 0.1]])
    own = torch.tensor([[True, True, False], [False] * 3, [False, False, True], [False] * 3])
    assert reranked(result, scores, own, 9).tolist() == [1, 6, 8, 3]
