"""Ranks of each query's relevant items in a gallery: by similarity, then with the best candidates scored again.

Similarities are computed for a chunk of queries at a time, so that memory does not grow with their number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_SIMILARITIES = 1 << 24
"""Similarities in memory at once. With fewer, the product with a large gallery would have too few rows to be fast."""
CHUNK_COLUMNS = 1 << 16
"""Columns of them compared at once. The results of more would be allocated anew each time."""


@dataclass
class Nearest:
    """What Q queries are nearest to in a gallery of G items."""

    candidates: Tensor
    """int64 [Q, k]: the most similar items, the best first."""
    similarity: Tensor
    """[Q, k]: their similarities."""
    rank: Tensor
    """int64 [Q]: `ranks` in the whole gallery."""


def nearest(queries: Tensor, gallery: Tensor, query_of: Tensor, gallery_of: Tensor, k: int) -> Nearest:
    """Nearest items of queries [Q, E] in a gallery [G, E], by dot product.

    query_of, gallery_of: image ids, int64 [Q] and [G]; items of the same id are relevant.
    """
    chunks, relevant_items = [], RelevantItems(query_of, gallery_of)
    finite = queries.isfinite().all() and gallery.isfinite().all()
    chunk_rows = torch.arange(len(queries), device=queries.device).split(max(1, CHUNK_SIMILARITIES // len(gallery)))
    buffer = queries.new_empty(len(chunk_rows[0]), len(gallery))  # allocating anew takes as long as the product
    for rows in chunk_rows:
        similarity = torch.mm(queries[rows], gallery.T, out=buffer[: len(rows)]).float()  # [q, G]
        best = similarity.topk(min(k, len(gallery)), 1)
        rank = relevant_items.ranks(similarity, rows) if finite else ranks(similarity, relevant_items.mask(rows))
        chunks.append((best.indices.cpu(), best.values.cpu(), rank.cpu()))
    return Nearest(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


class RelevantItems:
    """Which gallery items are relevant to each query, by position: a mask would be as large as all similarities."""

    def __init__(self, query_of: Tensor, gallery_of: Tensor):
        self.query_of, self.gallery_of = query_of, gallery_of
        ordered, self.order = gallery_of.sort(stable=True)
        self.first, self.end = (torch.searchsorted(ordered, query_of, right=right) for right in (False, True))

    def mask(self, rows: Tensor) -> Tensor:
        """bool [q, G] of some queries."""
        return self.query_of[rows, None] == self.gallery_of

    def ranks(self, scores: Tensor, rows: Tensor) -> Tensor:
        """`ranks` of some queries for finite scores [q, G]: by counting, except for ties with the best relevant one."""
        first, last = self.first[rows, None], self.end[rows, None] - 1
        width = max(1, int((last - first).max()) + 1)
        positions = self.order[(first + torch.arange(width, device=rows.device)).minimum(last)]  # [q, width], repeated
        best = scores.gather(1, positions).amax(1, keepdim=True)
        rank, ties = torch.zeros(2, len(scores), dtype=torch.int32, device=scores.device)
        for columns in scores.split(CHUNK_COLUMNS, 1):
            rank += (columns > best).sum(1, dtype=torch.int32)  # a sum in int64 is slow
            ties += (columns == best).sum(1, dtype=torch.int32)
        tied, rank = (ties != 1) | (first > last)[:, 0], rank.long()
        rank[tied] = ranks(scores[tied], self.mask(rows[tied]))
        return rank


def ranks(scores: Tensor, relevant: Tensor) -> Tensor:
    """Number of irrelevant items before each query's best relevant one, int64 [Q]; scores [Q, N], relevant bool [Q, N].

    Equal scores keep their order, as in a stable sort, and NaN comes first, so that neither a collapsed nor a diverged
    model scores hits.
    """
    best, place = scores.masked_fill(~relevant, float("-inf")).max(1, keepdim=True)
    later = torch.arange(scores.shape[1], device=scores.device) > place
    behind = (scores < best) | ((scores == best) & later)
    return (~(behind | relevant)).sum(1, dtype=torch.int32).long()


def reranked(nearest: Nearest, scores: Tensor, relevant: Tensor, size: int) -> Tensor:
    """`ranks` once the candidates, scored again [Q, k], come before the rest of the gallery of `size` items.

    relevant: bool [Q, k]. A query without a relevant candidate keeps its rank among the rest; one with NaN as the score
    of a relevant candidate ranks last.
    """
    if not scores.shape[1]:
        return nearest.rank
    rank = torch.where(relevant.any(1), ranks(scores, relevant), nearest.rank.maximum((~relevant).sum(1)))
    return rank.masked_fill((scores.isnan() & relevant).any(1), size - 1)
