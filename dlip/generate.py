"""Greedy, beam and nucleus decoding over cached keys and values; the same tokens as stock `generate` of transformers.

A picture's cross-attention keys and values are computed once and shared by its beams.
"""

import torch
from torch import Tensor

from dlip.model import KeysValues, Med


class Cache:
    """Self-attention keys and values of the tokens so far, allocated once for the longest text."""

    def __init__(self, layers: int, rows: int, heads: int, length: int, head_width: int, like: Tensor):
        self.store = like.new_empty(2, layers, rows, heads, length, head_width)
        self.length = 0

    def extend(self, layer: int, kv: KeysValues) -> KeysValues:
        """Puts the new tokens' keys and values [N, H, t, d] behind the old and returns all of them."""
        end = self.length + kv[0].shape[2]
        self.store[0, layer, :, :, self.length : end] = kv[0]
        self.store[1, layer, :, :, self.length : end] = kv[1]
        return self.store[0, layer, :, :, :end], self.store[1, layer, :, :, :end]

    def reorder(self, rows: Tensor) -> None:
        self.store[..., : self.length, :] = self.store[:, :, rows, :, : self.length]


class Decoder:
    """The text decoder over a fixed context, a few tokens at a time."""

    def __init__(self, med: Med, context: Tensor, context_mask: Tensor | None, rows: int, length: int):
        c = med.config
        self.med, self.mask = med, context_mask
        self.cross = med.text_decoder.bert.cross(context)
        self.cache = Cache(c.text_layers, rows, c.text_heads, length, c.text_width // c.text_heads, context)

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [N, t] -> log-probabilities of the next token [N, V] (fp32)."""
        states = self.med.text_decoder.bert(ids, None, self.cross, self.mask, causal=True, cache=self.cache)
        return self.med.text_decoder.cls(states[:, -1]).float().log_softmax(-1)


@torch.inference_mode()
def generate(
    med: Med,
    context: Tensor,
    context_mask: Tensor | None,
    prompt: Tensor,
    num_beams: int = 1,
    max_new_tokens: int = 20,
    top_p: float | None = None,
    min_new_tokens: int = 0,
) -> list[list[int]]:
    """Continues every prompt [B, t] over its context [B, S, Di] until [SEP]; the tokens, prompt included, [SEP] not.

    One beam is greedy, `top_p` samples from the smallest set of words of that mass. `min_new_tokens` forbids an earlier
    [SEP], so that models can be timed on equal work. A text ends at the model's last position at the latest.
    """
    max_new_tokens = min(max_new_tokens, med.config.max_positions - prompt.shape[1])
    if num_beams > 1 and top_p is None and max_new_tokens > 0:
        return beam_search(med, context, context_mask, prompt, num_beams, max_new_tokens, min_new_tokens)
    decoder = Decoder(med, context, context_mask, len(prompt), prompt.shape[1] + max_new_tokens)
    ids, new = prompt, prompt
    done = torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device)
    for step in range(max_new_tokens):
        scores = decoder(new)
        if step < min_new_tokens:
            scores[:, med.config.sep_id] = float("-inf")
        new = scores.argmax(-1) if top_p is None else nucleus(scores, top_p)
        new = new.masked_fill(done, med.config.pad_id)[:, None]
        ids = torch.cat([ids, new], 1)
        done |= new[:, 0] == med.config.sep_id
        if done.all():
            break
    return [until_sep(row, med, prompt.shape[1]) for row in ids.tolist()]


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """One token a row of the most probable ones that together reach `top_p` (arXiv 1904.09751). [N, V] -> [N]."""
    probs, order = scores.exp().sort(-1, descending=True)
    probs = probs.masked_fill(probs.cumsum(-1) - probs > top_p, 0)
    return order.gather(1, torch.multinomial(probs, 1)).squeeze(1)


def until_sep(row: list[int], med: Med, start: int) -> list[int]:
    end = row.index(med.config.sep_id, start) if med.config.sep_id in row[start:] else len(row)
    return row[:end]


def beam_search(
    med: Med, context: Tensor, context_mask: Tensor | None, prompt: Tensor, k: int, new: int, least: int
) -> list[list[int]]:
    """Beam search as transformers has it: 2k continuations a step, a finished text scores its mean log-probability, and
    a picture is done when no running beam can still beat the worst of k finished texts."""
    b, start, sep, device = len(prompt), prompt.shape[1], med.config.sep_id, prompt.device
    decoder = Decoder(med, context, context_mask, b, start + new)
    scores = decoder(prompt)  # [B, V]: the beams of a picture are still one
    cache = decoder.cache
    cache.store = cache.store.repeat_interleave(k, dim=2)
    vocab = scores.shape[-1]
    running = prompt[:, None].expand(b, k, start)  # [B, k, t]
    total = torch.zeros(b, k, device=device)
    total[:, 1:] = -1e9  # all beams are the same at first
    scores = scores[:, None].expand(b, k, vocab)
    best: list[list[tuple[float, list[int]]]] = [[] for _ in range(b)]
    open_ = [True] * b
    offset = torch.arange(b, device=device)[:, None] * k
    for step in range(new):
        if step < least:
            scores = scores.index_fill(-1, torch.tensor([sep], device=device), float("-inf"))
        values, places = (total[..., None] + scores).flatten(1).topk(2 * k)  # [B, 2k]
        beams, words = places // vocab, places % vocab
        texts = torch.cat([running.gather(1, beams[..., None].expand(-1, -1, running.shape[-1])), words[..., None]], -1)
        last = step == new - 1
        ended = (words == sep) | last
        _collect(best, open_, values[:, :k] / (step + 1), texts[:, :k], ended[:, :k], k)
        total, order = (values - 1e9 * ended).topk(k)
        running = texts.gather(1, order[..., None].expand(-1, -1, texts.shape[-1]))
        for i in range(b):
            if open_[i] and len(best[i]) == k:
                open_[i] = total[i, 0].item() / (step + 1) > best[i][-1][0]
        if last or not any(open_):
            break
        cache.reorder((beams.gather(1, order) + offset).flatten())
        scores = decoder(running[..., -1].reshape(-1, 1)).unflatten(0, (b, k))
    return [until_sep(found[0][1], med, start) for found in best]


def _collect(best, open_, scores: Tensor, texts: Tensor, ended: Tensor, k: int) -> None:
    """Adds the texts that ended to each open picture's k best finished ones."""
    for i, j in ended.nonzero().tolist():
        if open_[i]:
            best[i] = sorted([*best[i], (scores[i, j].item(), texts[i, j].tolist())], key=lambda x: -x[0])[:k]
