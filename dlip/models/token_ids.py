"""Ids of a text as encoder and decoder take them: its first token, its prompt, and what comes next."""

import torch
import torch.nn.functional as F
from torch import Tensor


def first_token(ids: Tensor, token: int) -> Tensor:
    """The same ids with `token` in the first place: [CLS] alone, [ENC] beside a picture, [DEC] to decode."""
    return torch.cat([torch.full_like(ids[:, :1], token), ids[:, 1:]], 1)


def next_words(ids: Tensor, mask: Tensor) -> Tensor:
    """What each position should say [N, T]: the token after it; -100, which losses ignore, for pads and at the end."""
    return F.pad(ids.masked_fill(~mask, -100)[:, 1:], (0, 1), value=-100)


def prompted(ids: Tensor, mask: Tensor, prompt: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Captions with the prompt put before their words, and the next words to learn, none of them the prompt's."""
    before = torch.tensor(prompt, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)
    learnt = torch.cat([mask[:, :1], torch.zeros_like(before, dtype=torch.bool), mask[:, 1:]], 1)
    ids = torch.cat([ids[:, :1], before, ids[:, 1:]], 1)
    return ids, next_words(ids, learnt)
