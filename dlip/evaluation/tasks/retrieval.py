"""Retrieval of captions by image (TR) and of images by caption (IR): ITC, then re-ranking of the best candidates.

Source: Li et al., BLIP (arXiv 2201.12086), section 5.1. BLIP adds ITM's match logit to ITC's cosine. Beside it stands
the sum of ITC's logit and ITM's log-odds ("joint"): as ITM's negatives are drawn by the softmax of ITC's logits
(`hard_negatives`), its log-odds estimate how much more probable a pair is than by ITC.

A model without ITM can re-rank by its caption decoder: ITC's logit plus log p(caption | image) - log p(caption), as in
Lin et al., Revisiting the Role of Language Priors in Vision-Language Models (arXiv 2306.01879).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dlip.data.batch import Example
from dlip.evaluation.tasks.base import MetricUnavailable, Progress, TaskResult, batches, counter, percent, subrange
from dlip.evaluation.tasks.ranking import Nearest, nearest, reranked
from dlip.models.protocol import Measured
from dlip.models.tasks import Reranker

RECALLS = (1, 5, 10)
TEXT_BATCH = 64
MAX_STATE_BYTES = 1 << 30
"""Image states kept in memory for re-ranking; if they are more, the images are encoded a second time."""


@dataclass
class Direction:
    """Result of one direction of retrieval."""

    nearest: Nearest
    """By ITC's cosine alone."""
    scores: Tensor
    """[Q, k]: the candidates' cosine plus ITM's match logit; by the decoder, as for `joint_rank`."""
    rank: Tensor
    """int64 [Q]: number of irrelevant items before the best relevant one, candidates ordered by `scores`."""
    joint_rank: Tensor
    """int64 [Q]: the same, candidates ordered by ITC's logit plus ITM's log-odds, or the decoder's log-ratio."""


@dataclass
class RetrievalResult:
    """Both directions of retrieval over I images and T captions."""

    tr: Direction
    """Captions by image."""
    ir: Direction
    """Images by caption."""
    image_id: Tensor
    """int64 [I]"""
    caption_image: Tensor
    """int64 [T]: index of the image that each caption belongs to."""
    captions: list[str]


def run(
    model: Measured,
    dataset,
    k: int | None = None,
    rerank: Reranker = "itm",
    batch_size: int = 64,
    progress: Progress = True,
) -> TaskResult:
    """Recalls of `score`, with a note where the candidates were not re-ranked by ITM."""
    result = score(predict(model, dataset, k, rerank, batch_size, progress))
    if k == 0:
        result.notes["tr@1"] = "by ITC alone, as no candidates are re-ranked"
    elif rerank == "decoder":
        result.notes["tr@1"] = "re-ranked by the caption decoder"
    elif "itm" not in model.abilities:
        result.notes["tr@1"] = "by ITC alone, as the model was not trained with ITM"
    return result


def candidates(k: int | None, dataset, abilities: frozenset[str], rerank: Reranker = "itm") -> int:
    """Candidates of each query that are re-ranked: k, by default 16 for the built-in scenes, else 128.

    128 is BLIP's number for Flickr30k; it takes 256 for COCO. 0 by ITM for a model that has none among its abilities.
    """
    if rerank == "itm" and "itm" not in abilities:
        return 0
    return (16 if dataset.has_scenes else 128) if k is None else k


@torch.inference_mode()
def predict(
    model: Measured,
    dataset,
    k: int | None = None,
    rerank: Reranker = "itm",
    batch_size: int = 64,
    progress: Progress = True,
) -> RetrievalResult:
    """Rank all captions for each image that has captions, and all such images for each caption. Needs eval mode.

    k: as in `candidates`; 0 keeps ITC's order. rerank: by ITM, or by the caption decoder, where p(caption) is its mean
    over the caption's own candidates. Raises MetricUnavailable where there are no captions, and MissingAbility for a
    model without ITC, or without the decoder that `rerank` names.
    """
    k = candidates(k, dataset, model.abilities, rerank)
    reranker = rerank if k else None
    vectors, image_id, caption_image, captions = [], [], [], []
    kept, free_bytes = [], MAX_STATE_BYTES if k else 0  # states for re-ranking
    for items, part, states in encoded(model, dataset, reranker, batch_size, subrange(progress, 0, 0.1)):
        vectors.append(part)
        free_bytes -= states.nbytes
        if free_bytes >= 0:
            kept.append(states.cpu())
        else:
            kept.clear()
        caption_image += [i for i, item in enumerate(items, len(image_id)) for _ in item.captions]
        image_id += [item.image_id for item in items]
        captions += [caption for item in items for caption in item.captions]
    if not captions:
        raise MetricUnavailable("the data have no captions")

    images, image_id, caption_image = torch.cat(vectors), torch.tensor(image_id), torch.tensor(caption_image)
    caption_id, texts = image_id[caption_image], embed_texts(model, captions)
    ids = image_id.to(texts.device), caption_id.to(texts.device)
    tr, ir = nearest(images, texts, *ids, k), nearest(texts, images, *ids[::-1], k)

    ids, mask, text = unique_texts(*model.text_ids(captions, reranker))
    if free_bytes < 0:
        kept = (states for _, _, states in encoded(model, dataset, reranker, batch_size, False))
    match = partial(pair_logits, model, ids, mask, kept, reranker=reranker, progress=subrange(progress, 0.1, 1))
    tr_logits, ir_logits = candidate_logits(match, text.cpu(), tr.candidates, ir.candidates)
    if reranker == "decoder":
        typical = ir_logits[..., 1].logsumexp(1) - math.log(ir_logits.shape[1])  # log p(caption), [T]
        tr_logits[..., 0], ir_logits[..., 0] = typical[tr.candidates], typical[:, None]
    directions = []
    for best, logits, queries, gallery in (
        (tr, tr_logits, image_id, caption_id),
        (ir, ir_logits, caption_id, image_id),
    ):
        no_match, matching = logits.unbind(-1)
        relevant = queries[:, None] == gallery[best.candidates]
        joint = best.similarity / model.temperature + matching - no_match
        scores = best.similarity + matching if rerank == "itm" else joint
        ranks = [reranked(best, values, relevant, len(gallery)) for values in (scores, joint)]
        directions.append(Direction(best, scores, *ranks))
    return RetrievalResult(*directions, image_id, caption_image, captions)


