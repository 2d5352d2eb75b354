"""Where each query's own answers stand among all: by similarity, then with the best candidates scored again.

Similarities are made for a piece of the queries at a time, so that memory does not grow with their number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 1 << 22
"""Similarities that are held at once."""


@dataclass
class Nearest:
    """What Q queries are nearest to, of a gallery of G."""

    candidates: Tensor
    """int64 [Q, k], the most similar first."""
    similarity: Tensor
    """[Q, k]"""
    rank: Tensor
    """int64 [Q]: `ranks` in the whole gallery."""


def nearest(queries: Tensor, gallery: Tensor, query_of: Tensor, gallery_of: Tensor, k: int) -> Nearest:
    """Vectors [Q, E] and [G, E]; what each is of, int64 [Q] and [G]: a query owns what is of the same."""
    found = []
    for rows in torch.arange(len(queries), device=queries.device).split(max(1, PIECE // len(gallery))):
        similarity = (queries[rows] @ gallery.T).float()  # [q, G]
        best = similarity.topk(min(k, len(gallery)), 1)
        rank = ranks(similarity, query_of[rows, None] == gallery_of)
        found.append((best.indices.cpu(), best.values.cpu(), rank.cpu()))
    return Nearest(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def ranks(scores: Tensor, own: Tensor) -> Tensor:
    """How many wrong ones come before each query's best own one, int64 [Q]; scores [Q, N], own bool [Q, N].

    Equal scores keep their order, as in a stable sort, and what is no number comes first, so that neither a
    collapsed nor a diverged model has hits to show.
    """
    best, place = scores.masked_fill(~own, float("-inf")).max(1, keepdim=True)
    later = torch.arange(scores.shape[1], device=scores.device) > place
    behind = (scores < best) | ((scores == best) & later)
    return (~(behind | own)).sum(1, dtype=torch.int32).long()  # in int64 such a sum is slow


def reranked(found: Nearest, scores: Tensor, own: Tensor, size: int) -> Tensor:
    """`ranks` where the candidates, scored again [Q, k], come before the rest of the gallery of `size`.

    A query without an own candidate stays where it was among the rest; one whose own score is no number is last.
    """
    if not scores.shape[1]:
        return found.rank
    rank = torch.where(own.any(1), ranks(scores, own), found.rank.maximum((~own).sum(1)))
    return rank.masked_fill((scores.isnan() & own).any(1), size - 1)
