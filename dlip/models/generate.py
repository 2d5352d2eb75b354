"""Greedy, beam and nucleus decoding with a key-value cache; the same tokens as stock `generate` of transformers.

The cross-attention keys and values of an image are computed once and shared by its beams.
"""

import torch
from torch import Tensor

from dlip.models.beam_search import BeamSearch, fill_gaps, repeating
from dlip.models.med import KeysValues, Med


class Cache:
    """Self-attention keys and values of the tokens so far, allocated once for the longest text."""

    def __init__(self, layers: int, rows: int, heads: int, length: int, head_width: int, like: Tensor):
        self.store = like.new_empty(2, layers, rows, heads, length, head_width)
        self.length = 0

    def extend(self, layer: int, kv: KeysValues) -> KeysValues:
        """Append the keys and values [N, H, t, d] of new tokens and return those of all tokens."""
        end = self.length + kv[0].shape[2]
        self.store[0, layer, :, :, self.length : end] = kv[0]
        self.store[1, layer, :, :, self.length : end] = kv[1]
        return self.store[0, layer, :, :, :end], self.store[1, layer, :, :, :end]

    def reorder(self, rows: list[int]) -> None:
        """Move row rows[i] to row i and drop the rest; rows that stay in place are not copied."""
        moved = [i for i, row in enumerate(rows) if i != row]
        if moved:
            source = [rows[i] for i in moved]
            self.store[:, :, moved, :, : self.length] = self.store[:, :, source, :, : self.length]
        self.store = self.store[:, :, : len(rows)]


class Decoder:
    """The text decoder over fixed contexts [B, S, Di], a few tokens at a time."""

    def __init__(self, med: Med, context: Tensor, context_mask: Tensor | None, rows: int, length: int):
        c = med.config
        self.med, self.mask = med, context_mask
        cross = med.text_decoder.bert.cross(context)
        self.cross = [kv and (kv[0].contiguous(), kv[1].contiguous()) for kv in cross]  # they are read every step
        self.cache = Cache(c.text_layers, rows, c.text_heads, length, c.text_width // c.text_heads, context)

    def keep(self, contexts: list[int]) -> None:
        """Keep only these contexts, ordered by `fill_gaps`; the caller reorders the cache."""
        moved = [i for i, context in enumerate(contexts) if i != context]
        source = [contexts[i] for i in moved]
        for values in (values for kv in self.cross if kv for values in kv) if moved else ():
            values[moved] = values[source]
        self.cross = [kv and (kv[0][: len(contexts)], kv[1][: len(contexts)]) for kv in self.cross]
        self.mask = None if self.mask is None else self.mask[contexts]

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [N, t] -> log-probabilities of the next token [N, V], in fp32."""
        self.med.steps += 1
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
    n: int = 1,
    no_repeat_ngram_size: int = 0,
) -> list[list[int]]:
    """Continue each prompt [B, t] over its context [B, S, Di] up to [SEP]; return all tokens without the [SEP].

    With one beam it is greedy; with `top_p` it samples from the smallest set of tokens of that probability. Each prompt
    gets `n` texts, one after the other: samples, or the best of at least `n` beams.
    `min_new_tokens` forbids an earlier [SEP], so that models can be timed on equal work. `no_repeat_ngram_size`, if not
    0, forbids an n-gram of that size to occur twice in a text. A text ends at the model's last position at the latest.
    """
    max_new_tokens, sep = min(max_new_tokens, med.config.max_positions - prompt.shape[1]), med.config.sep_id
    if num_beams > 1 and top_p is None and max_new_tokens > 0:
        finished = beam_search(
            med, context, context_mask, prompt, num_beams, max_new_tokens, min_new_tokens, no_repeat_ngram_size
        )
        return [until_sep(text, sep, prompt.shape[1]) for best in finished for _, text in best[:n]]
    if n > 1:
        context, prompt = context.repeat_interleave(n, 0), prompt.repeat_interleave(n, 0)
        context_mask = None if context_mask is None else context_mask.repeat_interleave(n, 0)
    decoder = Decoder(med, context, context_mask, len(prompt), prompt.shape[1] + max_new_tokens)
    texts, active, new = prompt.tolist(), list(range(len(prompt))), prompt
    for step in range(max_new_tokens):
        scores = decoder(new)
        if step < min_new_tokens:
            scores[:, sep] = float("-inf")
        for row, text in enumerate(active if no_repeat_ngram_size else ()):
            scores[row, repeating(texts[text], no_repeat_ngram_size)] = float("-inf")
        tokens = (scores.argmax(-1) if top_p is None else nucleus(scores, top_p)).tolist()
        for text, token in zip(active, tokens, strict=True):
            texts[text].append(token)
        rows = fill_gaps([row for row, token in enumerate(tokens) if token != sep])
        if not rows:
            break
        if len(rows) < len(active):
            decoder.keep(rows)
            decoder.cache.reorder(rows)
            active, tokens = [active[row] for row in rows], [tokens[row] for row in rows]
        new = torch.tensor(tokens, device=prompt.device)[:, None]
    return [until_sep(text, sep, prompt.shape[1]) for text in texts]


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """Sample one token a row from the most probable ones that together reach `top_p`. [N, V] -> [N].

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration (arXiv 1904.09751).
    """
    probs, order = scores.exp().sort(-1, descending=True)
    probs = probs.masked_fill(probs.cumsum(-1) - probs > top_p, 0)
    return order.gather(1, torch.multinomial(probs, 1)).squeeze(1)


def until_sep(tokens: list[int], sep: int, start: int) -> list[int]:
    """The tokens before the first `sep` at or after `start`."""
    return tokens[: tokens.index(sep, start)] if sep in tokens[start:] else tokens


def beam_search(
    med: Med,
    context: Tensor,
    context_mask: Tensor | None,
    prompt: Tensor,
    num_beams: int,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    no_repeat_ngram_size: int = 0,
) -> list[list[tuple[float, list[int]]]]:
    """The `num_beams` best texts of each prompt, the best first, as `BeamSearch.finished` has them."""
    b, k, sep, device = len(prompt), num_beams, med.config.sep_id, prompt.device
    search = BeamSearch(prompt.tolist(), k, sep, max_new_tokens, no_repeat_ngram_size)
    decoder = Decoder(med, context, context_mask, b, prompt.shape[1] + max_new_tokens)
    scores = decoder(prompt)  # [B, V]: all beams of a text are still the same
    decoder.cache.store = decoder.cache.store.repeat_interleave(k, dim=2)
    scores = scores[:, None].repeat(1, k, 1)
    total = torch.tensor([[0.0] + [-1e9] * (k - 1)] * b, device=device)
    while True:
        if search.step < min_new_tokens:
            scores[..., sep] = float("-inf")
        if repeats := search.repeats():
            scores[repeats] = float("-inf")
        each = scores.topk(min(2 * k, scores.shape[-1]))  # of each beam [B, k, 2k]
        best = (total[..., None] + each.values).flatten(1).topk(2 * k)  # of all beams [B, 2k]
        beams, tokens = best.indices // each.values.shape[-1], each.indices.flatten(1).gather(1, best.indices)
        update = search.advance(best.values.tolist(), beams.tolist(), tokens.tolist())
        if update is None:
            return search.finished
        rows, beams, tokens, total = update
        if len(rows) < len(scores):
            decoder.keep(rows)
        decoder.cache.reorder([row * k + beam for row, own in zip(rows, beams, strict=True) for beam in own])
        total = torch.tensor(total, device=device)
        scores = decoder(torch.tensor(tokens, device=device).view(-1, 1)).unflatten(0, (len(rows), k))
