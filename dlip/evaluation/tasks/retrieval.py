"""Retrieval of captions by image (TR) and of images by caption (IR): ITC, then re-ranking of the best candidates.

Source: Li et al., BLIP (arXiv 2201.12086), section 5.1. BLIP adds ITM's match logit to ITC's cosine. Beside it stands
the sum of ITC's logit and ITM's log-odds ("joint"): as ITM's negatives are drawn by the softmax of ITC's logits
(`hard_negatives`), its log-odds estimate how much more probable a pair is than by ITC.

A model without ITM can re-rank by its caption decoder: ITC's logit plus log p(caption | image) - log p(caption), as in
Lin et al., Revisiting the Role of Language Priors in Vision-Language Models (arXiv 2306.01879).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
    """One direction of retrieval, of Q queries."""

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
    ir: Direction
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

    k: candidates of each query that are re-ranked, by default 16 for the built-in scenes, else 128 (BLIP's number for
    Flickr30k; it takes 256 for COCO); 0 keeps ITC's order, as for a model without ITM. rerank: by ITM, or by the
    caption decoder, where p(caption) is its mean over the caption's own candidates. Raises MetricUnavailable where
    there are no captions, and MissingAbility for a model without ITC, or without the decoder that `rerank` names.
    """
    if rerank == "itm" and "itm" not in model.abilities:
        k = 0
    elif k is None:
        k = 16 if dataset.has_scenes else 128
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
    if free_bytes < 0:
        kept = (states for _, _, states in encoded(model, dataset, reranker, batch_size, False))

    images, texts = torch.cat(vectors), embed_texts(model, captions)
    image_id, caption_image = torch.tensor(image_id), torch.tensor(caption_image)
    caption_id = image_id[caption_image]
    ids = image_id.to(texts.device), caption_id.to(texts.device)
    tr, ir = nearest(images, texts, *ids, k), nearest(texts, images, *ids[::-1], k)
    tr_logits, ir_logits = rerank_candidates(
        model,
        model.text_ids(captions, reranker),
        kept,
        tr.candidates,
        ir.candidates,
        reranker,
        subrange(progress, 0.1, 1),
    )
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


def rerank_candidates(
    model: Measured,
    texts: tuple[Tensor, Tensor],
    states: Iterable[Tensor],
    tr: Tensor,
    ir: Tensor,
    reranker: Reranker | None,
    progress: Progress,
) -> tuple[Tensor, Tensor]:
    """`Measured.pair_logits` of images' candidate captions, [I, k, 2], and captions' candidate images, [T, k, 2].

    texts: ids and mask of the captions [T, L]. states: image states in batches [B, P+1, Di]. tr, ir: the candidates,
    [I, k] and [T, k]. A pair of both directions, or of equal texts, is computed once.
    """
    ids, mask, text = unique_texts(*texts)
    queries = [torch.arange(len(best)).repeat_interleave(best.shape[1]) for best in (tr, ir)]
    image, caption = torch.cat([queries[0], ir.flatten()]), torch.cat([tr.flatten(), queries[1]])
    pairs, place = (image * len(text) + text.cpu()[caption]).unique(return_inverse=True)
    texts_of_images = (pairs % len(text)).split((pairs // len(text)).bincount(minlength=len(tr)).tolist())
    logits, texts_of_next = [torch.zeros(0, 2)], iter(texts_of_images)
    with counter(len(tr), "retrieval: re-ranking", progress) as update:
        for batch in states if len(pairs) else ():
            for image in batch.to(ids.device).split(1):
                own = next(texts_of_next).to(ids.device)
                logits.append(model.pair_logits(image, ids[own], mask[own], reranker))
                update(1)
    logits = torch.cat(logits)[place]
    return logits[: tr.numel()].view(*tr.shape, 2), logits[tr.numel() :].view(*ir.shape, 2)


def score(result: RetrievalResult) -> TaskResult:
    """Recalls in percent: "tr@1", "tr@5" ... "ir@10" re-ranked, "joint_tr@1" ... "joint_ir@10" by `joint_rank`,
    "itc_tr@1" ... "itc_ir@10" by ITC alone.

    An image is matched by any of its captions, a caption by its image. Items "tr", a row for each image, and "ir", for
    each caption, hold the ranks, counted from 0.
    """
    tr, ir, ids = result.tr, result.ir, result.image_id.tolist()
    ranks = {"tr": tr.rank, "ir": ir.rank, "joint_tr": tr.joint_rank, "joint_ir": ir.joint_rank}
    ranks |= {"itc_tr": tr.nearest.rank, "itc_ir": ir.nearest.rank}
    metrics = {f"{name}@{n}": percent(rank < n) for name, rank in ranks.items() for n in RECALLS}
    images = zip(ids, tr.rank.tolist(), tr.nearest.rank.tolist(), strict=True)
    by_caption = (rank.tolist() for rank in (result.caption_image, ir.rank, ir.joint_rank, ir.nearest.rank))
    captions = zip(result.captions, *by_caption, strict=True)
    items = {
        "tr": [dict(image_id=i, rank=rank, itc_rank=itc) for i, rank, itc in images],
        "ir": [
            dict(image=i, image_id=ids[i], caption=text, rank=rank, joint_rank=joint, itc_rank=itc)
            for text, i, rank, joint, itc in captions
        ],
    }
    return TaskResult(metrics, items)
