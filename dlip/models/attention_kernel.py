"""Softmax attention, by the fastest kernel for its shape or with its attention map."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, want_map: bool
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention. q [N, H, Q, d]; k, v [N, H, K, d]; mask bool, broadcast to [N, H, Q, K], true where visible.

    Returns the output [N, Q, H*d] and the map [N, H, Q, K], or None without `want_map`. On a CPU the map is computed
    wherever the fused kernel is slower: under bf16 autocast, and for a few queries over many keys.
    """
    if want_map or (q.device.type == "cpu" and (torch.is_autocast_enabled("cpu") or _few_queries(q, k))):
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


def _few_queries(q: Tensor, k: Tensor) -> bool:
    """Whether a few queries attend to many keys, as in cross-attention of a decoding step.

    A compiled or exported graph runs at any size, so it never takes this path.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    rows, heads, keys, _ = k.shape
    return keys >= 32 and rows * heads * keys >= 2000 and q.shape[2] <= 8
