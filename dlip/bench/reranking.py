"""Second stage of retrieval (ITM re-ranking) compared with the loops of BLIP's evaluation."""

import time
from functools import partial

import torch
from torch import Tensor

from dlip.bench import row
from dlip.bench.step import random_model
from dlip.bench.training import profiled
from dlip.common.errors import UserError
from dlip.data.scenes.dataset import Scenes
from dlip.evaluation.tasks import retrieval
from dlip.evaluation.tasks.ranking import nearest, reranked
from dlip.export.transformers import to_stock
from dlip.models.token_ids import first_token
from dlip.vlm import VLM

TOKENS = 35
"""Length to which BLIP pads every text."""
K = 64
"""Candidates per query."""
TOLERANCE = 1e-3
PROFILED = 50
"""Images of the profile, at most: the profiler keeps every call in memory, which is 20 GB for 1,000 scenes."""


def run(rounds: int = 3, images: int = 1000) -> tuple[dict, list[dict]]:
    """Seconds from states and embeddings to the scores of 64 candidates per query, in both directions: the shipped
    teacher on `images` of the scenes test split, and DLIP-Small with random weights on a tenth of them.

    stock: BLIP's loops over queries with stock transformers' text encoder, which computes keys and values of the image
    for every pair and pads all texts to 35 tokens. plain: the same loops with this project's layers. here: this
    project's evaluation, which is also profiled, on up to 50 of the images: seconds, calls and share in % of each kind
    of work. tokens: read per round, padding included. Raises UserError if scores differ by more than 1e-3, or the ranks
    of plain and here differ.
    """
    cases = {"scenes/teacher": (VLM.load("scenes/teacher"), images)}
    cases["dlip-small, 224 px"] = random_model("dlip-small"), max(2, images // 10)
    rows = [one for name, (vlm, count) in cases.items() for one in compare(name, vlm, count, rounds)]
    return {"candidates": K, "rounds": rounds, "threads": torch.get_num_threads()}, rows


def compare(name: str, vlm: VLM, images: int, rounds: int) -> list[dict]:
    """The rows of a model on so many scenes."""
    inputs, read, tokens = prepare(vlm, Scenes("test", size=images)), [], {}
    stock = to_stock(vlm.med, "retrieval").eval()
    variants = {
        "stock": partial(loops, partial(by_stock, stock, vlm.med.config.enc_id), *inputs),
        "plain": partial(loops, partial(by_layers, vlm.med), *inputs),
        "here": partial(here, vlm, *inputs),
    }
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for encoder in (stock.text_encoder, vlm.med.text_encoder):
        encoder.embeddings.register_forward_hook(lambda _, __, states: read.append(states.shape[:2].numel()))
    for _ in range(rounds):
        scores = {}
        for variant, call in variants.items():
            read.clear()
            start = time.perf_counter()
            scores[variant] = call()
            times[variant].append(time.perf_counter() - start)
            tokens[variant] = sum(read)
        check_equal(name, scores, inputs[3:])
    about = {"images": images, "captions": len(inputs[0])}
    rows = [
        row(f"{name}: {variant}", seconds, times["stock"], "s", **about, tokens=tokens[variant])
        for variant, seconds in times.items()
    ]
    part = prepare(vlm, Scenes("test", size=min(images, PROFILED)))
    return rows + profiled(f"{name}: here", partial(here, vlm, *part), 1)


def check_equal(name: str, scores: dict[str, tuple[Tensor, Tensor]], sides: tuple) -> None:
    """Raise UserError if scores differ, or the ranks of plain and here."""
    plain = scores["plain"]
    for variant in ("stock", "here"):
        if not all(torch.allclose(*pair, TOLERANCE, TOLERANCE) for pair in zip(plain, scores[variant], strict=True)):
            raise UserError(f"no record was made: the scores of {name} differ between {variant} and the plain loops")
    ranks = [[_ranks(*side, of) for side, of in zip(sides, both, strict=True)] for both in (plain, scores["here"])]
    if not all(map(torch.equal, *ranks)):
        raise UserError(f"no record was made: the ranks of {name} differ between here and the plain loops")


@torch.inference_mode()
def prepare(vlm: VLM, dataset) -> tuple:
    """Token ids, mask, image states, and the nearest neighbors in both directions with their owners."""
    med = vlm.med.eval()
    items = [dataset[i] for i in range(len(dataset))]
    states = [vlm.image_states(item.image for item in items[i : i + 64]) for i in range(0, len(items), 64)]
    ids, mask = vlm.tokenize(caption for item in items for caption in item.captions)
    image_of = torch.arange(len(items))
    text_of = image_of.repeat_interleave(torch.tensor([len(item.captions) for item in items]))
    images = torch.cat([med.project_image(some) for some in states])
    texts = torch.cat(
        [med.project_text(med.encode_text(ids[i : i + 64], mask[i : i + 64])) for i in range(0, len(ids), 64)]
    )
    tr, ir = nearest(images, texts, image_of, text_of, K), nearest(texts, images, text_of, image_of, K)
    return ids, mask, states, (tr, image_of, text_of), (ir, text_of, image_of)


@torch.inference_mode()
def here(vlm: VLM, ids: Tensor, mask: Tensor, states: list[Tensor], tr, ir) -> tuple[Tensor, Tensor]:
    """ITM match logits of the candidates of images `[I, k]` and of texts `[T, k]`."""
    candidates = tr[0].candidates, ir[0].candidates
    of_images, of_texts = retrieval.rerank_candidates(vlm, (ids, mask), states, *candidates, "itm", False)
    return of_images[..., 1], of_texts[..., 1]


@torch.inference_mode()
def loops(match, ids: Tensor, mask: Tensor, states: list[Tensor], tr, ir) -> tuple[Tensor, Tensor]:
    """The logits of `here` by BLIP's loops.

    match: logits `[N]` of texts `[N, T]`, their mask and image states `[N, P+1, Di]`.
    """
    pad = (0, max(0, TOKENS - ids.shape[1]))
    ids, mask = torch.nn.functional.pad(ids, pad), torch.nn.functional.pad(mask, pad)
    image_states, of_images, of_texts = torch.cat(states), [], []
    for image, texts in enumerate(tr[0].candidates):
        of_images.append(match(ids[texts], mask[texts], image_states[image].expand(len(texts), -1, -1)))
    for text, images in enumerate(ir[0].candidates):
        count = len(images)
        of_texts.append(match(ids[text].expand(count, -1), mask[text].expand(count, -1), image_states[images]))
    return torch.stack(of_images), torch.stack(of_texts)


def by_layers(med, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
    return med.match_logits(med.fuse(ids, mask, states))[:, 1]


def by_stock(stock, first: int, ids: Tensor, mask: Tensor, states: Tensor) -> Tensor:
    ids, attended = first_token(ids, first), torch.ones(states.shape[:2], dtype=torch.long)
    fused = stock.text_encoder(ids, mask, encoder_hidden_states=states, encoder_attention_mask=attended)
    return stock.itm_head(fused.last_hidden_state[:, 0])[:, 1]


def _ranks(near, owners: Tensor, gallery_owners: Tensor, logits: Tensor) -> Tensor:
    positive = owners[:, None] == gallery_owners[near.candidates]
    return reranked(near, near.similarity + logits, positive, len(gallery_owners))
