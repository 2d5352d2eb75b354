"""Softmax attention, by the kernel that is fastest for its shape, or with its map."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, want_map: bool):
    """Softmax attention. q [N, H, Q, d]; k, v [N, H, K, d]; mask bool, broadcast to [N, H, Q, K], true where seen.

    Returns the output [N, Q, H*d] and the map [N, H, Q, K], which is None unless asked for. On a CPU the map is made
    all the same where the fused kernel is slower: in bf16, backward, and of a few queries over many keys.
    """
    if want_map or (q.device.type == "cpu" and (torch.is_autocast_enabled("cpu") or _few_over_many(q, k))):
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        probs = scores.softmax(-1)
        out = probs @ v
    else:
        probs = None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2).flatten(2), probs if want_map else None


def _few_over_many(q: Tensor, k: Tensor) -> bool:
    """As in cross-attention of a decoding step; a graph that is being recorded is for any number."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    rows, heads, keys, _ = k.shape
    return keys >= 32 and rows * heads * keys >= 2000 and q.shape[2] <= 8
