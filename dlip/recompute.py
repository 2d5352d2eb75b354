"""Gradient checkpointing: a layer keeps its input alone, and backward computes the rest again.

Source: Chen et al., Training deep nets with sublinear memory cost (arXiv 1604.06174).
"""

from functools import partial

from torch.utils.checkpoint import checkpoint

from dlip.model import ImageLayer, Med, TextAttention, TextLayer

PARTS = {ImageLayer: "forward", TextAttention: "forward", TextLayer: "feed_forward"}
"""What is computed again: of text layers each half, as the tokens' keys and values come from outside."""


def recompute(med: Med, on: bool = True) -> None:
    """Turns it on or off; losses and gradients stay the same, dropout's choices too."""
    for module in med.modules():
        name = PARTS.get(type(module))
        if name:
            vars(module).pop(name, None)
            if on:
                setattr(module, name, partial(checkpoint, getattr(module, name), use_reentrant=False))
