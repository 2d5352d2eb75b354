"""Retrieval of captions by picture (TR) and of pictures by caption (IR): ITC, then re-ranking by ITM.

Source: BLIP's evaluation (arXiv 2201.12086, section 5.1), where ITM scores again the k candidates that ITC
likes best.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dlip.data.batch import Item
from dlip.evaluation.tasks.base import Outcome, Progress, Unavailable, batches, counted, percent, within
from dlip.evaluation.tasks.ranking import Nearest, nearest, reranked

RECALLS = (1, 5, 10)
TEXTS = 64  # texts that are read at once
KEPT = 1 << 30
"""Most bytes of pictures' states that are kept for re-ranking; of more the pictures are encoded a second time."""


@dataclass
class Direction:
    """What the queries of one direction find."""

    nearest: Nearest
    """By ITC's cosine."""
    scores: Tensor
    """[Q, k]: of the candidates, cosine plus ITM's match logit."""
    rank: Tensor
    """int64 [Q]: how many wrong ones come before the best own one once the candidates are ordered by `scores`."""


@dataclass
class Found:
    """Both directions of retrieval over I pictures and T captions."""

    tr: Direction
    """Captions by picture."""
    ir: Direction
    """Pictures by caption."""
    image_id: Tensor
    """int64 [I]"""
    caption_id: Tensor
    """int64 [T]: the picture that a caption belongs to."""
    captions: list[str]


def run(vlm, dataset, k: int | None = None, batch_size: int = 64, progress: Progress = True) -> Outcome:
    """Figures of `score` for what `predict` finds."""
    outcome = score(predict(vlm, dataset, k, batch_size, progress))
    if "itm" not in vlm.med.abilities or k == 0:
        why = "no candidates are re-ranked" if k == 0 else "the model has not learnt ITM"
        outcome.notes["tr@1"] = f"by ITC alone, as {why}"
    return outcome


@torch.inference_mode()
def predict(vlm, dataset, k: int | None = None, batch_size: int = 64, progress: Progress = True) -> Found:
    """What every picture that has captions finds among all captions, and the reverse; of a model in eval mode.

    `k` candidates a query are re-ranked, by default 16 of the built-in scenes and BLIP's 128 elsewhere; 0
    leaves ITC's order, as does a model that has not learnt ITM. Raises Unavailable where there are no captions, and
    MissingAbility where the model has not learnt ITC.
    """
    k = (16 if hasattr(dataset, "scene") else 128) if k is None else k
    med = vlm.med.model_for("itc")
    if "itm" in vlm.med.abilities:
        med = vlm.med.model_for("itm")
    else:
        k = 0
    vectors, image_id, caption_id, captions = [], [], [], []
    kept, room = [], KEPT
    for items, states in look(vlm, med, dataset, batch_size, within(progress, 0, 0.1)):
        vectors.append(med.project_image(states))
        room -= states.nbytes
        if room >= 0:
            kept.append(states.cpu())
        else:
            kept.clear()
        image_id += [item.image_id for item in items]
        caption_id += [item.image_id for item in items for _ in item.captions]
        captions += [caption for item in items for caption in item.captions]
    if not captions:
        raise Unavailable("the data have no captions")

    ids, mask, text = distinct(*vlm.texts(captions))
    pictures, texts = torch.cat(vectors), ids.new_empty(len(ids), vectors[0].shape[1], dtype=vectors[0].dtype)
    for rows in mask.sum(1).argsort().split(TEXTS):
        texts[rows] = med.project_text(med.encode_text(*trim(ids, mask, rows), first_only=True))
    texts = texts[text]
    if room < 0:
        kept = (states for _, states in look(vlm, med, dataset, batch_size, False))
    match = partial(match_logits, med, ids, mask, kept, progress=within(progress, 0.1, 1))
    return find(pictures, texts, text.cpu(), torch.tensor(image_id), torch.tensor(caption_id), captions, k, match)


def find(
    pictures: Tensor, texts: Tensor, text: Tensor, image_id: Tensor, caption_id: Tensor, captions: list[str], k: int,
    match: Callable[[Tensor, Tensor], Tensor],
) -> Found:  # fmt: skip
    """What I pictures and T captions find by their vectors [I, E] and [T, E], the k best re-ranked.

    text: which of the different texts each caption is [T]. match: `match_logits` but for its last two arguments.
    """
    of = image_id.to(texts.device), caption_id.to(texts.device)
    tr, ir = nearest(pictures, texts, *of, k), nearest(texts, pictures, *of[::-1], k)
    itm, sides = candidates_logits(match, text, tr.candidates, ir.candidates), []
    for near, logit, (own, theirs) in zip((tr, ir), itm, ((image_id, caption_id), (caption_id, image_id)), strict=True):
        scores = near.similarity + logit
        rank = reranked(near, scores, own[:, None] == theirs[near.candidates], len(theirs))
        sides.append(Direction(near, scores, rank))
    return Found(*sides, image_id, caption_id, captions)