def encoded(
    model: Measured, dataset, reranker: Reranker | None, batch_size: int, progress: Progress
) -> Iterator[tuple[list[Example], Tensor, Tensor]]:
    """Batches of the items that have captions, with their ITC vectors [B, E] and image states [B, P+1, Di]."""
    for items in batches(dataset, batch_size, "retrieval: images", progress):
        if items := [item for item in items if item.captions]:
            yield items, *model.encode([item.image for item in items], reranker)


def embed_texts(model: Measured, captions: list[str]) -> Tensor:
    """ITC vectors [T, E], in batches of about equal length."""
    ids, mask, text = unique_texts(*model.text_ids(captions))
    parts = mask.sum(1).argsort().split(TEXT_BATCH)
    vectors = torch.cat([model.embed_ids(ids[rows], mask[rows]) for rows in parts])
    return torch.empty_like(vectors).index_copy_(0, torch.cat(parts), vectors)[text]


def unique_texts(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Deduplicate padded texts [T, L]: ids and mask [U, L] of the unique ones, and the index of each text in them [T].

    Equal texts then get equal scores: encoded in batches of different lengths, they would differ by rounding.
    """
    rows, which = (2 * ids + mask).unique(dim=0, return_inverse=True)
    return rows // 2, rows % 2 == 1, which


def candidate_logits(
    match: Callable[[Tensor, Tensor], Tensor], text: Tensor, tr: Tensor, ir: Tensor
) -> tuple[Tensor, Tensor]:
    """ITM's logits of images' candidate captions, [I, k, 2], and of captions' candidate images, [T, k, 2].

    match: `pair_logits` of texts and counts. text: int64 [T], the unique text that each caption is. tr, ir: the
    candidates, [I, k] and [T, k]. A pair of both directions, or of equal texts, is computed once.
    """
    image, caption = (torch.cat(both) for both in zip(_pairs(tr), _pairs(ir)[::-1], strict=True))
    keys, place = (image * len(text) + text[caption]).unique(return_inverse=True)
    logits = match(keys % len(text), (keys // len(text)).bincount(minlength=len(tr)))[place]
    return logits[: tr.numel()].view(*tr.shape, 2), logits[tr.numel() :].view(*ir.shape, 2)


def _pairs(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [Q * k] and their candidates [Q * k]."""
    return torch.arange(len(candidates)).repeat_interleave(candidates.shape[1]), candidates.flatten()


def pair_logits(
    model: Measured,
    ids: Tensor,
    mask: Tensor,
    states: Iterable[Tensor],
    texts: Tensor,
    counts: Tensor,
    reranker: Reranker,
    progress: Progress,
) -> Tensor:
    """`Measured.pair_logits`, fp32 [P, 2], of P pairs: each image with its `texts`, int64 [P], in the order of images.

    ids, mask: the unique texts. states: image states in batches [B, P+1, Di]. counts: number of texts of each image.
    """
    logits, texts_of_images = [torch.zeros(0, 2)], iter(texts.split(counts.tolist()))
    with counter(len(counts), "retrieval: re-ranking", progress) as update:
        for batch in states if len(texts) else ():
            for image in batch.to(ids.device).split(1):
                own = next(texts_of_images).to(ids.device)
                logits.append(model.pair_logits(image, ids[own], mask[own], reranker))
                update(1)
    return torch.cat(logits)


def score(result: RetrievalResult) -> TaskResult:
    """Recalls in percent: "tr@1", "tr@5" ... "ir@10" re-ranked, "joint_tr@1" ... "joint_ir@10" by `joint_rank`,
    "itc_tr@1" ... "itc_ir@10" by ITC alone.

    An image is matched by any of its captions, a caption by its image. Items "tr", a row for each image, and "ir", for
    each caption, hold the ranks, counted from 0.
    """
    ranks = {"tr": result.tr.rank, "ir": result.ir.rank}
    ranks |= {"joint_tr": result.tr.joint_rank, "joint_ir": result.ir.joint_rank}
    ranks |= {"itc_tr": result.tr.nearest.rank, "itc_ir": result.ir.nearest.rank}
    metrics = {f"{name}@{n}": percent(rank < n) for name, rank in ranks.items() for n in RECALLS}
    ranks = {name: rank.tolist() for name, rank in ranks.items()}
    ids = result.image_id.tolist()
    images = zip(ids, ranks["tr"], ranks["itc_tr"], strict=True)
    by_caption = (ranks[name] for name in ("ir", "joint_ir", "itc_ir"))
    captions = zip(result.caption_image.tolist(), result.captions, *by_caption, strict=True)
    items = {
        "tr": [dict(image_id=i, rank=rank, itc_rank=itc) for i, rank, itc in images],
        "ir": [
            dict(image=i, image_id=ids[i], caption=text, rank=rank, joint_rank=joint, itc_rank=itc)
            for i, text, rank, joint, itc in captions
        ],
    }
    return TaskResult(metrics, items)
