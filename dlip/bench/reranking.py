"""Retrieval's second stage beside the loops that BLIP's evaluation is made of, on scenes and at 224 px."""

import time
from functools import partial

import torch
from torch import Tensor

from dlip.bench import row
from dlip.bench.step import words
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.tasks import retrieval
from dlip.evaluation.tasks.ranking import nearest, reranked
from dlip.experiments.run import new_model
from dlip.export.transformers import to_stock
from dlip.models.token_ids import first_token
from dlip.vlm import VLM

TOKENS = 35
"""To which BLIP pads every text."""
K = 64
TOLERANCE = 1e-3


def run(rounds: int = 3, pictures: int = 1000) -> tuple[dict, list[dict]]:
    """Seconds from states and vectors to the scores of 64 candidates a query, both ways: of the shipped teacher on
    `pictures` of the scenes test split, and of DLIP-Small with random weights on a fortieth of them.

    stock: for every picture its candidates, for every text its own, encoded by stock transformers' text encoder with
    the picture's states, whose keys and values are made for each, all texts padded to 35 tokens. plain: the same loops
    over our own layers. "tokens" are those that a round reads, pads among them. Before anything is told scores are the
    same to within 1e-3, and plain and here give the same ranks; else a UserError is raised.
    """
    teacher = VLM.load("scenes/teacher")
    small = new_model("dlip-small", words(Scenes("train-small", size=16)), 0)
    cases = {"scenes/teacher": (teacher, pictures), "dlip-small, 224 px": (small, max(2, pictures // 40))}
    rows, read, tokens = [], [], {}
    for name, (vlm, count) in cases.items():
        material = prepare(vlm, Scenes("test", size=count))
        stock = to_stock(vlm.med, "retrieval").eval()
        ways = {
            "stock": partial(loops, partial(by_stock, stock, vlm.med.config.enc_id), *material),
            "plain": partial(loops, partial(by_layers, vlm.med), *material),
            "here": partial(here, vlm.med, *material),
        }
        times: dict[str, list[float]] = {who: [] for who in ways}
        for encoder in (stock.text_encoder, vlm.med.text_encoder):
            encoder.embeddings.register_forward_hook(lambda _, __, states: read.append(states.shape[:2].numel()))
        for _ in range(rounds):
            found = {}
            for who, way in ways.items():
                read.clear()
                began = time.perf_counter()
                found[who] = way()
                times[who].append(time.perf_counter() - began)
                tokens[who] = sum(read)
            agree(name, found, material[3:])
        about = {"pictures": count, "captions": len(material[0])}
        for who, some in times.items():
            rows.append(row(f"{name}: {who}", some, times["stock"], "s", **about, tokens=tokens[who]))
    return {"candidates": K, "rounds": rounds, "threads": torch.get_num_threads()}, rows


def agree(name: str, found: dict[str, tuple[Tensor, Tensor]], sides: tuple) -> None:
    """Raises UserError where scores differ, or the ranks of plain and here do."""
    plain = found["plain"]
    for who in ("stock", "here"):
        if not all(torch.allclose(*both, TOLERANCE, TOLERANCE) for both in zip(plain, found[who], strict=True)):
            raise UserError(f"nothing is told: {name} has other scores {who} than by the plain loops")
    ranks = [[_ranks(*side, of) for side, of in zip(sides, some, strict=True)] for some in (plain, found["here"])]
    if not all(map(torch.equal, *ranks)):
        raise UserError(f"nothing is told: {name} has other ranks here than by the plain loops")


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
    """ITM's match logits of the candidates of pictures [I, k] and of texts [T, k]."""
    *texts, text = retrieval.distinct(ids, mask)
    match = partial(retrieval.match_logits, med, *texts, states, progress=False)
    return retrieval.candidates_logits(match, text, tr[0].candidates, ir[0].candidates)


@torch.inference_mode()
def loops(match, ids: Tensor, mask: Tensor, states: list[Tensor], tr, ir) -> tuple[Tensor, Tensor]:
    """As `here`. match: match logits [N] of texts [N, T], their mask and pictures' states [N, P+1, Di]."""
    pad = (0, max(0, TOKENS - ids.shape[1]))
    ids, mask = torch.nn.functional.pad(ids, pad), torch.nn.functional.pad(mask, pad)
    pictures, found = torch.cat(states), ([], [])
    for picture, texts in enumerate(tr[0].candidates):
        found[0].append(match(ids[texts], mask[texts], pictures[picture].expand(len(texts), -1, -1)))
    for text, seen in enumerate(ir[0].candidates):
        found[1].append(match(ids[text].expand(len(seen), -1), mask[text].expand(len(seen), -1), pictures[seen]))
    return torch.stack(found[0]), torch.stack(found[1])


def by_layers(med, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
    return med.match_logits(med.fuse(ids, mask, states))[:, 1]


def by_stock(stock, first: int, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
    ids, seen = first_token(ids, first), torch.ones(states.shape[:2], dtype=torch.long)
    fused = stock.text_encoder(ids, mask, encoder_hidden_states=states, encoder_attention_mask=seen).last_hidden_state
    return stock.itm_head(fused[:, 0])[:, 1]


def _ranks(near, own: Tensor, theirs: Tensor, logits: Tensor) -> Tensor:
    return reranked(near, near.similarity + logits, own[:, None] == theirs[near.candidates], len(theirs))
