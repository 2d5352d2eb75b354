"""Retrieval of captions by picture (TR) and of pictures by caption (IR): ITC, then re-ranking by ITM.

Source: BLIP's evaluation (arXiv 2201.12086, section 5.1), where ITM scores again the k candidates that ITC
likes best.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from dlip.tasks.base import Outcome, Unavailable, batches, percent

RECALLS = (1, 5, 10)
TEXTS = 64  # texts that are encoded at once
BEHIND = -100.0  # added to the similarity of pairs that are no candidates


@dataclass
class Scores:
    """Scores of I pictures against T captions, the greater the better."""

    itc: Tensor
    """[I, T] cosine similarity."""
    tr: Tensor
    """[I, T] similarity, plus ITM's match logit for each picture's candidates, minus 100 for the others."""
    ir: Tensor
    """[T, I] the same with each caption's candidates."""
    image_id: Tensor
    """int64 [I]"""
    caption_id: Tensor
    """int64 [T]: the picture that a caption belongs to."""
    captions: list[str]


def run(vlm, dataset, k: int | None = None, batch_size: int = 64, progress: bool = True) -> Outcome:
    """Figures of `score` for the scores of `predict`."""
    return score(predict(vlm, dataset, k, batch_size, progress))


def predict(vlm, dataset, k: int | None = None, batch_size: int = 64, progress: bool = True) -> Scores:
    """Scores of every picture that has captions against every caption; in eval and inference mode.

    `k` candidates a query are re-ranked, by default 16 of the built-in scenes and BLIP's 128 elsewhere; 0
    leaves ITC's order. Raises Unavailable where there are no captions.
    """
    k = (16 if dataset.name == "scenes" else 128) if k is None else k
    med = vlm.med.able("itm")
    states, embeds, image_id, caption_id, captions = [], [], [], [], []
    for items in batches(dataset, batch_size, "retrieval: pictures", progress):
        items = [item for item in items if item.captions]
        if items:
            encoded = vlm.image_states((item.image for item in items), med)
            embeds.append(med.project_image(encoded))
            states.append(encoded.cpu())
        image_id += [item.image_id for item in items]
        caption_id += [item.image_id for item in items for _ in item.captions]
        captions += [caption for item in items for caption in item.captions]
    if not captions:
        raise Unavailable("the data have no captions")

    ids, mask = vlm.texts(captions)
    texts = embeds[0].new_empty(len(captions), embeds[0].shape[1])
    for rows in mask.sum(1).argsort().split(TEXTS):
        texts[rows] = med.project_text(med.encode_text(*trim(ids, mask, rows)))
    itc = (torch.cat(embeds) @ texts.T).float()  # [I, T]

    tr_wanted, ir_wanted = candidates(itc, k), candidates(itc.T, k).T  # [I, T]
    match = match_logits(med, ids, mask, torch.cat(states), tr_wanted | ir_wanted, progress)
    tr, ir = (itc + match.masked_fill(~wanted, BEHIND) for wanted in (tr_wanted, ir_wanted))
    return Scores(itc.cpu(), tr.cpu(), ir.T.cpu(), torch.tensor(image_id), torch.tensor(caption_id), captions)


def trim(ids: Tensor, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Some of the padded texts [N, T], with no more pads than they need."""
    longest = mask[rows].sum(1).max()
    return ids[rows, :longest], mask[rows, :longest]


def candidates(similarity: Tensor, k: int) -> Tensor:
    """Where each row's k most similar columns are, bool [Q, N]."""
    top = similarity.topk(min(k, similarity.shape[1]), 1).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(1, top, True)


def match_logits(med, ids: Tensor, mask: Tensor, states: Tensor, wanted: Tensor, progress: bool) -> Tensor:
    """ITM's match logit of the wanted pairs [I, T], else 0; a picture's texts of a length go together."""
    logits = torch.zeros(wanted.shape, device=wanted.device)
    lengths = mask.sum(1)
    pictures = wanted.any(1).nonzero().flatten().tolist()
    for i in tqdm(pictures, desc="retrieval: re-ranking", unit="picture", disable=not progress):
        texts = wanted[i].nonzero().squeeze(1)
        picture = states[i : i + 1].to(ids.device)
        for rows in texts[lengths[texts].argsort()].split(TEXTS):
            logits[i, rows] = med.match_logits(med.fuse(*trim(ids, mask, rows), picture))[:, 1].float()
    return logits


def score(scores: Scores) -> Outcome:
    """Recalls in percent: "tr@1", "tr@5" ... "ir@10" re-ranked, "itc_tr@1" ... "itc_ir@10" by ITC alone.

    A picture is answered by any of its own captions, a caption by its own picture. Rows "tr", one a picture,
    and "ir", one a caption, hold the ranks, counted from 0.
    """
    own = scores.image_id[:, None] == scores.caption_id  # [I, T]
    found = {"tr": ranks(scores.tr, own), "ir": ranks(scores.ir, own.T)}
    found |= {"itc_tr": ranks(scores.itc, own), "itc_ir": ranks(scores.itc.T, own.T)}
    figures = {f"{name}@{n}": percent(rank < n) for name, rank in found.items() for n in RECALLS}
    found = {name: rank.tolist() for name, rank in found.items()}
    pictures = zip(scores.image_id.tolist(), found["tr"], found["itc_tr"], strict=True)
    captions = zip(scores.caption_id.tolist(), scores.captions, found["ir"], found["itc_ir"], strict=True)
    rows = {
        "tr": [dict(image_id=i, rank=rank, itc_rank=itc) for i, rank, itc in pictures],
        "ir": [dict(image_id=i, caption=text, rank=rank, itc_rank=itc) for i, text, rank, itc in captions],
    }
    return Outcome(figures, rows)


def ranks(scores: Tensor, own: Tensor) -> Tensor:
    """How many wrong ones come before each query's best own one, int64 [Q]; scores [Q, N], own bool [Q, N].

    Equal scores keep their order, as in a stable sort, and what is no number comes first, so that neither a
    collapsed nor a diverged model has hits to show.
    """
    best, place = scores.masked_fill(~own, float("-inf")).max(1, keepdim=True)
    later = torch.arange(scores.shape[1]) > place
    behind = (scores < best) | ((scores == best) & later)
    return (~(behind | own)).sum(1)
