"""Ranks of each query's relevant items in a gallery: by similarity, then with the best candidates scored again.

Similarities are computed for a chunk of queries at a time, so that memory does not grow with their number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_SIMILARITIES = 1 << 24
"""Similarities in memory at once. With fewer, the product with a large gallery would have too few rows to be fast."""


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
    chunks = []
    for rows in torch.arange(len(queries), device=queries.device).split(max(1, CHUNK_SIMILARITIES // len(gallery))):
        similarity = (queries[rows] @ gallery.T).float()  # [q, G]
        best = similarity.topk(min(k, len(gallery)), 1)
        rank = ranks(similarity, query_of[rows, None] == gallery_of)
        chunks.append((best.indices.cpu(), best.values.cpu(), rank.cpu()))
    return Nearest(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))


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