def look(vlm, med, dataset, batch_size: int, progress: Progress) -> Iterator[tuple[list[Item], Tensor]]:
    """The pictures that have captions, and their states [B, P+1, Di]."""
    for items in batches(dataset, batch_size, "retrieval: pictures", progress):
        if items := [item for item in items if item.captions]:
            yield items, vlm.image_states((item.image for item in items), med)


def distinct(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of padded texts [T, L] the different ones, ids and mask [D, L], and which of them each is [T].

    Read once, equal texts are equally good: in batches of other lengths their scores would differ in the last digits.
    """
    rows, which = ids.where(mask, -1).unique(dim=0, return_inverse=True)
    return rows.clamp(min=0), rows >= 0, which


def trim(ids: Tensor, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Some of the padded texts [N, T], with no more pads than they need."""
    longest = mask[rows].sum(1).max()
    return ids[rows, :longest], mask[rows, :longest]


def candidates_logits(
    match: Callable[[Tensor, Tensor], Tensor], text: Tensor, tr: Tensor, ir: Tensor
) -> tuple[Tensor, Tensor]:
    """ITM's match logits of pictures' candidate texts [I, k] and of texts' candidate pictures [T, k], as they.

    match, text: as `find` has them. A pair that both directions ask for, or several equal texts, is read once.
    """
    picture, caption = (torch.cat(both) for both in zip(_pairs(tr), _pairs(ir)[::-1], strict=True))
    different = len(text)
    keys, place = (picture * different + text[caption]).unique(return_inverse=True)
    logits = match(keys % different, (keys // different).bincount(minlength=len(tr)))[place]
    return logits[: tr.numel()].view_as(tr), logits[tr.numel() :].view_as(ir)


def _pairs(candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The queries [Q * k] and their candidates [Q * k]."""
    return torch.arange(len(candidates)).repeat_interleave(candidates.shape[1]), candidates.flatten()


def match_logits(
    med, ids: Tensor, mask: Tensor, states: Iterable[Tensor], texts: Tensor, counts: Tensor, progress: Progress
) -> Tensor:
    """ITM's match logit of every picture with its `texts` [P], those of the first picture first; fp32 [P].

    states: of all pictures in order, some at a time [B, P+1, Di]. counts: how many texts each picture has. A picture's
    keys and values are computed once for all of them, and texts of a length go together.
    """
    logits, lengths = torch.empty(len(texts)), mask.sum(1).cpu()
    mine = iter(torch.arange(len(texts)).split(counts.tolist()))
    with counted(len(counts), "retrieval: re-ranking", progress) as more:
        for some in states if len(texts) else ():
            for picture in some.to(ids.device).split(1):
                cross, places = med.text_encoder.cross(picture), next(mine)
                for part in places[lengths[texts[places]].argsort()].split(TEXTS):
                    some_ids, some_mask = trim(ids, mask, texts[part].to(ids.device))
                    some_mask = None if some_mask.all() else some_mask  # of one length
                    fused = med.fuse_with(cross, some_ids, some_mask, first_only=True)
                    logits[part] = med.match_logits(fused)[:, 1].float().cpu()
                more(1)
    return logits


def score(found: Found) -> Outcome:
    """Recalls in percent: "tr@1", "tr@5" ... "ir@10" re-ranked, "itc_tr@1" ... "itc_ir@10" by ITC alone.

    A picture is answered by any of its own captions, a caption by its own picture. Rows "tr", one a picture,
    and "ir", one a caption, hold the ranks, counted from 0.
    """
    ranks = {"tr": found.tr.rank, "ir": found.ir.rank}
    ranks |= {"itc_tr": found.tr.nearest.rank, "itc_ir": found.ir.nearest.rank}
    figures = {f"{name}@{n}": percent(rank < n) for name, rank in ranks.items() for n in RECALLS}
    ranks = {name: rank.tolist() for name, rank in ranks.items()}
    pictures = zip(found.image_id.tolist(), ranks["tr"], ranks["itc_tr"], strict=True)
    captions = zip(found.caption_id.tolist(), found.captions, ranks["ir"], ranks["itc_ir"], strict=True)
    rows = {
        "tr": [dict(image_id=i, rank=rank, itc_rank=itc) for i, rank, itc in pictures],
        "ir": [dict(image_id=i, caption=text, rank=rank, itc_rank=itc) for i, text, rank, itc in captions],
    }
    return Outcome(figures, rows)
