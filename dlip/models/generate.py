"""Greedy, beam and nucleus decoding over cached keys and values; the same tokens as stock `generate` of transformers.

A picture's cross-attention keys and values are computed once and shared by its beams.
"""

import torch
from torch import Tensor

from dlip.models.med import KeysValues, Med


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

    def reorder(self, rows: list[int]) -> None:
        """Puts what is in row rows[i] into row i and drops rows beyond; one that stays where it is costs nothing."""
        moved = [i for i, row in enumerate(rows) if i != row]
        if moved:
            of = [rows[i] for i in moved]
            self.store[:, :, moved, :, : self.length] = self.store[:, :, of, :, : self.length]
        self.store = self.store[:, :, : len(rows)]


class Decoder:
    """The text decoder over a fixed context, a few tokens at a time."""

    def __init__(self, med: Med, context: Tensor, context_mask: Tensor | None, rows: int, length: int):
        c = med.config
        self.med, self.mask = med, context_mask
        cross = med.text_decoder.bert.cross(context)
        self.cross = [kv and (kv[0].contiguous(), kv[1].contiguous()) for kv in cross]  # they are read every step
        self.cache = Cache(c.text_layers, rows, c.text_heads, length, c.text_width // c.text_heads, context)

    def keep(self, contexts: list[int]) -> None:
        """Goes on with these contexts alone, as `filled` orders them; the caller reorders the cache."""
        moved = [i for i, context in enumerate(contexts) if i != context]
        of = [contexts[i] for i in moved]
        for values in (values for kv in self.cross if kv for values in kv) if moved else ():
            values[moved] = values[of]
        self.cross = [kv and (kv[0][: len(contexts)], kv[1][: len(contexts)]) for kv in self.cross]
        self.mask = None if self.mask is None else self.mask[contexts]

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
        found = beam_search(med, context, context_mask, prompt, num_beams, max_new_tokens, min_new_tokens)
        return [until_sep(texts[0][1], med, prompt.shape[1]) for texts in found]
    decoder = Decoder(med, context, context_mask, len(prompt), prompt.shape[1] + max_new_tokens)
    texts, going, new = prompt.tolist(), list(range(len(prompt))), prompt
    for step in range(max_new_tokens):
        scores = decoder(new)
        if step < min_new_tokens:
            scores[:, med.config.sep_id] = float("-inf")
        words = (scores.argmax(-1) if top_p is None else nucleus(scores, top_p)).tolist()
        for i, word in zip(going, words, strict=True):
            texts[i].append(word)
        open_ = filled([place for place, word in enumerate(words) if word != med.config.sep_id])
        if not open_:
            break
        if len(open_) < len(going):
            decoder.keep(open_)
            decoder.cache.reorder(open_)
            going, words = [going[place] for place in open_], [words[place] for place in open_]
        new = torch.tensor(words, device=prompt.device)[:, None]
    return [until_sep(row, med, prompt.shape[1]) for row in texts]


def filled(places: list[int]) -> list[int]:
    """The rows at these ascending places, in the order that moves fewest: the last ones go where others have left."""
    there, last = set(places), [place for place in places if place >= len(places)]
    return [place if place in there else last.pop() for place in range(len(places))]


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """One token a row of the most probable ones that together reach `top_p` (arXiv 1904.09751). [N, V] -> [N]."""
    probs, order = scores.exp().sort(-1, descending=True)
    probs = probs.masked_fill(probs.cumsum(-1) - probs > top_p, 0)
    return order.gather(1, torch.multinomial(probs, 1)).squeeze(1)


def until_sep(row: list[int], med: Med, start: int) -> list[int]:
    end = row.index(med.config.sep_id, start) if med.config.sep_id in row[start:] else len(row)
    return row[:end]


def beam_search(
    med: Med, context: Tensor, context_mask: Tensor | None, prompt: Tensor, k: int, new: int, least: int = 0
) -> list[list[tuple[float, list[int]]]]:
    """Of each prompt its k best texts, the best first: the mean log-probability of a new token, and all tokens.

    Beam search as transformers has it: 2k continuations a step, a finished text, [SEP] included, scores its mean
    log-probability, and a picture is done when no running beam can still beat the worst of k finished texts.
    """
    b, sep, device = len(prompt), med.config.sep_id, prompt.device
    decoder = Decoder(med, context, context_mask, b, prompt.shape[1] + new)
    scores = decoder(prompt)  # [B, V]: the beams of a picture are still one
    decoder.cache.store = decoder.cache.store.repeat_interleave(k, dim=2)
    scores = scores[:, None].expand(b, k, -1)
    total = torch.tensor([[0.0] + [-1e9] * (k - 1)] * b, device=device)  # all beams are the same at first
    texts = [[row] * k for row in prompt.tolist()]
    best: list[list[tuple[float, list[int]]]] = [[] for _ in range(b)]
    going, open_ = list(range(b)), [True] * b  # the pictures whose beams run, and which of all are not done
    for step in range(new):
        if step < least:
            scores = scores.index_fill(-1, torch.tensor([sep], device=device), float("-inf"))
        each = scores.topk(min(2 * k, scores.shape[-1]))  # of each beam, [B, k, 2k]
        found = (total[..., None] + each.values).flatten(1).topk(2 * k)  # of all; no more than k of them can end
        words, width, last = each.indices.flatten(1).tolist(), each.indices.shape[-1], step == new - 1
        running = {}  # of each picture its k best (score, beam, word) that go on
        for i, own, *best_of in zip(going, words, found.values.tolist(), found.indices.tolist(), strict=True):
            continued = [(value, place // width, own[place]) for value, place in zip(*best_of, strict=True)]
            ended = [last or word == sep for _, _, word in continued]
            if open_[i]:
                best[i] += [
                    (value / (step + 1), [*texts[i][beam], word])
                    for (value, beam, word), over in zip(continued[:k], ended, strict=False)
                    if over
                ]
                best[i] = sorted(best[i], key=lambda x: -x[0])[:k]
            running[i] = [one for one, over in zip(continued, ended, strict=True) if not over][:k]
            if open_[i] and len(best[i]) == k and not last:
                open_[i] = running[i][0][0] / (step + 1) > best[i][-1][0]
        if last or not any(open_):
            break
        rows = {i: [place * k + beam for _, beam, _ in running[i]] for place, i in enumerate(going)}
        still = filled([place for place, i in enumerate(going) if open_[i]])
        if len(still) < len(going):
            decoder.keep(still)
            going = [going[place] for place in still]
        decoder.cache.reorder([row for i in going for row in rows[i]])
        for i in going:
            texts[i] = [[*texts[i][beam], word] for _, beam, word in running[i]]
        total = torch.tensor([[value for value, _, _ in running[i]] for i in going], device=device)
        words = torch.tensor([[word] for i in going for _, _, word in running[i]], device=device)
        scores = decoder(words).unflatten(0, (len(going), k))
    return best
