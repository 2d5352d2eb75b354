"""Where each query's own answers stand among all: by similarity, then with the best candidates scored again.

Similarities are made for a piece of the queries at a time, so that memory does not grow with their number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PIECE = 1 << 24
"""Similarities that are held at once: of fewer, the product with a large gallery would have too few rows to be fast."""
COLUMNS = 1 << 16
"""Of them that are compared at once: what is made for more would be fresh memory each time."""


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
    found, owned = [], Owned(query_of, gallery_of)
    sound = queries.isfinite().all() and gallery.isfinite().all()
    pieces = torch.arange(len(queries), device=queries.device).split(max(1, PIECE // len(gallery)))
    held = queries.new_empty(len(pieces[0]), len(gallery))  # fresh memory takes as long as the product
    for rows in pieces:
        similarity = torch.mm(queries[rows], gallery.T, out=held[: len(rows)]).float()  # [q, G]
        best = similarity.topk(min(k, len(gallery)), 1)
        rank = owned.ranks(similarity, rows) if sound else ranks(similarity, owned.mask(rows))
        found.append((best.indices.cpu(), best.values.cpu(), rank.cpu()))
    return Nearest(*(torch.cat(parts) for parts in zip(*found, strict=True)))


class Owned:
    """What of a gallery each query owns, by places rather than as a mask, which is as large as all similarities."""

    def __init__(self, query_of: Tensor, gallery_of: Tensor):
        self.query_of, self.gallery_of = query_of, gallery_of
        ordered, self.order = gallery_of.sort(stable=True)
        self.first, self.end = (torch.searchsorted(ordered, query_of, right=right) for right in (False, True))

    def mask(self, rows: Tensor) -> Tensor:
        """bool [q, G] of some queries."""
        return self.query_of[rows, None] == self.gallery_of

    def ranks(self, scores: Tensor, rows: Tensor) -> Tensor:
        """`ranks` of some queries, scores [q, G] that are numbers: whoever has no equal is placed by counting."""
        first, last = self.first[rows, None], self.end[rows, None] - 1
        width = max(1, int((last - first).max()) + 1)
        places = self.order[(first + torch.arange(width, device=rows.device)).minimum(last)]  # [q, width], some twice
        best = scores.gather(1, places).amax(1, keepdim=True)
        rank, level = torch.zeros(2, len(scores), dtype=torch.int32, device=scores.device)
        for some in scores.split(COLUMNS, 1):
            rank += (some > best).sum(1, dtype=torch.int32)  # in int64 such a sum is slow
            level += (some == best).sum(1, dtype=torch.int32)
        others, rank = (level != 1) | (first > last)[:, 0], rank.long()
        rank[others] = ranks(scores[others], self.mask(rows[others]))
        return rank


def ranks(scores: Tensor, own: Tensor) -> Tensor:
    """How many wrong ones come before each query's best own one, int64 [Q]; scores [Q, N], own bool [Q, N].

    Equal scores keep their order, as in a stable sort, and what is no number comes first, so that neither a
    collapsed nor a diverged model has hits to show.
    """
    best, place = scores.masked_fill(~own, float("-inf")).max(1, keepdim=True)
    later = torch.arange(scores.shape[1], device=scores.device) > place
    behind = (scores < best) | ((scores == best) & later)
    return (~(behind | own)).sum(1, dtype=torch.int32).long()


def reranked(found: Nearest, scores: Tensor, own: Tensor, size: int) -> Tensor:
    """`ranks` where the candidates, scored again [Q, k], come before the rest of the gallery of `size`.

    A query without an own candidate stays where it was among the rest; one whose own score is no number is last.
    """
    if not scores.shape[1]:
        return found.rank
    rank = torch.where(own.any(1), ranks(scores, own), found.rank.maximum((~own).sum(1)))
    return rank.masked_fill((scores.isnan() & own).any(1), size - 1)
