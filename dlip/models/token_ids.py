"""Token ids as encoder and decoder read them: first token, prompt, next-token labels, and padding."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dlip.common import distributed
from dlip.data.batch import Batch


def first_token(ids: Tensor, token: int) -> Tensor:
    """Replace the first token of each text: [CLS] for text alone, [ENC] with an image, [DEC] to decode."""
    return torch.cat([torch.full_like(ids[:, :1], token), ids[:, 1:]], 1)


def next_tokens(ids: Tensor, mask: Tensor) -> Tensor:
    """Labels of next-token prediction [N, T]; -100, which losses ignore, before pads and at the end."""
    return F.pad(ids.masked_fill(~mask, -100)[:, 1:], (0, 1), value=-100)


def with_prompt(ids: Tensor, mask: Tensor, prompt: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Insert the prompt after the first token of each caption. Returns ids, mask and labels, which skip the prompt."""
    before = torch.tensor(prompt, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)
    read, predicted = (
        torch.cat([mask[:, :1], torch.full_like(before, prompted, dtype=torch.bool), mask[:, 1:]], 1)
        for prompted in (True, False)
    )
    ids = torch.cat([ids[:, :1], before, ids[:, 1:]], 1)
    return ids, read, next_tokens(ids, predicted)


def trim(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Texts that are padded on the right, ids and mask [N, T], padded no more than they need."""
    longest = mask.sum(1).max()
    return ids[:, :longest], mask[:, :longest]


def pad_to_longest(batch: Batch, pad_id: int) -> Batch:
    """The batch with captions as long as the longest of all processes, so that they can be gathered."""
    length = torch.tensor([batch.ids.shape[1]], device=batch.ids.device)
    padding = (0, int(distributed.all_gather(length).max() - length))
    return replace(batch, ids=F.pad(batch.ids, padding, value=pad_id), mask=F.pad(batch.mask, padding))
