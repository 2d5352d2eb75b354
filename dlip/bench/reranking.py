"""Retrieval's second stage beside the loops that BLIP's evaluation is made of, on scenes and at 224 px."""

import time
from functools import partial

import torch
from torch import Tensor

from dlip.bench import row
from dlip.bench.step import words
from dlip.data.scenes import Scenes
from dlip.errors import UserError
from dlip.experiment import new_model
from dlip.tasks import retrieval
from dlip.tasks.ranking import nearest, reranked
from dlip.vlm import VLM

TOKENS = 35
"""To which BLIP pads every text."""
K = 64


def run(rounds: int = 1, pictures: int = 1000) -> tuple[dict, list[dict]]:
    """Seconds from states and vectors to ranks, 64 candidates a query, both ways: of the shipped teacher on `pictures`
    of the scenes test split, and of DLIP-Small with random weights on a fortieth of them.

    plain: for every picture its candidates, for every text its own, encoded with the picture's states, whose keys and
    values are made for each, all texts padded to 35 tokens. Both give the same ranks, else a UserError is raised.
    """
    teacher = VLM.load("scenes/teacher")
    small = new_model("dlip-small", words(Scenes("train-small", size=16)), 0)
    cases = {"scenes/teacher": (teacher, pictures), "dlip-small, 224 px": (small, max(2, pictures // 40))}
    rows = []
    for name, (vlm, count) in cases.items():
        times: dict[str, list[float]] = {"plain": [], "here": []}
        material = prepare(vlm, Scenes("test", size=count))
        for _ in range(rounds):
            ranks = {}
            for who, way in (("plain", plain), ("here", here)):
                began = time.perf_counter()
                ranks[who] = way(vlm.med, *material)
                times[who].append(time.perf_counter() - began)
            if not all(map(torch.equal, ranks["plain"], ranks["here"])):
                raise UserError(f"nothing is told: {name} has other ranks here than by the plain loops")
        about = {"pictures": count, "captions": len(material[0])}
        rows += [row(f"{name}: {who}", some, times["plain"], "s", **about) for who, some in times.items()]
    return {"candidates": K, "rounds": rounds, "threads": torch.get_num_threads()}, rows


@torch.inference_mode()
def prepare(vlm: VLM, dataset) -> tuple:
    """ids, mask, the pictures' states, and what is nearest in both directions with its owners."""
    med = vlm.med.eval()
    items = [dataset[i] for i in range(len(dataset))]
    states = [vlm.image_states(item.image for item in items[i : i + 64]) for i in range(0, len(items), 64)]
    ids, mask = vlm.texts(caption for item in items for caption in item.captions)
    image_of = torch.arange(len(items))
    text_of = image_of.repeat_interleave(torch.tensor([len(item.captions) for item in items]))
    images = torch.cat([med.project_image(some) for some in states])
    texts = torch.cat(
        [med.project_text(med.encode_text(ids[i : i + 64], mask[i : i + 64])) for i in range(0, len(ids), 64)]
    )
    tr, ir = nearest(images, texts, image_of, text_of, K), nearest(texts, images, text_of, image_of, K)
    return ids, mask, states, (tr, image_of, text_of), (ir, text_of, image_of)


@torch.inference_mode()
def here(med, ids: Tensor, mask: Tensor, states: list[Tensor], tr, ir) -> tuple[Tensor, Tensor]:
    *texts, text = retrieval.distinct(ids, mask)
    match = partial(retrieval.match_logits, med, *texts, states, progress=False)
    logits = retrieval.candidates_logits(match, text, tr[0].candidates, ir[0].candidates)
    return tuple(_ranks(*side, found) for side, found in zip((tr, ir), logits, strict=True))


@torch.inference_mode()
def plain(med, ids: Tensor, mask: Tensor, states: list[Tensor], tr, ir) -> tuple[Tensor, Tensor]:
    pad = (0, TOKENS - ids.shape[1])
    ids, mask = torch.nn.functional.pad(ids, pad), torch.nn.functional.pad(mask, pad)
    pictures, found = torch.cat(states), ([], [])
    for picture, texts in enumerate(tr[0].candidates):
        seen = pictures[picture].expand(len(texts), -1, -1)
        found[0].append(med.match_logits(med.fuse(ids[texts], mask[texts], seen))[:, 1])
    for text, seen in enumerate(ir[0].candidates):
        read = ids[text].expand(len(seen), -1), mask[text].expand(len(seen), -1)
        found[1].append(med.match_logits(med.fuse(*read, pictures[seen]))[:, 1])
    return tuple(_ranks(*side, torch.stack(logits)) for side, logits in zip((tr, ir), found, strict=True))


def _ranks(near, own: Tensor, theirs: Tensor, logits: Tensor) -> Tensor:
    return reranked(near, near.similarity + logits, own[:, None] == theirs[near.candidates], len(theirs))
